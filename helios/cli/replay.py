"""``helios replay``: the state after an update of a run, computed again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from helios.cli.again import (
    UnusableError,
    Update,
    add_script,
    flight_of,
    manifests,
    program_of,
    run_program,
    shown_update,
)
from helios.cli.command import add_command, add_json
from helios.cli.output import GOOD, USAGE, WRONG, complain, say, say_json, table
from helios.errors import CheckpointError
from helios.functional.tree import digest
from helios.trainer.store.manifest import Manifest

_EXAMPLES = """\
examples:
  helios replay runs/digits --step 120 --script train.py --lr 0.1
  helios replay runs/digits --step 120 --output state.bin --script -m project.train

The program is started as it was, and ends where the fit would begin; what it prints goes to
standard error. The run goes forward from its last checkpoint before the update, and nothing is
written into it. What comes out is compared with the flight record, and with a checkpoint at that
update, as far as there are any.

"""


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A state that was computed again.

    Args:
        run: the folder of the run.
        begun_at: the checkpoint that it was computed from, None for the start of the run.
        counters: of the state.
        digest: of the state.
        update: what its update was made of.
        record: what the flight record says of it: ``same``, what differs, or None without one.
        checkpoint: the checkpoint at this update, None without one.
        same_state: whether its digest is that of the checkpoint, None without one.
        notes: what else is to be known.
    """

    run: str
    begun_at: str | None
    counters: dict[str, Any]
    digest: str
    update: Update | None
    record: list[str] | None
    checkpoint: str | None
    same_state: bool | None
    notes: list[str]


def add(commands: Any) -> None:
    """Add the command to the parsers."""
    parser = add_command(
        commands,
        "replay",
        run,
        brief="compute the state after an update of a run again",
        full="Compute the state after an update of a run again, from its last checkpoint before.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "folder", metavar="RUN", type=Path, help="a folder of checkpoints: <chkpt_root>/<save_name>"
    )
    parser.add_argument("--step", type=int, required=True, help="the update, counted from 1")
    parser.add_argument("--output", type=Path, help="write the state there, as to_bytes() gives it")
    add_json(parser)
    add_script(parser)


def run(given: argparse.Namespace) -> int:
    """Replay a run up to an update, and return the exit status."""
    try:
        if given.step < 1:
            raise UnusableError(f"--step: received {given.step}; expected an update, from 1 on")
        program = program_of(given)
        if given.output is not None and given.output.exists():
            raise UnusableError(f"--output: {str(given.output)!r} is there already")
        state, shown = replayed(given.folder, given.step, program)
    except (UnusableError, CheckpointError) as error:
        return complain("replay", str(error), USAGE)
    if given.output is not None:
        try:
            given.output.write_bytes(state.to_bytes())
        except OSError as error:
            return complain("replay", f"--output: {error.strerror or error}", USAGE)
    if given.json:
        say_json(shown)
    else:
        say(described(shown))
    return WRONG if shown.record or shown.same_state is False else GOOD


def replayed(folder: Path, step: int, program: list[str]) -> tuple[Any, Replayed]:
    """Return the state after an update, and what is to be said of it.

    Args:
        folder: the folder of the run.
        step: the update.
        program: how the run was started.

    Raises:
        UnusableError: if it cannot be computed.
        CheckpointError: if a checkpoint cannot be read.
    """
    found = manifests(folder)
    begin = before(found, step)
    from helios.trainer.flight import what_differs

    flight = flight_of(folder)
    notes: list[str] = []
    after: list[Any] = []

    def act(trainer: Any, model: Any, datamodule: Any) -> None:
        from helios.trainer.again import states_again
        from helios.trainer.store import read_checkpoint

        content = None if begin is None else read_checkpoint(folder / begin.file)
        states = states_again(trainer, model, datamodule, content, seed=found[0].seed, note=notes)
        for state, entry in states:
            if state.current_iteration >= step:
                after.append((state, entry))
                return

    run_program(folder, program, act)
    if not after or after[0][0].current_iteration != step:
        raise UnusableError(f"--step: the run does not come to update {step}")
    state, entry = after[0]
    record, checkpoint, same = None, None, None
    if flight is not None and entry is not None and flight.first <= step <= flight.last:
        record = what_differs(entry, flight.at(step))
    # These take a moment to import, and the other commands need none of them.
    from helios.trainer.replay import recorded_digest

    for manifest in found:
        if manifest.counters["current_iteration"] == step:
            known = recorded_digest(folder / manifest.file)
            if known is not None:
                checkpoint, same = manifest.file, digest(state) == known[1]
    return state, Replayed(
        run=str(folder),
        begun_at=None if begin is None else begin.file,
        counters=state.dict(),
        digest=digest(state),
        update=None if entry is None else shown_update(entry),
        record=record,
        checkpoint=checkpoint,
        same_state=same,
        notes=notes,
    )


def before(found: list[Manifest], step: int) -> Manifest | None:
    """Return the last checkpoint before an update, None for the start of the run."""
    earlier = [m for m in found if m.counters["current_iteration"] < step]
    return earlier[-1] if earlier else None


def described(shown: Replayed) -> list[str]:
    """Return the lines for a state."""
    rows = [["begun at", shown.begun_at or "the start of the run"]]
    counters = {n: v for n, v in shown.counters.items() if n != "average_iter_time"}
    rows += [[name, str(value)] for name, value in counters.items()]
    rows.append(["digest", shown.digest])
    if shown.update is not None:
        rows += [["loss", str(shown.update.loss)], ["norm", str(shown.update.norm)]]
    lines = [f"{shown.run}, after update {shown.counters['current_iteration']}", *table(rows)]
    lines += [f"note: {note}" for note in shown.notes]
    if shown.record is not None:
        differing = ", ".join(shown.record)
        lines.append(
            f"flight record: differs in {differing}" if differing else "flight record: the same"
        )
    if shown.checkpoint is not None:
        verdict = "the same bits" if shown.same_state else "another state"
        lines.append(f"{shown.checkpoint}: {verdict}")
    return lines
