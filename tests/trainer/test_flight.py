"""The flight recorder: what it records, what becomes of it after a kill, and what it refuses."""

from __future__ import annotations

import math
import os
import struct

import pytest
import torch
from msgspec.structs import replace

import helios
from helios.data.source import source_of
from helios.errors import CheckpointError, CheckpointVersionError, CorruptCheckpointError
from helios.functional import nonfinite
from helios.functional.state import TrainingState
from helios.trainer.flight import first_difference, flight_record, what_differs
from helios.trainer.flight.indices import IndexDigests
from helios.trainer.flight.record import HEADER_SIZE, NAME, RECORD_SIZE, UNKNOWN
from helios.trainer.loop import Loop
from tests import zoo
from tests.functional.test_compiled import TRACED
from tests.trainer import test_no_host_sync as syncs
from tests.trainer.runs import FailsAt, PlannedError, run, trainer

SAMPLES, BATCH = 22, 4  # six micro-batches in an epoch, the last one smaller


def rows(samples=SAMPLES):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(samples, 3, generator=generator)
    return x, x.sum(1, keepdim=True)


def data(samples=SAMPLES, **arguments):
    return helios.data.from_datasets(train=rows(samples), batch_size=BATCH, **arguments)


def recorded(root, model=None, make=data, **arguments):
    """Fit with the recorder on, and return its bytes."""
    model = FailsAt("nowhere") if model is None else model
    run(root, model, make(), flight_recorder=True, **arguments)
    return (root / model.save_name / NAME).read_bytes()


RUNS = {
    "updates": {"unit": "iteration", "steps": 13, "chkpt_frequency": 4},
    "updates, windows": {"unit": "iteration", "steps": 5, "accumulation_steps": 4},
    "epochs": {"unit": "epoch", "steps": 2, "print_frequency": 2},
    "epochs, windows": {"unit": "epoch", "steps": 2, "accumulation_steps": 4, "chkpt_frequency": 1},
}


@pytest.mark.parametrize("saves", [True, False], ids=["saved at once", "killed"])
@pytest.mark.parametrize("case", RUNS)
def test_a_killed_and_resumed_run_has_the_file_of_an_uninterrupted_one(
    case, saves, tmp_path, monkeypatch
):
    whole = recorded(tmp_path / "whole", **RUNS[case])
    for at in range(1, 13):
        root = tmp_path / str(at)
        model = FailsAt("loss", at)
        made = trainer(root, flight_recorder=True, **RUNS[case])
        made.train_exceptions.append(PlannedError)
        with monkeypatch.context() as patch:
            if not saves:  # a process that is gone saves nothing, and may have written in part
                patch.setattr(Loop, "save_resumable", lambda loop: None)
            with pytest.raises(PlannedError):
                made.fit(model, data())
        if not saves:
            with open(root / "line" / NAME, "ab") as file:
                file.write(b"\1" * 30)
        assert recorded(root, **RUNS[case]) == whole


def test_a_record_says_what_the_update_was_made_of(tmp_path):
    recorded(tmp_path, zoo.Line(), steps=3, accumulation_steps=2)
    model, found = zoo.Line(), flight_record(tmp_path / "line")
    model.prepare(trainer(steps=1).seed)
    state, source = helios.init_state(model, trainer(steps=1).seed), source_of(loader())
    batches = [b for _, b in zip(range(6), source.open(0), strict=False)]
    step = helios.make_step(model, helios.Plan(accumulation_steps=2))
    for update in range(3):
        pair = batches[2 * update : 2 * update + 2]
        model.load_state_dict(state.carry.params)
        model.zero_grad()
        loss = sum(model.loss(batch) for batch in pair) / 2
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        entry = found.at(update + 1)
        assert (entry.update, entry.batches, entry.skipped) == (update + 1, 2, False)
        assert entry.loss == pytest.approx(loss.item(), rel=1e-6)
        assert entry.norm == pytest.approx(norm.item(), rel=1e-6)
        for batch in pair:
            state = step(state, batch)
    found.check()


def loader():
    module = data()
    module.setup()
    module.seed = trainer(steps=1).seed
    return module.train_dataloader()


def test_recording_changes_no_bit(tmp_path):
    off, on = zoo.Noisy(), zoo.Noisy()
    batches = zoo.classes(5)
    from tests.trainer.runs import Batches

    a = run(tmp_path / "a", off, Batches(batches))
    b = run(tmp_path / "b", on, Batches(batches), flight_recorder=True)
    assert helios.digest(a.state) == helios.digest(b.state)


