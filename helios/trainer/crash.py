"""What a failing micro-batch leaves behind: a file from which that very step is run again.

It is ``<chkpt_root>/<save_name>/crashes/micro_<global_iteration>.json``. It names the checkpoint to
begin at, which is pinned, and the place of the failure; `helios.reproduce` does the rest. Nothing
of the environment and of the command line is in it. Its last field is a digest of all before it.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from helios.data import EpochSource
from helios.errors import (
    CheckpointError,
    CorruptCheckpointError,
    NonFiniteError,
)
from helios.functional.plan import Plan
from helios.functional.schedule import Batch
from helios.functional.state import TrainingState, TrainingUnit
from helios.trainer.command import how_to_run_again
from helios.trainer.store.fs import Fs, OsFs, read_all, write_file
from helios.trainer.store.names import is_stem
from helios.trainer.store.pins import pin_checkpoint
from helios.trainer.store.sealed import parse, seal
from helios.version import __version__

if TYPE_CHECKING:
    from helios.trainer.loop import Loop
    from helios.trainer.store import Store

SCHEMA = 1
"""The version of the format; higher ones are refused."""

FOLDER = "crashes"
"""The folder of these files, beside the checkpoints."""

LIMIT = 1 << 24
"""Bytes that a file may have; one has some five thousand."""

_MOST_INDICES = 1 << 20
_MOST_TEXT = 1 << 16  # characters; of a traceback, the last ones
_TAIL = b',\n  "check": "%s"\n}\n'

Stage = Literal["fetch", "batch_start", "step", "batch_end"]
"""The parts of a micro-batch: its data, the hooks before the step, the step, the hooks after it."""


class Crash(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A micro-batch that failed.

    Args:
        schema: the version of the format.
        version: the version of helios that wrote it.
        save_name: the model's name.
        checkpoint: the file name of the checkpoint to begin at, None for the start of the run.
        seed: the seed of the run.
        epoch: counted from 1.
        index: the micro-batch in its epoch, counted from 0; None if it is not known.
        micro_batch: the micro-batch in the run, counted from 1: its ``global_iteration``.
        update: the update that it is a part of, counted from 1.
        indices: the indices of its samples, None where the loader does not tell.
        unit: the unit of the plan, for readers: ``"iteration"`` or ``"epoch"``.
        plan: the calendar of the run.
        stage: what was under way.
        error: the type of the exception, with its module.
        message: its text.
        traceback: as Python prints it; of a very long one, the end.
        fingerprint: what the bits of the run depend on beside the state.
    """

    schema: int
    version: str
    save_name: str
    checkpoint: str | None
    seed: int
    epoch: int
    index: int | None
    micro_batch: int
    update: int
    indices: list[int] | None
    unit: Literal["iteration", "epoch"]
    plan: Plan
    stage: Stage
    error: str
    message: str
    traceback: str
    fingerprint: dict[str, str | int | bool]


class Place(msgspec.Struct, frozen=True):
    """Where in a run a failure belongs; see `Crash`."""

    epoch: int
    index: int | None
    micro_batch: int
    update: int
    stage: Stage


def record_crash(
    failure: BaseException,
    loop: Loop,
    store: Store | None,
    train: EpochSource,
    plan: Plan,
    fingerprint: Mapping[str, str | int | bool],
) -> None:
    """Record the micro-batch that an exception came from, and say in it how to run that again.

    Does nothing for an exception that came from elsewhere, without a store, and for those that
    are no errors, such as ``KeyboardInterrupt``. What goes wrong here becomes a note of the
    exception.

    Args:
        failure: the exception.
        loop: where it came from; what could be saved after it is saved.
        store: where the checkpoints are.
        train: the training batches.
        plan: the calendar.
        fingerprint: the environment.
    """
    if store is None or not isinstance(failure, Exception):
        return
    place = locate(failure, loop.batch, loop.stage, loop.state, plan)
    if place is None:
        return
    try:
        if store.newest is not None:
            pin_checkpoint(store.folder / store.newest)
        crash = Crash(
            schema=SCHEMA,
            version=__version__,
            save_name=store.save_name,
            checkpoint=store.newest,
            seed=loop.state.seed,
            **msgspec.structs.asdict(place),
            indices=_indices(train, place),
            unit="iteration" if plan.unit is TrainingUnit.ITERATION else "epoch",
            plan=plan,
            error=type_name(failure),
            message=_text_of(failure),
            traceback=_clean("".join(traceback.format_exception(failure))[-_MOST_TEXT:]),
            fingerprint=dict(fingerprint),
        )
        failure.add_note(how_to_run_again(write_crash(crash, store.folder)))
    except Exception as error:
        failure.add_note(f"the failing step could not be recorded: {error}")


