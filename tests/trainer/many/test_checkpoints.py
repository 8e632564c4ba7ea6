"""Every member's checkpoints are those of a run of it alone."""

import pytest
import torch

import helios
from helios.functional.stacked import member_state
from helios.trainer.store import read_checkpoint, stored_state
from tests import zoo
from tests.trainer.many.runs import NAMES, data, fit, last, members
from tests.trainer.runs import names, same, trainer


def quiet(name):
    return zoo.Line(name, lambda: helios.optim.AdamW(lr=0.1))


def lines():
    return zoo.regression(5)


class Rows(helios.DataModule):
    """Samples that need no generator."""

    def setup(self):
        x, y = zip(*lines(), strict=True)
        rows = torch.utils.data.TensorDataset(torch.cat(x), torch.cat(y))
        self._train_dataset = self._create_dataset(rows, {"batch_size": 4, "shuffle": True})
        self._valid_dataset = self._create_dataset(rows, {"batch_size": 8})
        self._test_dataset = self._create_dataset(rows, {"batch_size": 8})


def test_they_have_the_names_and_the_structure_of_those_of_one_alone(tmp_path):
    arguments = {"chkpt_frequency": 2, "valid_frequency": 2, "random_seed": 3}
    fit(tmp_path / "many", members(quiet), Rows(), **arguments)
    alone = quiet("b")
    alone.prepare(1)
    assert trainer(tmp_path / "one", **arguments).fit(alone, Rows())
    assert names(tmp_path / "many" / "b") == names(tmp_path / "one" / "b")
    one, many = last(tmp_path / "one", "b"), last(tmp_path / "many", "b")
    assert one.keys() == many.keys()
    assert one["plan"] == many["plan"]
    a = dict(helios.functional.tree.leaves_with_paths(one["carry"]))
    b = dict(helios.functional.tree.leaves_with_paths(many["carry"]))
    assert list(a) == list(b)
    for path, value in a.items():
        assert type(value) is type(b[path])
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(b[path], value, rtol=1e-5, atol=1e-6)
            assert b[path].untyped_storage().nbytes() == b[path].nbytes


def test_the_states_in_them_are_those_of_the_members(tmp_path):
    made = fit(tmp_path, chkpt_frequency=3, valid_frequency=2, accumulation_steps=2)
    for k, name in enumerate(NAMES):
        path = helios.trainer.find_last_checkpoint(tmp_path / name)
        stored = stored_state(read_checkpoint(path))
        assert helios.first_difference(stored, member_state(made.state, k)) is None


def test_a_member_can_be_tested(tmp_path):
    models = members(quiet)
    fit(tmp_path, models, Rows())
    fresh = quiet("b")
    assert trainer(tmp_path).test(fresh, Rows())
    assert fresh.test_metrics["loss"] > 0
    assert torch.equal(fresh.net.weight, models[1].net.weight)


def test_a_run_of_a_member_alone_goes_on_and_is_told_that_its_bits_are_others(tmp_path):
    fit(tmp_path, members(quiet), Rows(), steps=4)
    alone = trainer(tmp_path, steps=9, random_seed=3)
    with pytest.warns(UserWarning, match="reduction was vmapped, 3 members and is mean"):
        assert alone.fit(quiet("b"), Rows())
    whole = fit(None, members(quiet), Rows(), steps=9)
    expected = member_state(whole.state, 1)
    assert alone.state.current_iteration == 9
    for name, value in alone.state.carry.params.items():
        torch.testing.assert_close(value, expected.carry.params[name], rtol=1e-5, atol=1e-6)


def test_replay_computes_the_states_that_followed(tmp_path):
    fit(tmp_path, members(quiet), Rows(), chkpt_frequency=2)
    states = list(
        helios.replay(quiet("c"), Rows(), tmp_path / "c" / "c_epoch_1_iter_2.pth", updates=4)
    )
    final = stored_state(read_checkpoint(tmp_path / "c" / "c_epoch_2_iter_6.pth"))
    for name, value in final.carry.params.items():
        torch.testing.assert_close(states[-1].carry.params[name], value, rtol=1e-5, atol=1e-6)


def test_their_weights_can_be_loaded(tmp_path):
    models = members(quiet)
    fit(tmp_path, models, Rows())
    net = torch.nn.Linear(3, 1)
    path = helios.trainer.find_last_checkpoint(tmp_path / "c")
    helios.load_pretrained(net, path, mapping={"": "net."})
    assert torch.equal(net.weight, models[2].net.weight)


def test_the_retention_holds_for_each_member(tmp_path):
    fit(tmp_path, chkpt_frequency=1, steps=5, retention=helios.Retention(last=2))
    for name in NAMES:
        assert len(list((tmp_path / name).glob("*.pth"))) == 2


def test_saving_in_the_background_gives_the_same_files(tmp_path):
    arguments = {"chkpt_frequency": 1, "steps": 4, "retention": helios.Retention(last=2)}
    fit(tmp_path / "now", **arguments)
    fit(tmp_path / "later", async_saving=True, **arguments)
    for name in NAMES:
        assert names(tmp_path / "now" / name) == names(tmp_path / "later" / name)
        assert same(last(tmp_path / "now", name), last(tmp_path / "later", name))


def test_the_first_weights_have_the_bits_of_those_of_one_alone():
    models = members()
    many = fit(None, models, data(), steps=1, accumulation_steps=2)
    assert many.state.current_iteration == 1
    for seed, name in enumerate(NAMES):
        alone = zoo.Noisy(name)
        fresh = helios.init_state(alone, seed)
        member = zoo.Noisy(name)
        member.prepare(seed)
        assert same(helios.init_state(member).carry.params, fresh.carry.params)
