"""A failing step leaves behind what runs that very step again, bit for bit."""

from __future__ import annotations

import os
import random
import re
import stat
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import helios
from helios.errors import (
    CheckpointError,
    CheckpointVersionError,
    CorruptCheckpointError,
    NonFiniteError,
    ResumeError,
)
from helios.functional.schedule import Batch, Plan
from helios.functional.state import TrainingState, TrainingUnit
from helios.trainer import crash as crashes
from helios.trainer.crash import Crash, decode, encode, locate, read_crash, write_crash
from helios.trainer.store.fs import OsFs
from helios.trainer.store.sealed import seal, unseal
from tests.trainer.runs import PlannedError
from tests.zoo import Augmented, Noisy

SAMPLES, BATCH = 11, 3  # four batches an epoch


def tensors(named):
    return {name: value.detach().clone() for name, value in named}


class Fragile(Noisy):
    """Draws everywhere, and raises in one place of one micro-batch, noting what it stands on."""

    def __init__(self, at=5, place="loss", error=PlannedError):
        super().__init__("fragile")
        self.at, self.place, self.error = at, place, error
        self.noise = 0.0
        self.found = None

    def setup(self, fast_init=False):
        super().setup()
        self.average = helios.optim.average(decay=0.9)

    def reach(self, place, **what):
        if place == self.place and self.trainer.state.global_iteration == self.at:
            self.found = {
                "params": tensors(self.named_parameters()),
                "buffers": tensors(self.named_buffers()),
                "drawn": [float(torch.rand(())), random.random(), float(np.random.rand())],
                **what,
            }
            raise self.error(f"planned in {place}")

    def on_training_batch_start(self, state):
        self.noise = float(torch.rand(())) + random.random() + float(np.random.rand())
        self.reach("batch_start")

    def loss(self, batch):
        if not self.training:
            self.reach("validation")
            return super().loss(batch)
        loss, metrics = super().loss((batch[0] + 0.1 * self.noise, batch[1]))
        self.reach("loss", batch=list(batch), loss=loss.detach().clone())
        return loss, metrics

    def on_training_batch_end(self, state, should_log=False):
        self.reach("batch_end")


class BadSample(Augmented):
    """Cannot read one of its samples."""

    def __getitem__(self, index):
        if index == 7:
            raise PlannedError("sample")
        return super().__getitem__(index)


class Data(helios.DataModule):
    def __init__(self, dataset=None, **params):
        self.dataset = dataset or Augmented(SAMPLES)
        self.params = {"batch_size": BATCH, "shuffle": True, **params}

    def setup(self):
        self._train_dataset = self._create_dataset(self.dataset, self.params)
        self._valid_dataset = self._create_dataset(Augmented(5), {"batch_size": 3})


class Mixed(helios.Plugin):
    """Makes another batch of every batch."""

    def __init__(self):
        super().__init__("mixed", helios.plugins.UniquePluginOverrides(training_batch=True))

    def process_training_batch(self, batch, state):
        x, y = batch
        return x + torch.randn_like(x) * random.random(), y


def fit(root, model, data=None, **arguments):
    """Fit, and return the error of the step, or None."""
    trainer = helios.Trainer(
        use_cpu=True,
        print_banner=False,
        random_seed=5,
        chkpt_root=root,
        **{"train_unit": "iteration", "total_steps": 12, "valid_frequency": 2, **arguments},
    )
    trainer.train_exceptions.append(Exception)
    try:
        trainer.fit(model, data or Data())
    except Exception as error:
        return error
    return None


def recorded(root, number=5):
    return Path(root) / "fragile" / "crashes" / f"micro_{number}.json"


def notes(error):
    return getattr(error, "__notes__", [])