@pytest.mark.parametrize("case", ["shuffled", "in order", "windows over epochs"])
def test_the_indices_of_a_window_are_those_of_its_batches(case):
    module = data(shuffle=case != "in order")
    module.setup()
    source, known = source_of(module.train_dataloader()), {}
    digests, size = IndexDigests(source), source.batches_per_epoch
    assert size == 6
    for number in range(14):
        count = 4 if case == "windows over epochs" and number >= 3 else 1
        places = [divmod(n, size) for n in range(number - count + 1, number + 1)]
        indices = [source.indices(epoch, place) for epoch, place in places]
        epoch, last = divmod(number, size)
        known.setdefault(digests.window(epoch + 1, last, count), indices)
        # Asked for anew, in any order, it is the same.
        assert IndexDigests(source).window(epoch + 1, last, count) in known
    assert UNKNOWN not in known
    expected = 14 if case != "in order" else 6
    assert len(known) == (expected if count == 1 else 14)


def test_indices_that_are_not_known_are_recorded_as_such(tmp_path):
    from tests.trainer.runs import Batches

    run(tmp_path, zoo.Line(), Batches(zoo.regression(5)), flight_recorder=True)
    assert not any(entry.indices_known for entry in flight_record(tmp_path / "line"))


def test_a_skipped_update_is_recorded_as_such(tmp_path):
    x, y = rows()
    x[:1] = math.nan
    module = helios.data.from_datasets(train=(x, y), batch_size=BATCH, shuffle=False)
    run(tmp_path, zoo.Line(), module, flight_recorder=True, non_finite="skip")
    found = flight_record(tmp_path / "line")
    assert [entry.skipped for entry in found] == [True] + [False] * 5
    assert math.isnan(found[0].loss)


def test_all_objectives_are_in_the_digest(tmp_path):
    class Other(zoo.Game):
        def second(self, batch):
            return super().second(batch) * factor

    files = []
    x, y = rows()
    module = helios.data.from_datasets(train=(x.double(), y.double()), batch_size=BATCH)
    for factor in (1.0, 2.0):
        run(tmp_path / str(factor), Other("game"), module, flight_recorder=True)
        files.append(flight_record(tmp_path / str(factor) / "game"))
    assert what_differs(files[0][0], files[1][0]) == ["rest"]
    assert first_difference(*files) == 1


def test_a_model_with_a_step_of_its_own_has_its_samples_and_counters_recorded(tmp_path):
    class Own(zoo.Line):
        def step(self, state, batch):
            return replace(state, carry=replace(state.carry))

    run(tmp_path, Own("own"), data(), flight_recorder=True)
    for entry in flight_record(tmp_path / "own"):
        assert not entry.has_loss
        assert entry.indices_known


def test_a_compiled_run_is_recorded(tmp_path):
    run(tmp_path, zoo.Line(), data(), flight_recorder=True, compile=TRACED)
    run(tmp_path / "eager", zoo.Line(), data(), flight_recorder=True)
    pairs = zip(
        flight_record(tmp_path / "line"), flight_record(tmp_path / "eager" / "line"), strict=True
    )
    for a, b in pairs:
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.norm == pytest.approx(b.norm, rel=1e-5)


def test_it_needs_a_folder():
    with pytest.raises(ValueError, match="flight_recorder: received True; expected a chkpt_root"):
        helios.Trainer(flight_recorder=True)


def test_what_is_no_record_is_not_overwritten(tmp_path):
    recorded(tmp_path, steps=3)
    path = tmp_path / "line" / NAME
    path.write_bytes(b"something else")
    made = trainer(tmp_path, steps=6, flight_recorder=True)
    made.train_exceptions.append(CheckpointError)
    with pytest.raises(CheckpointError, match="is not a flight record"):
        made.fit(zoo.Line(), data())
    assert path.read_bytes() == b"something else"


def changed(path, offset, data):
    whole = bytearray(path.read_bytes())
    whole[offset : offset + len(data)] = data
    path.write_bytes(whole)


def test_another_version_is_refused(tmp_path):
    recorded(tmp_path)
    path = tmp_path / "line" / NAME
    changed(path, 8, struct.pack("<I", 2))
    with pytest.raises(CheckpointVersionError, match="version 2 of the flight record"):
        flight_record(path)


def test_a_changed_header_and_a_changed_record_are_found(tmp_path):
    recorded(tmp_path)
    path = tmp_path / "line" / NAME
    changed(path, HEADER_SIZE + 2 * RECORD_SIZE + 9, b"\0\1")
    with pytest.raises(CorruptCheckpointError, match="the record of update 3"):
        flight_record(path).check()
    changed(path, 20, b"\7")
    with pytest.raises(CorruptCheckpointError, match="the first bytes"):
        flight_record(path)


