"""``helios verify --recompute``: whether a run comes to its checkpoints again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from helios.cli.again import UnusableError, flight_of, manifests, program_of, run_program
from helios.cli.output import GOOD, USAGE, WRONG, complain, counted, say, say_json
from helios.errors import CheckpointError
from helios.functional.tree import digest


class Recomputed(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was computed again from its first checkpoint.

    Args:
        folder: of the run.
        begun_at: its first checkpoint.
        last: the last update that was computed.
        checkpoints: how many checkpoints were compared.
        records: how many flight records were compared.
        state_differs: the first update whose checkpoint has another state, None if none has.
        record_differs: the first update whose record differs, None if none does.
        what: what of that record differs.
        notes: what else is to be known.
    """

    folder: str
    begun_at: str
    last: int
    checkpoints: int
    records: int
    state_differs: int | None
    record_differs: int | None
    what: list[str]
    notes: list[str]


def run(given: argparse.Namespace) -> int:
    """Compute a run again, and return the exit status."""
    try:
        found = recomputed(given.folder, program_of(given))
    except (UnusableError, CheckpointError) as error:
        return complain("verify", str(error), USAGE)
    if given.json:
        say_json(found)
    else:
        say(described(found))
    return GOOD if found.state_differs is None and found.record_differs is None else WRONG


def recomputed(folder: Path, program: list[str]) -> Recomputed:
    """Compute a run again from its first checkpoint to its last; stop at the first difference.

    Raises:
        UnusableError: if it cannot be computed.
        CheckpointError: if a checkpoint cannot be read.
    """
    from helios.trainer.flight import what_differs
    from helios.trainer.replay import recorded_digests

    first, flight = manifests(folder)[0], flight_of(folder)
    begun = int(first.counters["current_iteration"])
    known = {k: v for k, v in recorded_digests(folder).items() if k > begun}
    if not known:
        raise UnusableError(
            f"{str(folder)!r} has no two checkpoints of different updates: there is nothing to "
            "compute from one to the other"
        )
    last, compared, records = begun, 0, 0
    parted: list[tuple[int | None, int | None, list[str]]] = []
    notes: list[str] = []

    def act(trainer: Any, model: Any, datamodule: Any) -> None:
        nonlocal last, compared, records
        from helios.trainer.again import states_again
        from helios.trainer.store import read_checkpoint

        content = read_checkpoint(folder / first.file)
        states = states_again(trainer, model, datamodule, content, note=notes)
        for state, entry in states:
            last = state.current_iteration
            if flight is not None and entry is not None and flight.first <= last <= flight.last:
                records += 1
                differing = what_differs(entry, flight.at(last))
                if differing:
                    parted.append((None, last, differing))
                    return
            if last in known:
                compared += 1
                if digest(state) != known[last]:
                    parted.append((last, None, []))
                    return
            if last >= max(known):
                return

    run_program(folder, program, act)
    if not parted and last < max(known):
        raise UnusableError(
            f"the run ends after update {last} now, and has a checkpoint of {max(known)}"
        )
    state_differs, record_differs, what = parted[0] if parted else (None, None, [])
    return Recomputed(
        folder=str(folder),
        begun_at=first.file,
        last=last,
        checkpoints=compared,
        records=records,
        state_differs=state_differs,
        record_differs=record_differs,
        what=what,
        notes=notes,
    )


def described(found: Recomputed) -> list[str]:
    """Return the lines for a run."""
    lines = [f"computed again from {found.begun_at} to update {found.last}"]
    lines += [f"note: {note}" for note in found.notes]
    if found.record_differs is not None:
        lines.append(
            f"update {found.record_differs} differs from the flight record in "
            f"{', '.join(found.what)}"
        )
    elif found.state_differs is not None:
        lines.append(f"the checkpoint of update {found.state_differs} has another state")
    else:
        lines.append(f"{counted(found.checkpoints, 'checkpoint')}: the same bits")
        if found.records:
            lines.append(f"{counted(found.records, 'flight record')}: the same")
    return lines
