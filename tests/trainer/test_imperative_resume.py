"""A model that trains by side effect is resumed as exactly as its state_dict is complete."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

import helios
from helios.trainer.store import read_checkpoint
from tests.trainer.imperative import PLANS, Whole, content, data, fit
from tests.trainer.ranks import world
from tests.trainer.runs import PlannedError, Stopper, names, same

MICRO_BATCHES = {plan: 12 if plan == ("iteration", 3) else 10 for plan in PLANS}
MICRO_BATCHES["iteration", 1] = 8
PLACES = ["train_step", "batch_start", "batch_end", "valid_step", "validation_end", "epoch_end"]


@pytest.fixture(scope="module", params=PLANS, ids=lambda p: "-".join(map(str, p)))
def plan(request):
    return request.param


@pytest.fixture(scope="module")
def whole(plan, tmp_path_factory):
    """What an uninterrupted run ends with."""
    torch.set_num_threads(1)  # as for the tests, before which this runs
    root = tmp_path_factory.mktemp("whole")
    assert fit(root, plan)
    return content(root)


def test_a_stop_after_any_micro_batch_changes_no_bit(plan, whole, tmp_path):
    for stop in range(1, MICRO_BATCHES[plan]):
        root = tmp_path / str(stop)
        assert fit(root, plan, plugins=[Stopper(stop)])
        assert fit(root, plan)
        assert helios.first_difference(content(root), whole) is None, stop


def test_a_stop_after_every_micro_batch_changes_no_bit(plan, whole, tmp_path):
    for stop in range(1, MICRO_BATCHES[plan]):
        assert fit(tmp_path, plan, plugins=[Stopper(stop)])
    assert fit(tmp_path, plan)
    assert same(content(tmp_path), whole)


@pytest.mark.parametrize("place", PLACES)
def test_a_failure_in_any_hook_changes_no_bit(place, plan, whole, tmp_path, capsys):
    for at in (3, 6, 8):
        root = tmp_path / str(at)
        finished = fit(root, plan, Whole(fails=(place, at)))
        assert finished or "PlannedError" in capsys.readouterr().err
        assert fit(root, plan)
        assert helios.first_difference(content(root), whole) is None, at


def test_a_kill_in_a_micro_batch_changes_no_bit(plan, whole, tmp_path):
    for at in range(1, MICRO_BATCHES[plan] + 1, 3):
        root = tmp_path / str(at)
        (died,) = world.run(killed, ranks=1, args=(str(root), list(plan), at))
        assert died.status == -signal.SIGKILL
        assert fit(root, plan)
        assert helios.first_difference(content(root), whole) is None, at


def killed(root, plan, at):
    for name in [name for name in os.environ if name.startswith(("TORCHELASTIC", "RANK"))]:
        del os.environ[name]  # alone, as far as it knows
    torch.set_num_threads(1)
    fit(Path(root), tuple(plan), Whole(fails=("train_step", at), kills=True))


def test_what_async_saving_writes_is_what_was_there_at_the_save(plan, whole, tmp_path):
    assert fit(tmp_path / "now", plan)
    assert fit(tmp_path / "later", plan, async_saving=True)
    for name in [n for n in names(tmp_path / "now") if n.endswith(".pth")]:
        now, later = (read_checkpoint(tmp_path / run / "whole" / name) for run in ("now", "later"))
        for held in (now, later):
            del held["training_state"]["average_iter_time"], held["log"]
        assert same(now, later)
    assert same(content(tmp_path / "later"), whole)


def test_an_open_window_is_saved_with_its_gradients(tmp_path):
    plan = ("iteration", 3)
    assert fit(tmp_path, plan, plugins=[Stopper(2)])
    held = content(tmp_path)["carry"]["opt_state"]["imperative"]
    assert sorted(held["gradients"])[:2] == ["_net.0.bias", "_net.0.weight"]
    assert fit(tmp_path, plan, plugins=[Stopper(3)])
    assert content(tmp_path)["carry"]["opt_state"]["imperative"]["gradients"] == {}


def test_the_running_losses_are_resumed_with_the_counter_of_what_is_in_them(tmp_path):
    # Fault 15 of the library of this contract: the counter was restored, and the sums were not.
    class Constant(Whole):
        def train_step(self, batch, state):
            super().train_step(batch, state)
            self._loss_items["loss"] = torch.tensor(1.0)

        def on_validation_start(self, validation_cycle):
            state = self.trainer.state
            self.mean = self._running_losses["loss"] / state.running_iter

    plan, arguments = ("iteration", 1), {"valid_frequency": 5, "chkpt_frequency": 4}
    assert fit(tmp_path, plan, Constant(), plugins=[Stopper(4)], **arguments)
    model = Constant()
    assert fit(tmp_path, plan, model, **arguments)
    assert model.mean == 1.0


def test_a_replay_has_the_bits_of_the_checkpoints(plan, tmp_path):
    assert fit(tmp_path, plan)
    recorded = helios.recorded_digests(tmp_path / "whole")
    assert len(recorded) >= 2
    first = min((tmp_path / "whole").glob("*.pth"), key=lambda p: read(p)["current_iteration"])
    states = list(helios.replay(Whole(), data(), first, use_cpu=True))
    assert states[-1].current_iteration in recorded
    assert helios.verify(states, recorded) is None
    other = {**recorded, states[-1].current_iteration: "0" * 32}
    assert helios.verify(states, other) is not None


def read(path):
    return read_checkpoint(path)["training_state"]


def test_the_failing_step_is_run_again(tmp_path, capsys):
    plan = ("iteration", 1)
    assert not fit(tmp_path, plan, Whole(fails=("train_step", 5)))
    record = tmp_path / "whole" / "crashes" / "micro_5.json"
    with pytest.raises(PlannedError):
        helios.reproduce(Whole(fails=("train_step", 5)), data(), record, use_cpu=True)
