"""`helios.replay`: the past again, bit for bit, from any checkpoint, compared with the record."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import helios
from helios.errors import CheckpointError, ResumeError
from helios.functional.replay import Difference, first_difference_of
from helios.trainer.store import read_checkpoint
from tests.zoo import Augmented, Noisy

SAMPLES, BATCH, BATCHES = 11, 3, 4
RUNS = {
    "epochs": {"total_steps": 4},
    "epochs-windows": {"total_steps": 4, "accumulation_steps": 3, "valid_frequency": 2},
    "updates": {"train_unit": "iteration", "total_steps": 10, "valid_frequency": 2},
    "updates-windows": {
        "train_unit": "iteration",
        "total_steps": 5,
        "accumulation_steps": 3,
        "print_frequency": 2,
    },
}


class Watched(Noisy):
    """Has an average, stops where it is told to, and draws in its hooks."""

    def __init__(self, stop_at=None, factor=1.0):
        super().__init__("watched")
        self.stop_at = stop_at
        self.factor = factor

    def setup(self, fast_init=False):
        super().setup()
        self.average = helios.optim.average(decay=0.9)

    def loss(self, batch):
        if self.training:
            batch = batch[0] + 0.1 * self.noise, batch[1]
        loss, metrics = super().loss(batch)
        if self.training and self.trainer.state.global_iteration >= 7:
            loss = loss * self.factor
        return loss, metrics

    def on_training_batch_start(self, state):
        self.noise = float(torch.rand(())) + random.random() + float(np.random.rand())

    def should_training_stop(self):
        return self.trainer.state.global_iteration == self.stop_at


class Shifted(Augmented):
    """The same samples but one."""

    def __init__(self, size, changed=None):
        super().__init__(size)
        if changed is not None:
            self.x[changed] += 1e-3


class Data(helios.DataModule):
    def __init__(self, changed=None, shuffle=True):
        self.changed = changed
        self.shuffle = shuffle

    def setup(self):
        params = {"batch_size": BATCH, "shuffle": self.shuffle}
        self._train_dataset = self._create_dataset(Shifted(SAMPLES, self.changed), params)
        self._valid_dataset = self._create_dataset(Augmented(5), {"batch_size": 3})


def fit(root, *, stop_at=None, shuffle=True, **arguments):
    """Run a fit with a checkpoint for every unit, and return the folder of its checkpoints."""
    trainer = helios.Trainer(
        use_cpu=True,
        print_banner=False,
        random_seed=5,
        chkpt_root=root,
        **{"valid_frequency": 1, "chkpt_frequency": 1, **arguments},
    )
    trainer.train_exceptions.append(Exception)
    trainer.fit(Watched(stop_at), Data(shuffle=shuffle))
    return Path(root) / "watched"


@pytest.fixture(scope="module", params=RUNS)
def recorded_run(request, tmp_path_factory):
    torch.set_num_threads(1)
    return fit(tmp_path_factory.mktemp("run"), **RUNS[request.param])


@pytest.fixture(scope="module")
def every_update(tmp_path_factory):
    """A run of 10 updates in the order of the data, each with a checkpoint."""
    torch.set_num_threads(1)
    return fit(tmp_path_factory.mktemp("run"), shuffle=False, **RUNS["updates"])


def checkpoints(folder):
    """Return the checkpoints of a run by update."""
    paths = sorted(folder.glob("*.pth"), key=lambda p: int(p.stem.rsplit("_", 1)[1]))
    return {int(p.stem.rsplit("_", 1)[1]): p for p in paths}


def replayed(path, model=None, data=None, **arguments):
    return list(helios.replay(model or Watched(), data or Data(), path, use_cpu=True, **arguments))


def digests(states):
    return {state.current_iteration: helios.digest(state) for state in states}


def test_replay_from_every_checkpoint_has_the_recorded_digests(recorded_run):
    recorded = helios.recorded_digests(recorded_run)
    assert len(recorded) > 3
    for update, path in checkpoints(recorded_run).items():
        received = digests(replayed(path))
        assert list(received) == list(range(update + 1, max(recorded) + 1))
        later = {u: d for u, d in recorded.items() if u > update}
        assert later.items() <= received.items()


def test_the_digest_covers_validations_and_the_best_score(recorded_run):
    first, *_ = checkpoints(recorded_run).values()
    last = replayed(first)[-1]
    assert last.validation_cycles > 0
    assert last.carry.best is not None
    recorded = helios.recorded_digests(recorded_run)
    assert helios.digest(last) == recorded[last.current_iteration]


def test_a_replay_ends_where_the_run_stopped_early(tmp_path):
    folder = fit(tmp_path, total_steps=50, early_stop_cycles=1)
    recorded = helios.recorded_digests(folder)
    assert len(recorded) < 50
    first, *_ = checkpoints(folder).values()
    states = replayed(first)
    assert states[-1].early_stop_count == 1
    assert helios.verify(states, recorded) is None
    assert states[-1].current_iteration == max(recorded)


@pytest.mark.parametrize("updates", [1, 2, 5])
def test_updates_limits_how_many_states_there_are(every_update, updates):
    states = replayed(checkpoints(every_update)[3], data=Data(shuffle=False), updates=updates)
    assert [s.current_iteration for s in states] == list(range(4, 4 + updates))
    recorded = helios.recorded_digests(every_update)
    assert helios.verify(states, recorded) is None


def test_more_updates_than_there_are_yields_those_that_there_are(every_update):
    states = replayed(checkpoints(every_update)[8], data=Data(shuffle=False), updates=100)
    assert [s.current_iteration for s in states] == [9, 10]


def test_the_last_checkpoint_of_a_finished_run_has_nothing_after_it(every_update):
    assert replayed(checkpoints(every_update)[10], data=Data(shuffle=False)) == []


def test_states_keep_their_bits_while_the_replay_goes_on(every_update):
    states = []
    at_once = {}
    replay = helios.replay(
        Watched(), Data(shuffle=False), checkpoints(every_update)[1], use_cpu=True
    )
    for state in replay:
        states.append(state)
        at_once[state.current_iteration] = helios.digest(state)
    assert digests(states) == at_once
    storages = [value.data_ptr() for state in states for value in state.carry.params.values()]
    assert len(set(storages)) == len(storages)


def test_what_is_drawn_between_two_states_changes_none(every_update):
    recorded = helios.recorded_digests(every_update)
    path = checkpoints(every_update)[1]
    for state in helios.replay(Watched(), Data(shuffle=False), path, use_cpu=True):
        torch.rand(3), random.random(), np.random.rand()
        assert helios.digest(state) == recorded[state.current_iteration]


def test_a_replay_that_is_left_in_the_middle_closes_its_data(every_update):
    closed = []
    data = Data(shuffle=False)
    data.teardown = lambda: closed.append(True)
    replay = helios.replay(Watched(), data, checkpoints(every_update)[1], use_cpu=True)
    next(replay)
    assert not closed
    replay.close()
    assert closed == [True]


def test_verify_names_the_update_whose_digest_was_changed(every_update):
    recorded = helios.recorded_digests(every_update)
    states = replayed(checkpoints(every_update)[1], data=Data(shuffle=False))
    for update in (2, 6, 10):
        changed = {**recorded, update: "0" * 32}
        assert helios.verify(states, changed) == Difference(update, "0" * 32, recorded[update])


@pytest.mark.parametrize(("changed", "update"), [(0, 5), (4, 2), (7, 3), (10, 4)])
def test_verify_names_the_first_update_with_other_data(every_update, changed, update):
    # Sample i is in update i // 3 + 1 of 4; the replay begins after the first update.
    recorded = helios.recorded_digests(every_update)
    states = replayed(checkpoints(every_update)[1], data=Data(changed, shuffle=False))
    difference = helios.verify(states, recorded)
    assert difference is not None
    assert difference.update == update


def test_verify_names_the_first_update_with_another_loss(every_update):
    recorded = helios.recorded_digests(every_update)
    model = Watched(factor=1.001)
    difference = helios.verify(
        replayed(checkpoints(every_update)[1], model, Data(shuffle=False)), recorded
    )
    assert difference is not None
    assert difference.update == 7


def test_bisection_names_the_update_that_verify_names(every_update):
    recorded = helios.recorded_digests(every_update)
    for changed in (0, 4, 7, 10):
        states = replayed(checkpoints(every_update)[1], data=Data(changed, shuffle=False))
        difference = helios.verify(states, recorded)
        assert difference is not None
        assert first_difference_of(recorded, digests(states)) == difference.update


def test_bisection_finds_nothing_in_equal_runs(every_update):
    recorded = helios.recorded_digests(every_update)
    states = replayed(checkpoints(every_update)[1], data=Data(shuffle=False))
    assert first_difference_of(recorded, digests(states)) is None
    assert first_difference_of(recorded, {}) is None


@pytest.mark.parametrize("border", range(1, 14))
def test_bisection_finds_any_border(border):
    one = {update: f"a{update}" for update in range(1, 13)}
    other = {u: d if u < border else f"b{u}" for u, d in one.items() if u % 5}
    expected = next((u for u in other if u >= border), None)
    assert first_difference_of(one, other) == expected


def test_another_process_replays_the_same_digests(every_update):
    path = checkpoints(every_update)[2]
    code = (
        "import sys, torch, helios\n"
        "from tests.trainer.test_replay import Data, digests, replayed\n"
        "torch.set_num_threads(1)\n"
        "for u, d in digests(replayed(sys.argv[1], data=Data(shuffle=False))).items():\n"
        "    print('digest', u, d)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "99"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    lines = [line.split() for line in process.stdout.splitlines() if line.startswith("digest")]
    received = {int(update): digest for _, update, digest in lines}
    recorded = helios.recorded_digests(every_update)
    assert received == {u: d for u, d in recorded.items() if u > 2}


def test_a_replay_writes_nothing(every_update, monkeypatch, tmp_path):
    def files(folder):
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}

    monkeypatch.chdir(tmp_path)
    before = files(every_update.parent)
    replayed(checkpoints(every_update)[1], data=Data(shuffle=False))
    assert files(every_update.parent) == before
    assert list(tmp_path.iterdir()) == []


def test_a_replay_leaves_the_global_generators_as_they_were(every_update):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    replayed(checkpoints(every_update)[6], data=Data(shuffle=False))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


@pytest.mark.parametrize("name", ["epochs-windows", "updates-windows"])
@pytest.mark.parametrize("stop_at", [1, 2, 5])
def test_a_checkpoint_in_the_middle_of_a_window_is_replayed_from(tmp_path, name, stop_at):
    whole = helios.recorded_digests(fit(tmp_path / "whole", **RUNS[name]))
    folder = fit(tmp_path / "stopped", stop_at=stop_at, **RUNS[name])
    path = max(folder.glob("*.pth"), key=lambda p: p.stat().st_mtime_ns)
    stopped = read_checkpoint(path)["training_state"]
    assert stopped["global_iteration"] == stop_at
    assert stopped["window_iter"] > 0
    states = replayed(path)
    assert states[0].current_iteration == stopped["current_iteration"] + 1
    assert states[-1].current_iteration == max(whole)
    assert helios.verify(states, whole) is None


@pytest.mark.parametrize("stop_at", [2, 4, 5, 7, 8])
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_is_verified_from_its_first_checkpoint(tmp_path, name, stop_at):
    # What was saved at the stop, in an open window or before a validation that was due, is no
    # state after an update, and must not count as a difference.
    arguments = {**RUNS[name], "chkpt_frequency": 3}
    folder = fit(tmp_path, stop_at=stop_at, **arguments)
    fit(tmp_path, **arguments)
    start = fit(tmp_path / "start", stop_at=1, **RUNS[name])
    states = replayed(next(start.glob("*.pth")))
    recorded = helios.recorded_digests(folder)
    assert recorded
    assert helios.verify(states, recorded) is None


def test_a_replay_of_a_stopped_run_goes_on_to_the_end_of_its_plan(tmp_path):
    folder = fit(tmp_path, stop_at=3, **RUNS["updates"])
    states = replayed(checkpoints(folder)[1])
    assert states[-1].current_iteration == 10


def test_other_data_sizes_are_refused_in_mid_epoch(every_update):
    class Smaller(Data):
        def setup(self):
            super().setup()
            self._train_dataset = self._create_dataset(Augmented(6), {"batch_size": BATCH})

    with pytest.raises(ResumeError, match="4 batches"):
        replayed(checkpoints(every_update)[2], data=Smaller())


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nothing_here"):
        replayed(tmp_path / "nothing_here.pth")


def test_only_checkpoints_of_the_run_are_recorded(every_update):
    stray = every_update / "notes.pth"
    stray.write_bytes(b"no checkpoint")
    try:
        assert sorted(helios.recorded_digests(every_update)) == list(range(1, 11))
    finally:
        stray.unlink()


def test_hooks_see_the_weights_of_the_run(tmp_path):
    class Reading(Watched):
        def __init__(self):
            super().__init__()
            self.weights = []

        def on_training_batch_start(self, state):
            super().on_training_batch_start(state)
            self.weights.append(self.net[0].weight.detach().clone())

        def on_training_batch_end(self, state, should_log=False):
            self.weights.append(self.net[0].weight.detach().clone())

    trainer = helios.Trainer(
        use_cpu=True, print_banner=False, total_steps=2, chkpt_frequency=1, chkpt_root=tmp_path
    )
    model = Reading()
    assert trainer.fit(model, Data())
    again = Reading()
    first, *_ = checkpoints(tmp_path / "watched").values()
    replayed(first, again)
    assert helios.first_difference(again.weights, model.weights[2 * BATCHES :]) is None