@pytest.mark.parametrize("size", [0, 5, HEADER_SIZE - 1])
def test_a_header_that_was_cut_short_is_refused(size, tmp_path):
    recorded(tmp_path)
    path = tmp_path / "line" / NAME
    os.truncate(path, size)
    with pytest.raises(CheckpointError):
        flight_record(path)


def test_a_last_record_that_was_written_in_part_is_left_out(tmp_path):
    recorded(tmp_path)
    path = tmp_path / "line" / NAME
    os.truncate(path, HEADER_SIZE + 3 * RECORD_SIZE + 7)
    assert [entry.update for entry in flight_record(path)] == [1, 2, 3]


def test_a_record_that_does_not_reach_the_checkpoint_is_kept_aside(tmp_path):
    recorded(tmp_path, steps=4)
    path = tmp_path / "line" / NAME
    os.truncate(path, HEADER_SIZE + 2 * RECORD_SIZE)
    with pytest.warns(UserWarning, match="a new record begins there"):
        recorded(tmp_path, steps=6)
    assert [entry.update for entry in flight_record(path)] == [5, 6]
    assert len(flight_record(path.with_name("flight_until_2.bin"))) == 2


def test_a_run_that_begins_anew_begins_its_record_anew(tmp_path):
    before = recorded(tmp_path)
    for path in (tmp_path / "line").glob("line_*"):
        path.unlink()
    assert recorded(tmp_path) == before


def test_the_store_does_not_stumble_over_it(tmp_path, capsys):
    from helios.cli.main import main

    recorded(tmp_path, chkpt_frequency=1, retention=helios.Retention(last=2))
    assert main(["verify", str(tmp_path / "line")]) == 0
    assert "2 checkpoints: 2 valid" in capsys.readouterr().out
    assert len(helios.recorded_digests(tmp_path / "line")) == 2


def test_a_disk_without_room_stops_the_run(tmp_path, monkeypatch):
    from helios.trainer.flight import writing

    def full(*_):
        raise OSError(28, "No space left on device")

    made = trainer(tmp_path, flight_recorder=True)
    made.train_exceptions.append(CheckpointError)
    monkeypatch.setattr(writing, "write_all", full)
    with pytest.raises(CheckpointError, match="cannot write"):
        made.fit(zoo.Line(), data())


def test_a_failed_write_is_made_up_for_if_that_is_tolerated(tmp_path, monkeypatch):
    from helios.trainer.flight import writing

    whole, real, count = recorded(tmp_path / "whole", chkpt_frequency=2), writing.write_all, []

    def fails_once(fs, descriptor, data):
        count.append(1)
        if len(count) == 1:
            real(fs, descriptor, data[:50])
            raise OSError(28, "No space left on device")
        real(fs, descriptor, data)

    monkeypatch.setattr(writing, "write_all", fails_once)
    with pytest.warns(UserWarning, match="the flight record is behind"):
        written = recorded(tmp_path / "full", chkpt_frequency=2, tolerate_failed_saves=True)
    assert written == whole


@pytest.mark.parametrize("case", ["plain", "accumulation", "weighted", "objectives"])
def test_nothing_is_read_from_the_device_between_two_logs(case, tmp_path, monkeypatch):
    """The values of an update stay where they are until there is a log, or a checkpoint."""
    sent = []
    monkeypatch.setattr(nonfinite, "send", syncs.arriving)

    def arriving(numbers):
        sent.append(len(numbers))
        return lambda: [1.0] * len(numbers)

    monkeypatch.setattr(nonfinite, "arriving", arriving)
    from helios.trainer import fit

    monkeypatch.setattr(fit, "open_recorder", in_memory := InMemory())
    make, arguments = syncs.CASES[case]
    watching = syncs.Watching()

    def begin():
        watching.is_on = True

    with watching, syncs.WatchingConstructors(watching):
        syncs.fit(syncs.between_logs(make(), begin, lambda: None), "meta", **arguments)
    assert watching.found == []
    assert sent == []
    in_memory.recorder.flush()
    assert sum(sent) > 0
    assert len(in_memory.recorder.entries) == syncs.WINDOWS


class InMemory:
    """Opens recorders without files: what has no values has no checkpoints."""

    def __call__(self, trainer, store, train, state, *_):
        from helios.trainer.flight.recorder import Recorder

        self.recorder = Recorder(IndexDigests(train), state)
        return self.recorder


def test_the_recorder_begins_in_an_open_window():
    from helios.trainer.flight.recorder import Recorder

    class Windows:
        def window(self, epoch, last, count):
            return bytes([epoch, last, count]).ljust(16, b"\0")

    recorder = Recorder(Windows(), TrainingState(global_iteration=5, window_iter=2))
    recorder.update(TrainingState(current_iteration=4, global_iteration=7, dataset_iter=7))
    recorder.flush()
    assert recorder.entries[0].batches == 4
