"""A1: what is written in the background is the state at the call, whatever training does then."""

from __future__ import annotations

import errno
import threading
import warnings

import pytest
import torch

import helios
from helios.errors import CheckpointError
from helios.trainer.store import read_checkpoint, store
from helios.trainer.store.background import Background
from helios.trainer.store.fs import OsFs
from helios.trainer.store.snapshot import Snapshot, compact
from tests import zoo
from tests.trainer.runs import Batches, names, run, same, trainer


def content(path):
    read = read_checkpoint(path)
    del read["training_state"]["average_iter_time"]
    return read


class Gate(OsFs):
    """Begins no checkpoint before it is opened."""

    opened: threading.Event
    waiting: threading.Event

    def create(self, path):
        if path.suffix == ".tmp":
            self.waiting.set()
            assert self.opened.wait(60)
        return super().create(path)


@pytest.fixture
def gate(monkeypatch):
    Gate.opened, Gate.waiting = threading.Event(), threading.Event()
    monkeypatch.setattr(store, "OsFs", Gate)
    return Gate


class Opens(zoo.Noisy):
    """Opens the gate to every save once ten donated steps have been run while it waits."""

    def __init__(self, gate, every):
        super().__init__()
        self.gate, self.every, self.held = gate, every, 0

    def on_training_batch_end(self, state, should_log=False):
        saves, since = divmod(state.global_iteration, self.every)
        if saves and since == 1:
            assert self.gate.waiting.wait(60)
        if saves and since == 10:
            assert not self.gate.opened.is_set()
            self.held += 1
            self.gate.opened.set()
        if since == self.every - 1:
            self.gate.opened.clear()
            self.gate.waiting.clear()


@pytest.mark.parametrize("window", [1, 3])
def test_ten_donated_steps_meanwhile_change_no_bit_of_a_hundred_checkpoints(tmp_path, gate, window):
    data = Batches(zoo.classes(4))
    every, saves = 12, 100
    arguments = {"steps": every * saves + 10, "chkpt_frequency": every}
    arguments["accumulation_steps"] = window
    gate.opened.set()
    run(tmp_path / "sync", zoo.Noisy(), data, **arguments)
    gate.opened.clear()
    model = Opens(gate, every * window)
    run(tmp_path / "async", model, data, async_saving=True, **arguments)
    assert model.held == saves
    assert names(tmp_path / "async") == names(tmp_path / "sync")
    for name in names(tmp_path / "sync"):
        expected = content(tmp_path / "sync" / "noisy" / name)
        assert same(content(tmp_path / "async" / "noisy" / name), expected), name


def test_fit_returns_when_everything_is_on_the_disk(tmp_path):
    made = run(tmp_path, steps=5, chkpt_frequency=1, async_saving=True)
    assert len(names(tmp_path)) == 5
    last = content(tmp_path / "line" / "line_epoch_1_iter_5.pth")
    assert last["training_state"]["current_iteration"] == made.state.current_iteration


def test_at_most_one_save_is_in_flight(tmp_path, monkeypatch):
    under_way, most = [], []

    class Counts(OsFs):
        def create(self, path):
            if path.suffix == ".tmp":
                under_way.append(path)
                most.append(len(under_way))
            return super().create(path)

        def fsync_dir(self, folder):
            super().fsync_dir(folder)
            if any((folder / p.name[1:-8]).with_suffix(".json").exists() for p in under_way):
                under_way.clear()

    monkeypatch.setattr(store, "OsFs", Counts)
    run(tmp_path, steps=12, chkpt_frequency=1, async_saving=True)
    assert most == [1] * 12


class Full(OsFs):
    """Has no room for the n-th checkpoint."""

    at = 0

    def create(self, path):
        if path.suffix == ".tmp":
            type(self).at -= 1
            if self.at == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(path)


@pytest.mark.parametrize(("at", "left"), [(1, [4]), (2, [2, 6]), (4, [2, 4, 6, 8])])
def test_a_failure_surfaces_at_the_next_save_or_at_the_end(tmp_path, monkeypatch, at, left):
    monkeypatch.setattr(store, "OsFs", Full)
    Full.at = at
    made = trainer(tmp_path, steps=8, chkpt_frequency=2, async_saving=True)
    made.train_exceptions.append(CheckpointError)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        made.fit(zoo.Line(), Batches(zoo.regression(10)))
    assert caught.value.__cause__.errno == errno.ENOSPC
    # The state that the run had come to by then is saved after all, since there is room again.
    assert names(tmp_path) == [f"line_epoch_1_iter_{n}.pth" for n in left]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_run_that_tolerates_failed_saves_goes_on(tmp_path, monkeypatch, in_background):
    monkeypatch.setattr(store, "OsFs", Full)
    Full.at = 2
    arguments = {"steps": 8, "chkpt_frequency": 2, "async_saving": in_background}
    with pytest.warns(UserWarning, match="a save failed, and the run goes on: cannot write"):
        run(tmp_path, data=Batches(zoo.regression(10)), tolerate_failed_saves=True, **arguments)
    assert names(tmp_path) == [f"line_epoch_1_iter_{n}.pth" for n in (2, 6, 8)]