def locate(
    failure: Exception, batch: Batch | None, stage: Stage, state: TrainingState, plan: Plan
) -> Place | None:
    """Return which micro-batch an exception came from, None if from none.

    Args:
        failure: the exception; one of an update that was not finite may be about an earlier
            micro-batch, since on a GPU nobody waits for the answer.
        batch: the micro-batch that was under way, None if none was.
        stage: what of it was under way.
        state: the state then.
        plan: the calendar.
    """
    if isinstance(failure, NonFiniteError) and failure.global_iteration > 0:
        size = plan.batches_per_epoch
        if batch is not None:
            epoch, last, done = batch.epoch, batch.index, batch.iteration
        else:
            after = state.dataset_iter or size  # at an epoch's end it is 0 already
            epoch, done = state.global_epoch, state.global_iteration
            last = -1 if after is None else after - 1
        index = last - (done - failure.global_iteration)
        known = failure.epoch == epoch and index >= 0
        number = failure.global_iteration
        return Place(failure.epoch, index if known else None, number, failure.update, "step")
    if batch is None:
        return None
    counted = stage != "fetch" and batch.update
    update = state.current_iteration + (0 if counted else 1)
    return Place(batch.epoch, batch.index, batch.iteration, update, stage)


def encode(crash: Crash) -> bytes:
    """Return the bytes of a file: one JSON object, a line for each field.

    Law:
        ``decode(encode(c), name) == c``, and any other bytes raise
        (``tests/trainer/test_crash.py``).
    """
    values = ((name, getattr(crash, name)) for name in Crash.__struct_fields__)
    lines = [b'  "%s": %s' % (name.encode(), msgspec.json.encode(v)) for name, v in values]
    return seal(b"{\n" + b",\n".join(lines), _TAIL)


def decode(data: bytes, name: str) -> Crash:
    """Read the bytes of a file.

    Args:
        data: the bytes.
        name: the name of the file, for errors.

    Raises:
        CorruptCheckpointError: if they are not what `encode` returned.
        CheckpointVersionError: if a newer helios wrote them.
    """
    crash = parse(data, _TAIL, Crash, SCHEMA, name, lambda reason: _corrupt(name, reason))
    problem = "it is not in the form in which helios writes it"
    if encode(crash) != data or (problem := _problem(crash)):
        raise _corrupt(name, problem)
    return crash


def read_crash(path: Path, fs: Fs | None = None) -> Crash:
    """Read the file of a failed micro-batch.

    Args:
        path: the file.
        fs: (optional) the disk.

    Raises:
        CheckpointError: if it is not there, or cannot be read.
        CorruptCheckpointError: if its bytes are not what was written.
        CheckpointVersionError: if a newer helios wrote it.
    """
    try:
        with (OsFs() if fs is None else fs).open(path) as file:
            data = read_all(file, LIMIT + 1)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {str(path)!r}: {error.strerror or error}. Give the file that the failed "
            f"run names, <chkpt_root>/<save_name>/{FOLDER}/micro_<number>.json."
        ) from error
    return decode(data, path.name)


def write_crash(crash: Crash, folder: Path, fs: Fs | None = None) -> Path:
    """Write the file of a failed micro-batch; it is there whole or not at all.

    Args:
        crash: what to write.
        folder: the folder of the run's checkpoints.
        fs: (optional) the disk.

    Returns:
        Where it is. A name that is taken is not used again.

    Raises:
        OSError: if it cannot be written.
    """
    fs = OsFs() if fs is None else fs
    crashes = folder / FOLDER
    with contextlib.suppress(FileExistsError):
        fs.mkdir(crashes)
    fs.fsync_dir(folder)
    stem = free = f"micro_{crash.micro_batch}"
    names, number = set(fs.listdir(crashes)), 1
    while f"{free}.json" in names:
        number += 1
        free = f"{stem}_{number}"
    path, temporary = crashes / f"{free}.json", crashes / f".{free}.json.tmp"
    try:
        with contextlib.suppress(FileNotFoundError):  # of a process that died here
            fs.unlink(temporary)
        write_file(fs, temporary, encode(crash))
        fs.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            fs.unlink(temporary)
        raise
    fs.fsync_dir(crashes)
    return path


def type_name(error: BaseException) -> str:
    """Return the type of an exception as it is recorded.

    Example:
        >>> type_name(ValueError()), type_name(CheckpointError())
        ('ValueError', 'helios.errors.CheckpointError')
    """
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"


def _problem(crash: Crash) -> str:
    """Return what of a file cannot be, empty if nothing."""
    if min(crash.schema, crash.epoch, crash.micro_batch, crash.update) < 1:
        return "a number of it is less than 1"
    if crash.index is not None and crash.index < 0:
        return "its index is negative"
    if crash.unit != crash.plan.unit.name.lower():
        return f"its unit is {crash.unit!r}, and that of its plan is another"
    name = crash.checkpoint
    # It is joined to a folder: it must not lead out of it.
    if name is not None and not (
        name.endswith(".pth") and is_stem(name.removesuffix(".pth"), crash.save_name)
    ):
        return f"{name!r} is not the name of a checkpoint"
    return ""


def _indices(train: EpochSource, place: Place) -> list[int] | None:
    if place.index is None:
        return None
    try:
        indices = train.indices(place.epoch - 1, place.index)
    except Exception:  # a sampler of the user's, which may be what failed
        return None
    return indices if indices is not None and len(indices) <= _MOST_INDICES else None


def _text_of(error: BaseException) -> str:
    try:
        return _clean(str(error)[:_MOST_TEXT])
    except Exception:  # as Python does where it prints one
        return "<exception str() failed>"


def _clean(text: str) -> str:
    """Escape what is not Unicode: half characters, as names of files may have them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _corrupt(name: str, reason: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{name!r} cannot be read as the record of a failed step: {reason}. It was cut short, "
        "changed, or written by something else."
    )
