"""``fast_dev_run``: all code once, on few batches, and nothing left behind."""

from __future__ import annotations

import tempfile

import pytest
import torch

import helios
from helios.core.distributed import _TORCHRUN
from tests import zoo
from tests.trainer.runs import Batches, PlannedError, names, params, run, same, trainer

CALLS: list[str] = []


class Recorded(zoo.Noisy):
    """Notes what is called; on the module, since models are copied."""

    def loss(self, batch):
        CALLS.append("train" if self.training else "evaluate")
        return super().loss(batch)

    def on_training_epoch_end(self, current_epoch):
        CALLS.append("epoch_end")

    def on_training_end(self):
        CALLS.append("end")

    def on_testing_end(self):
        CALLS.append("tested")

    def append_metadata_to_chkpt_name(self, chkpt_name):
        CALLS.append("checkpoint")
        return ""


class Plugged(helios.Plugin):
    def __init__(self):
        super().__init__("plugged")
        self.validations = 0

    def on_validation_end(self, validation_cycle):
        self.validations += 1
        CALLS.append("plugin")


@pytest.fixture(autouse=True)
def calls(tmp_path, monkeypatch):
    CALLS.clear()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def data():
    return Batches(*(zoo.classes(5, seed=seed) for seed in range(3)))


@pytest.mark.parametrize("unit", ["epoch", "iteration"])
def test_all_code_runs_once(unit):
    made = trainer(unit=unit, steps=100, fast_dev_run=True, plugins=[Plugged()])
    assert made.fit(Recorded(), data())
    kinds = [*("train", "evaluate", "plugin", "epoch_end", "checkpoint", "end")]
    assert [*kinds, "evaluate", "tested"] == CALLS


def test_so_many_updates_of_whole_windows_and_batches_of_validation_and_test():
    made = trainer(unit="epoch", fast_dev_run=2, accumulation_steps=2, valid_frequency=7)
    assert made.fit(Recorded(), data())
    assert CALLS.count("train") == 4
    assert CALLS.count("evaluate") == 2 + 2


def test_nothing_is_left_on_the_disk(tmp_path):
    folders = {"log_path": tmp_path / "logs", "run_path": tmp_path / "runs"}
    made = trainer(
        tmp_path / "root", fast_dev_run=1, enable_file_logging=True, enable_tensorboard=True,
        logs=[helios.CSVLog(tmp_path / "log.csv")], **folders,
    )  # fmt: skip
    assert made.fit(Recorded(), data())
    assert "checkpoint" in CALLS
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]


def test_nothing_is_resumed(tmp_path):
    run(tmp_path, zoo.Noisy(), data(), steps=2)
    before = names(tmp_path)
    assert trainer(tmp_path, steps=2, fast_dev_run=True).fit(Recorded("noisy"), data())
    assert "train" in CALLS
    assert names(tmp_path) == before


def test_a_fit_after_it_has_the_bits_of_one_without_it():
    plain, model, plugin = zoo.Noisy(), zoo.Noisy(), Plugged()
    run(model=plain, data=data(), plugins=[Plugged()])
    tried = data()
    assert trainer(fast_dev_run=2, plugins=[plugin]).fit(model, tried)
    assert plugin.validations == 0
    made = run(model=model, data=tried, plugins=[plugin])
    assert same(params(model), params(plain))
    assert made.state.global_iteration == 6


def test_a_model_that_was_trained_before_stays_as_it_is():
    model = zoo.Noisy()
    made = run(model=model, data=data())
    before, state = params(model), made.state
    made.fast_dev_run = 1
    assert made.fit(model, data())
    assert same(params(model), before)
    assert made.state is state


def test_it_says_so(capsys):
    trainer(fast_dev_run=True).fit(Recorded(), data())
    assert "fast_dev_run: 1 update(s) of training" in capsys.readouterr().out


def test_without_validation_and_test_sets_it_runs_without_a_warning():
    made = trainer(unit="epoch", fast_dev_run=True)
    assert made.fit(Recorded(), Batches(zoo.classes(5)))


def test_a_failure_is_told_and_leaves_no_record(tmp_path, capsys):
    class Fails(Recorded):
        def on_testing_end(self):
            raise PlannedError("in the test code")

    assert not trainer(tmp_path / "root", fast_dev_run=True).fit(Fails(), data())
    assert "in the test code" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_a_step_that_fails_names_no_file_that_is_gone(tmp_path, capsys):
    class Fails(Recorded):
        def loss(self, batch):
            raise PlannedError("in the loss")

    assert not trainer(tmp_path / "root", fast_dev_run=True).fit(Fails(), data())
    assert "helios.debug" not in capsys.readouterr().err


def test_what_cannot_be_copied_is_used_itself_with_a_warning():
    class Uncopied(Recorded):
        def __deepcopy__(self, memo):
            raise TypeError("a handle")

    with pytest.warns(UserWarning, match="cannot be copied"):
        assert trainer(fast_dev_run=True).fit(Uncopied(), data())


def test_ranks_that_were_started_from_outside_are_refused(monkeypatch):
    for name in _TORCHRUN:
        monkeypatch.setenv(name, "2" if name == "WORLD_SIZE" else "0")
    with pytest.raises(ValueError, match="fast_dev_run: received it on one of several ranks"):
        trainer(fast_dev_run=True).fit(Recorded(), data())


@pytest.mark.parametrize(("value", "error"), [(0.5, TypeError), (-1, ValueError)])
def test_other_values_are_refused(value, error):
    with pytest.raises(error, match="fast_dev_run"):
        trainer(fast_dev_run=value)


def test_a_test_alone_tests_so_many_batches(capsys):
    assert trainer(fast_dev_run=2).test(Recorded(), data())
    assert CALLS == ["evaluate", "evaluate", "tested"]
    assert "fast_dev_run: 2 batch(es) of test; nothing is resumed" in capsys.readouterr().out


def test_it_needs_no_total_steps():
    made = helios.Trainer(fast_dev_run=True, use_cpu=True, print_banner=False)
    assert made.fit(Recorded(), data())


class Plain(helios.Model):
    """What can be sent to another process."""

    def setup(self, fast_init=False):
        self.net = torch.nn.Linear(3, 2)
        self.optimizer = helios.optim.SGD(lr=0.1)

    def loss(self, batch):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def test_ranks_that_it_starts_are_tried_together(tmp_path, capsys):
    made = trainer(tmp_path / "root", fast_dev_run=1, cpu_ranks=2)
    assert made.fit(Plain("plain"), data()), capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]