@pytest.mark.parametrize("in_background", [False, True])
def test_a_last_save_that_fails_is_not_tolerated(tmp_path, monkeypatch, in_background):
    class Fuller(Full):
        def create(self, path):
            if "iter_8" in path.name:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
            return super().create(path)

    monkeypatch.setattr(store, "OsFs", Fuller)
    arguments = {"steps": 8, "chkpt_frequency": 2, "async_saving": in_background}
    made = trainer(tmp_path, tolerate_failed_saves=True, **arguments)
    made.train_exceptions.append(CheckpointError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CheckpointError, match="Disk quota exceeded"):
            made.fit(zoo.Line(), Batches(zoo.regression(10)))
    assert names(tmp_path) == [f"line_epoch_1_iter_{n}.pth" for n in (2, 4, 6)]


def test_a_run_saved_in_the_background_is_resumed_exactly(tmp_path):
    data, model = Batches(zoo.classes(5)), zoo.Noisy()
    run(tmp_path / "whole", zoo.Noisy(), data, steps=17, chkpt_frequency=3)
    for steps in (4, 5, 11, 17):
        model = zoo.Noisy()
        run(tmp_path / "legs", model, data, steps=steps, chkpt_frequency=3, async_saving=True)
    name = "noisy_epoch_4_iter_17.pth"
    expected = content(tmp_path / "whole" / "noisy" / name)
    assert same(content(tmp_path / "legs" / "noisy" / name), expected)


def test_a_plugin_s_tensor_that_changes_later_is_saved_as_it_was(tmp_path, gate):
    class Counter(helios.Plugin):
        def __init__(self):
            super().__init__("counter")
            self.count = torch.zeros(2, dtype=torch.int64)

        def should_training_stop(self):
            self.count += 1
            return False

        def state_dict(self):
            return {"count": self.count}

    model = Opens(gate, 12)
    arguments = {"steps": 22, "chkpt_frequency": 12, "async_saving": True}
    run(tmp_path, model, Batches(zoo.classes(30)), plugins=[Counter()], **arguments)
    saved = content(tmp_path / "noisy" / "noisy_epoch_1_iter_12.pth")["plugins"]["counter"]["count"]
    assert model.held == 1
    assert saved.tolist() == [12, 12]


# The copy.


def test_a_snapshot_shares_no_memory_with_its_source():
    source = {"a": torch.ones(3), "b": [torch.zeros(2, 2), (torch.tensor(1.0), "x", None)]}
    copy = Snapshot().take(source)
    assert same(copy, source)
    source["a"].zero_()
    source["b"][1][0].zero_()
    assert copy["a"].tolist() == [1, 1, 1]
    assert copy["b"][1][0] == 1


def test_memory_that_is_one_stays_one():
    weight = torch.arange(4.0)
    copy = Snapshot().take({"model": weight, "carry": {"params": weight.detach()}})
    assert copy["model"].data_ptr() == copy["carry"]["params"].data_ptr()


def test_the_memory_of_the_last_copy_is_used_again():
    snapshot = Snapshot()
    first = snapshot.take([torch.ones(5), torch.ones(5), torch.ones(2)])
    places = {tensor.data_ptr() for tensor in first}
    second = snapshot.take([torch.zeros(5), torch.zeros(5), torch.zeros(2)])
    assert {tensor.data_ptr() for tensor in second} == places
    assert not any(tensor.any() for tensor in second)


def test_tensors_may_change_their_shapes_from_copy_to_copy():
    snapshot = Snapshot()
    for size in (1, 3, 0, 2, 3):
        assert snapshot.take(torch.full((size,), float(size))).tolist() == [float(size)] * size


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 4).expand(3, 4, 4)[:, :2],
        torch.arange(10)[2:5],
        torch.arange(12).reshape(3, 4).t()[1:],
        torch.zeros(1).expand(1000),
        torch.ones(3, 5)[:, ::2],
    ],
)
def test_compacting_keeps_the_values_and_drops_the_rest(tensor):
    packed = compact({"x": [tensor]})["x"][0]
    assert same(packed, tensor)
    assert packed.untyped_storage().nbytes() == packed.numel() * packed.element_size()


def test_compacting_leaves_whole_tensors_as_they_are():
    images = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    assert compact(images) is images


# The thread.


def test_a_job_s_result_and_failure_are_taken_once():
    background = Background()
    assert background.finish() is None
    background.start(lambda: 7)
    assert background.finish() == 7
    assert background.finish() is None
    background.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.finish()
    assert background.finish() is None


def test_a_second_job_has_to_wait_for_the_first():
    background, gate = Background(), threading.Event()
    background.start(gate.wait)
    with pytest.raises(RuntimeError, match="under way"):
        background.start(gate.wait)
    gate.set()
    assert background.finish()
