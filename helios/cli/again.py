"""What the commands that run a program again have in common."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from helios.cli.survey import at, nothing_there
from helios.errors import CheckpointError, HeliosError
from helios.trainer.store.fs import OsFs
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.reading import committed


class UnusableError(Exception):
    """A command cannot do what it was asked for; the message says why."""


def add_script(parser: argparse.ArgumentParser) -> None:
    """Add how the run was started: the last argument, since all that follows is the program's."""
    parser.add_argument(
        "--script",
        nargs=argparse.REMAINDER,
        metavar="PROGRAM",
        help="how the run was started: a script, or -m and a module, and all its arguments; "
        "the last option",
    )


def program_of(given: argparse.Namespace) -> list[str]:
    """Return how the run was started.

    Raises:
        UnusableError: if that was not given.
    """
    program: list[str] = given.script or []
    if not program:
        raise UnusableError(
            "received no --script, and a run does not record how it was started; give the program "
            "and its arguments as the last option: --script train.py --lr 0.1"
        )
    return program


def manifests(folder: Path) -> list[Manifest]:
    """Return the manifests of the checkpoints of a run, the oldest first.

    Raises:
        UnusableError: if there is no such folder, or none in it.
    """
    problem = at(folder)
    if problem is None and not folder.is_dir():
        problem = f"{str(folder)!r} is a file; expected the folder of a run's checkpoints"
    if problem is not None:
        raise UnusableError(problem)
    try:
        entries = committed(OsFs(), folder, folder.resolve().name)
    except OSError as error:
        raise UnusableError(f"cannot read {str(folder)!r}: {error.strerror or error}") from error
    found = [entry.manifest for entry in reversed(entries) if entry.manifest is not None]
    if not found:
        raise UnusableError(nothing_there(folder))
    return found


@contextlib.contextmanager
def output_aside() -> Any:
    """Let what a program prints go to standard error: standard output is the command's."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def run_program(folder: Path, program: Sequence[str], act: Callable[[Any, Any, Any], None]) -> None:
    """Start a program, and do something in the place of its fit into a folder.

    Raises:
        UnusableError: if it does not come to that, or fails before or in it.
    """
    # It takes a moment, and the other commands need none of it.
    from helios.trainer.program import at_fit_of

    try:
        with output_aside():
            problem = at_fit_of(folder, program, act)
    except HeliosError as error:
        raise UnusableError(str(error)) from error
    if problem is not None:
        raise UnusableError(problem)


class Update(msgspec.Struct, frozen=True):
    """What is shown of a recorded update; floats that are no numbers are None."""

    update: int
    loss: float | None
    norm: float | None
    batches: int
    indices: str | None
    skipped: bool


def shown_update(entry: Any) -> Update:
    """Return what is shown of a record."""
    return Update(
        entry.update,
        entry.loss if entry.loss == entry.loss else None,
        entry.norm if entry.norm == entry.norm else None,
        entry.batches,
        entry.indices.hex() if entry.indices_known else None,
        entry.skipped,
    )


def flight_of(folder: Path) -> Any:
    """Return the flight record of a run, None if it has none.

    Raises:
        UnusableError: if it cannot be read.
    """
    from helios.trainer.flight import flight_record
    from helios.trainer.flight.record import NAME

    if not (folder / NAME).exists():
        return None
    try:
        return flight_record(folder)
    except CheckpointError as error:
        raise UnusableError(str(error)) from error