def again(path, model, data=None, **arguments):
    """Run the step again, and return its error."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - every kind of error is tried
        helios.reproduce(model, data or Data(), path, use_cpu=True, **arguments)
    return caught.value


def files(folder):
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


RUNS = {
    "updates": {"chkpt_frequency": 2},
    "updates-windows": {"chkpt_frequency": 1, "accumulation_steps": 3, "print_frequency": 1},
    "epochs": {"train_unit": "epoch", "chkpt_frequency": 1, "valid_frequency": 1},
    "epochs-windows": {
        "train_unit": "epoch",
        "chkpt_frequency": 1,
        "valid_frequency": 1,
        "accumulation_steps": 3,
    },
    "in-background": {"chkpt_frequency": 1, "async_saving": True},
}


@pytest.mark.parametrize("place", ["batch_start", "loss", "batch_end"])
@pytest.mark.parametrize("at", [1, 5, 6])
@pytest.mark.parametrize("name", RUNS)
def test_the_step_fails_again_on_the_bits_of_the_run(tmp_path, name, at, place):
    model = Fragile(at, place)
    assert isinstance(fit(tmp_path, model, **RUNS[name]), PlannedError)
    second = Fragile(at, place)
    error = again(recorded(tmp_path, at), second)
    assert (type(error), str(error), notes(error)) == (PlannedError, f"planned in {place}", [])
    assert model.found is not None
    assert helios.digest(second.found) == helios.digest(model.found)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_plugins_make_the_same_batch_again(tmp_path, workers):
    model, second = Fragile(), Fragile()
    data = {"num_workers": workers}
    assert fit(tmp_path, model, Data(**data), chkpt_frequency=1, plugins=[Mixed()])
    again(recorded(tmp_path), second, Data(**data), plugins=[Mixed()])
    assert helios.digest(second.found) == helios.digest(model.found)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_is_named_and_read_again(tmp_path, workers):
    def data():
        return Data(BadSample(SAMPLES), num_workers=workers)

    error = fit(tmp_path, Fragile(99), data())
    assert isinstance(error, PlannedError)
    assert "raised by dataset[7]" in str(error) + "".join(notes(error))
    (path,) = (tmp_path / "fragile" / "crashes").iterdir()
    crash = read_crash(path)
    assert crash.stage == "fetch"
    assert 7 in crash.indices
    assert len(crash.indices) == BATCH
    assert isinstance(again(path, Fragile(99), data()), PlannedError)


def test_what_could_be_saved_after_a_failed_fetch_is_where_it_begins(tmp_path):
    # No checkpoint was due: it is the one that the failure itself has left.
    fit(tmp_path, Fragile(99), Data(BadSample(SAMPLES), shuffle=False))
    crash = read_crash(recorded(tmp_path, 3))
    assert (crash.checkpoint, crash.indices) == ("fragile_epoch_1_iter_2_due.pth", [6, 7, 8])


def test_a_resumed_run_begins_at_the_checkpoint_it_went_on_from(tmp_path):
    assert fit(tmp_path, Fragile(99), total_steps=4) is None
    model, second = Fragile(6), Fragile(6)
    assert fit(tmp_path, model)
    path = recorded(tmp_path, 6)
    assert read_crash(path).checkpoint == "fragile_epoch_1_iter_4.pth"
    again(path, second)
    assert helios.digest(second.found) == helios.digest(model.found)


def test_a_broken_checkpoint_that_was_passed_over_is_not_begun_at(tmp_path):
    assert fit(tmp_path, Fragile(99), total_steps=4, chkpt_frequency=2) is None
    newest = tmp_path / "fragile" / "fragile_epoch_1_iter_4.pth"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="passed over"):
        fit(tmp_path, Fragile(5))
    assert read_crash(recorded(tmp_path)).checkpoint == "fragile_epoch_1_iter_2.pth"


def test_a_run_that_is_not_finite_fails_again(tmp_path):
    class Diverging(Fragile):
        def loss(self, batch):
            loss, metrics = super().loss(batch)
            late = self.training and self.trainer.state.global_iteration >= 5
            return loss * (float("nan") if late else 1.0), metrics

    # A window is judged when it closes.
    first = fit(tmp_path, Diverging(99), accumulation_steps=3, chkpt_frequency=1)
    assert isinstance(first, NonFiniteError)
    crash = read_crash(recorded(tmp_path, 6))
    assert (crash.micro_batch, crash.update, crash.stage) == (6, 2, "step")
    second = again(recorded(tmp_path, 6), Diverging(99))
    assert (type(second), str(second)) == (NonFiniteError, str(first))


def test_updates_that_were_left_out_are_left_out_again(tmp_path):
    class Jumping(Fragile):
        def loss(self, batch):
            loss, metrics = super().loss(batch)
            now = self.training and self.trainer.state.global_iteration == 3
            return loss * (float("nan") if now else 1.0), metrics

    model, second = Jumping(5), Jumping(5)
    assert isinstance(fit(tmp_path, model, non_finite="skip"), PlannedError)
    again(recorded(tmp_path), second)
    assert helios.digest(second.found) == helios.digest(model.found)


def test_a_stream_has_no_indices_and_is_run_again(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(torch.full((3,), i / 9.0), torch.tensor(i % 2)) for i in range(9)])

    def data():
        return helios.data.from_datasets(train=Stream(), batch_size=2)

    model, second = Fragile(), Fragile()
    assert fit(tmp_path, model, data(), valid_frequency=None, chkpt_frequency=2)
    crash = read_crash(recorded(tmp_path))
    assert (crash.indices, crash.plan.batches_per_epoch) == (None, None)
    again(recorded(tmp_path), second, data())
    assert helios.digest(second.found) == helios.digest(model.found)


def test_the_record_says_what_failed_and_where(tmp_path):
    fit(tmp_path, Fragile(6), accumulation_steps=3, chkpt_frequency=1)
    crash = read_crash(recorded(tmp_path, 6))
    place = (crash.epoch, crash.index, crash.micro_batch, crash.update, crash.stage)
    assert place == (2, 1, 6, 2, "step")
    assert (crash.error, crash.message) == ("tests.trainer.runs.PlannedError", "planned in loss")
    assert crash.traceback.endswith("PlannedError: planned in loss\n")
    assert (crash.seed, crash.unit, crash.plan.accumulation_steps) == (5, "iteration", 3)
    assert crash.fingerprint["micro_batch"] == BATCH
    assert crash.checkpoint == "fragile_epoch_1_iter_1.pth"


def test_the_first_micro_batch_begins_at_the_start_of_the_run(tmp_path):
    fit(tmp_path, Fragile(1), chkpt_frequency=1)
    assert read_crash(recorded(tmp_path, 1)).checkpoint is None


def test_the_error_ends_with_how_to_run_it_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = fit("runs", Fragile())
    call = 'helios.reproduce(model, datamodule, "runs/fragile/crashes/micro_5.json")'
    assert notes(error)[-1] == f"To run this very step again: {call}"


def test_the_printed_traceback_and_the_log_end_with_it(tmp_path, capsys):
    trainer = helios.Trainer(
        train_unit="iteration",
        total_steps=9,
        use_cpu=True,
        print_banner=False,
        chkpt_root=tmp_path,
        log_path=tmp_path / "logs",
        enable_file_logging=True,
    )
    assert not trainer.fit(Fragile(), Data())
    (log,) = (tmp_path / "logs").iterdir()
    for text in (capsys.readouterr().err, log.read_text()):
        assert text.rstrip().splitlines()[-1].startswith("To run this very step again: ")


def test_without_a_folder_for_checkpoints_there_is_nothing_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = fit(None, Fragile())
    assert isinstance(error, PlannedError)
    assert notes(error) == []
    assert list(tmp_path.iterdir()) == []


def test_a_failure_between_two_micro_batches_is_no_failed_step(tmp_path):
    error = fit(tmp_path, Fragile(2, "validation"))
    assert isinstance(error, PlannedError)
    assert notes(error) == []
    assert not recorded(tmp_path, 2).parent.exists()


def test_being_interrupted_is_no_failure(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Fragile(error=KeyboardInterrupt))
    assert not recorded(tmp_path).parent.exists()


def test_a_fit_in_a_thread_records_its_failure(tmp_path):
    errors = []
    thread = threading.Thread(target=lambda: errors.append(fit(tmp_path, Fragile())))
    thread.start()
    thread.join()
    assert notes(errors[0])[-1].startswith("To run this very step again")
    assert isinstance(again(recorded(tmp_path), Fragile()), PlannedError)


def test_the_retention_keeps_the_checkpoint_of_a_failed_step(tmp_path):
    arguments = {"chkpt_frequency": 1, "retention": helios.Retention(last=1)}
    fit(tmp_path, Fragile(), **arguments)
    assert fit(tmp_path, Fragile(99), **arguments) is None
    left = sorted(path.name for path in (tmp_path / "fragile").glob("*.pth"))
    assert left == ["fragile_epoch_1_iter_4.pth", "fragile_epoch_3_iter_12.pth"]
    assert isinstance(again(recorded(tmp_path), Fragile()), PlannedError)


def test_a_later_failure_there_has_a_name_of_its_own(tmp_path):
    for _ in range(3):
        fit(tmp_path, Fragile())
    names = {path.name for path in recorded(tmp_path).parent.iterdir()}
    assert names == {"micro_5.json", "micro_5_2.json", "micro_5_3.json"}


def test_the_record_is_for_its_owner_alone(tmp_path):
    fit(tmp_path, Fragile())
    path = recorded(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_neither_arguments_nor_the_environment_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--pin", "argument-4711"])
    monkeypatch.setenv("SOME_VARIABLE", "variable-4711")
    fit(tmp_path, Fragile())
    assert b"4711" not in recorded(tmp_path).read_bytes()


def test_a_record_that_cannot_be_written_hides_nothing(tmp_path):
    (tmp_path / "fragile").mkdir()
    (tmp_path / "fragile" / "crashes").write_text("in the way")
    error = fit(tmp_path, Fragile())
    assert isinstance(error, PlannedError)
    assert notes(error)[-1].startswith("the failing step could not be recorded: ")


def test_a_message_that_cannot_be_made_is_recorded_as_that(tmp_path):
    class SilentError(Exception):
        def __str__(self):
            raise ValueError("no")

    fit(tmp_path, Fragile(error=SilentError))
    assert read_crash(recorded(tmp_path)).message == "<exception str() failed>"


def test_half_characters_are_recorded_escaped(tmp_path):
    class PathError(Exception):
        def __str__(self):
            return "no file a\udcff"

    fit(tmp_path, Fragile(error=PathError))
    assert read_crash(recorded(tmp_path)).message == "no file a\\udcff"


def test_running_a_step_again_writes_nothing(tmp_path, monkeypatch):
    fit(tmp_path / "runs", Fragile(), chkpt_frequency=2)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    before = files(tmp_path)
    again(recorded(tmp_path / "runs"), Fragile())
    assert files(tmp_path) == before


def test_a_step_that_does_not_fail_again_says_so(tmp_path, capsys):
    fit(tmp_path, Fragile())
    helios.reproduce(Fragile(99), Data(), recorded(tmp_path), use_cpu=True)
    said = "micro-batch 5 (update 5) went through this time: no tests.trainer.runs.PlannedError\n"
    assert capsys.readouterr().out == said


def test_a_failure_in_another_micro_batch_is_told_from_it(tmp_path):
    fit(tmp_path, Fragile(5))
    error = again(recorded(tmp_path), Fragile(2))
    assert notes(error)[-1].startswith("This is not the failure on record")


def test_a_run_that_ends_before_is_refused(tmp_path):
    class Impatient(Fragile):
        def should_training_stop(self):
            return True

    fit(tmp_path, Fragile(5))
    error = again(recorded(tmp_path), Impatient())
    assert isinstance(error, ResumeError)
    assert "ended after micro-batch 1" in str(error)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (lambda: Data(Augmented(20)), "has 4 batches, and one has 7 now"),
        (lambda: Data(shuffle=False), r"of the samples \[.*\], and is of \[3, 4, 5\] now"),
        (lambda: helios.data.from_datasets(train=Augmented(SAMPLES), batch_size=BATCH), "validat"),
    ],
)
def test_other_data_are_refused(tmp_path, data, match):
    fit(tmp_path, Fragile(6))
    error = again(recorded(tmp_path, 6), Fragile(6), data())
    assert isinstance(error, ResumeError)
    assert re.search(match, str(error))


def test_another_model_is_refused(tmp_path):
    fit(tmp_path, Fragile())
    error = again(recorded(tmp_path), Noisy("other"))
    assert isinstance(error, ResumeError)
    assert "'fragile'" in str(error)


def test_a_model_of_other_shapes_is_refused(tmp_path):
    class Wider(Fragile):
        def setup(self, fast_init=False):
            super().setup()
            self.net[4] = torch.nn.Linear(8, 3)

    fit(tmp_path, Fragile(), chkpt_frequency=1)
    assert isinstance(again(recorded(tmp_path), Wider()), ResumeError)


def test_a_checkpoint_that_is_gone_is_named(tmp_path):
    fit(tmp_path, Fragile(), chkpt_frequency=1)
    (tmp_path / "fragile" / "fragile_epoch_1_iter_4.pth").unlink()
    error = again(recorded(tmp_path), Fragile())
    assert isinstance(error, CheckpointError)
    assert "fragile_epoch_1_iter_4.pth" in str(error)


def test_a_record_that_is_not_there_is_named(tmp_path):
    error = again(tmp_path / "micro_9.json", Fragile())
    assert isinstance(error, CheckpointError)
    assert "micro_9.json" in str(error)


def crash(**changed) -> Crash:
    values = {
        "schema": 1,
        "version": helios.__version__,
        "save_name": "fragile",
        "checkpoint": "fragile_epoch_1_iter_4.pth",
        "seed": 5,
        "epoch": 2,
        "index": 0,
        "micro_batch": 5,
        "update": 5,
        "indices": [1, 2],
        "unit": "iteration",
        "plan": Plan(unit=TrainingUnit.ITERATION, total_steps=9, batches_per_epoch=4),
        "stage": "step",
        "error": "ValueError",
        "message": "no",
        "traceback": "",
        "fingerprint": {"device": "cpu"},
    }
    return Crash(**{**values, **changed})


def test_a_record_is_read_as_it_was_written():
    assert decode(encode(crash()), "micro_5.json") == crash()


def test_any_other_byte_is_refused():
    data = encode(crash())
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(CorruptCheckpointError):
            decode(bytes(changed), "micro_5.json")
    for end in range(len(data)):
        with pytest.raises(CorruptCheckpointError):
            decode(data[:end], "micro_5.json")


def signed(body: bytes) -> bytes:
    return seal(body, crashes._TAIL)


def test_unknown_fields_are_refused():
    body = unseal(encode(crash()), crashes._TAIL)
    assert decode(signed(body), "micro_5.json") == crash()
    with pytest.raises(CorruptCheckpointError, match="more"):
        decode(signed(body + b',\n  "more": 1'), "micro_5.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"checkpoint": "../fragile_epoch_1_iter_4.pth"},
        {"checkpoint": "/tmp/fragile_epoch_1_iter_4.pth"},
        {"checkpoint": "fragile_epoch_1_iter_4.json"},
        {"checkpoint": "weights.pth"},
        {"micro_batch": 0},
        {"epoch": 0},
        {"update": 0},
        {"schema": 0},
        {"index": -1},
        {"unit": "epoch"},
        {"unit": "sample"},
        {"stage": "lunch"},
        {"seed": "5"},
        {"seed": True},
        {"indices": [1.5]},
    ],
)
def test_what_cannot_be_is_refused_even_if_it_is_signed(changed):
    with pytest.raises(CorruptCheckpointError):
        decode(encode(crash(**changed)), "micro_5.json")


def test_a_newer_record_asks_for_a_newer_helios():
    newer = encode(crash(schema=2, version="9.0", stage="something new"))
    with pytest.raises(CheckpointVersionError, match=r"helios 9\.0 wrote it"):
        decode(newer, "micro_5.json")


def test_a_checkpoint_of_another_place_is_refused(tmp_path):
    fit(tmp_path, Fragile(), chkpt_frequency=1)
    path = recorded(tmp_path)
    earlier = msgspec.structs.replace(read_crash(path), micro_batch=4)
    other = write_crash(earlier, tmp_path / "fragile")
    error = again(other, Fragile())
    assert isinstance(error, CheckpointError)
    assert "after micro-batch 4" in str(error)


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "replace"])
def test_a_record_that_fails_half_way_leaves_nothing(tmp_path, operation):
    class Failing(OsFs):
        pass

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    setattr(Failing, operation, fail)
    with pytest.raises(OSError, match="No space"):
        write_crash(crash(), tmp_path, Failing())
    assert list((tmp_path / "crashes").iterdir()) == []


def test_what_a_process_that_died_has_left_is_no_record(tmp_path):
    (tmp_path / "crashes").mkdir()
    (tmp_path / "crashes" / ".micro_5.json.tmp").write_bytes(b"half")
    path = write_crash(crash(), tmp_path)
    assert os.listdir(path.parent) == ["micro_5.json"]
    assert read_crash(path) == crash()


def test_a_record_that_is_a_link_is_refused(tmp_path):
    write_crash(crash(), tmp_path)
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "crashes" / "micro_5.json")
    with pytest.raises(CheckpointError):
        read_crash(link)


PLAN = Plan(unit=TrainingUnit.ITERATION, batches_per_epoch=4, accumulation_steps=2)


@pytest.mark.parametrize(
    ("batch", "state", "index"),
    [
        # It is found two updates later, while another micro-batch is under way.
        (Batch(2, 3, 8, True, True), TrainingState(8, 8, 2), 1),
        # It is found before a checkpoint in the epoch, and at its end.
        (None, TrainingState(4, 7, 2, dataset_iter=3), 1),
        (None, TrainingState(4, 8, 2), 1),
        # It is of an epoch before: which batch that was is not known.
        (Batch(3, 0, 9, False, False), TrainingState(4, 9, 3), None),
    ],
)
def test_an_update_that_was_found_bad_late_is_located_where_it_was(batch, state, index):
    error = NonFiniteError("", update=3, global_iteration=6, epoch=2)
    place = locate(error, batch, "batch_end", state, PLAN)
    assert msgspec.structs.astuple(place) == (2, index, 6, 3, "step")
