import pytest
import torch
from torch import nn

import helios
from helios.model import freeze, unfreeze
from tests import zoo
from tests.trainer.runs import Batches, run, same

DATA = zoo.classes(4)


class Frozen(zoo.Noisy):
    """The first layer and the statistics do not move."""

    patterns = ("net.0.*", "net.1.*")

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.average = helios.optim.average(0.9)
        freeze(self, *self.patterns)


class ByHand(zoo.Noisy):
    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.average = helios.optim.average(0.9)
        self.net[0].requires_grad_(False)


class OneLayer(Frozen):
    patterns = ("net.0.*",)


def test_what_is_frozen_keeps_its_bits_and_has_no_optimizer_state():
    model = Frozen()
    before = helios.init_state(model).carry
    after = run(None, model, Batches(DATA, DATA), steps=6, valid_frequency=2).state.carry
    frozen = [n for n in before.params if n.startswith(("net.0.", "net.1."))]
    assert len(frozen) == 4
    for name in frozen:
        assert torch.equal(before.params[name], after.params[name])
        assert torch.equal(after.average[name], after.params[name])
        assert name not in after.opt_state["loss"]["slots"]
    assert not torch.equal(before.params["net.4.weight"], after.params["net.4.weight"])
    assert all(same(before.buffers[n], after.buffers[n]) for n in before.buffers if n != "seen")


def test_requires_grad_alone_trains_the_same():
    one, other = (run(None, m, Batches(DATA), steps=5).state for m in (OneLayer(), ByHand()))
    assert helios.digest(one) == helios.digest(other)


def test_a_resumed_run_keeps_them_frozen(tmp_path):
    whole = run(None, Frozen(), Batches(DATA), steps=6)
    run(tmp_path, Frozen(), Batches(DATA), steps=3)
    assert helios.digest(run(tmp_path, Frozen(), Batches(DATA), steps=6).state) == helios.digest(
        whole.state
    )


def test_a_checkpoint_holds_the_frozen_weights(tmp_path):
    trainer = run(tmp_path, Frozen(), Batches(DATA), steps=3)
    net = zoo.Noisy()
    net.prepare(99)
    [path] = tmp_path.rglob("*.pth")
    helios.load_pretrained(net.net, path, mapping={"": "net."})
    assert torch.equal(net.net[0].weight, trainer.state.carry.params["net.0.weight"])


@pytest.mark.parametrize("donate", [False, True])
def test_frozen_statistics_stay_in_a_model_that_was_in_evaluation_mode(donate):
    model = Frozen()
    state = helios.init_state(model)
    model.eval()
    before = state.carry.buffers["net.1.running_mean"].clone()
    state = helios.make_step(model)(state, DATA[0], donate=donate)
    assert torch.equal(state.carry.buffers["net.1.running_mean"], before)


def test_train_leaves_frozen_layers_in_evaluation_mode():
    model = Frozen()
    model.prepare()
    model.eval().train()
    assert [layer.training for layer in model.net] == [True, False, True, True, True]


def test_without_buffers_the_statistics_go_on():
    model = nn.Sequential(nn.BatchNorm1d(2))
    assert freeze(model, "*", buffers=False) == ("0.weight", "0.bias")
    assert model[0].training


def test_unfreeze_undoes_it():
    model = Frozen()
    model.prepare()
    assert set(unfreeze(model, "net.*")) >= {"net.0.weight", "net.1.running_mean"}
    assert all(p.requires_grad for p in model.parameters())
    assert all(layer.training for layer in model.modules())


def test_a_model_is_no_layer_that_stands_still():
    model = zoo.Noisy()
    model.prepare()
    assert "seen" not in freeze(model, "*")
    assert model.train().training


def test_a_pattern_that_matches_nothing_is_an_error_with_the_names():
    with pytest.raises(ValueError, match=r"'head\.\*' matches no parameter or buffer .*'weight'"):
        freeze(nn.Linear(1, 1), "head.*")
    with pytest.raises(ValueError, match="matches no parameter of"):
        freeze(nn.BatchNorm1d(1), "running_*", buffers=False)
    with pytest.raises(ValueError, match="received none"):
        unfreeze(nn.Linear(1, 1))
