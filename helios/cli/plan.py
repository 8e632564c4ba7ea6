"""``helios plan``: the calendar of a run, without running it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from helios.cli.command import add_command, add_json
from helios.cli.output import GOOD, USAGE, WRONG, complain, counted, plural, say, say_json
from helios.functional.calendar import Batches, Entry, Totals, ends_of, never, totals
from helios.functional.schedule import Checkpoint, EpochEnd, EpochStart, Plan, Stop, Validate
from helios.functional.state import TrainingUnit

_EXAMPLES = """\
examples:
  helios plan --total-steps 10 --batches-per-epoch 100 --valid-frequency 1
  helios plan --unit iteration --total-steps 5000 --accumulation-steps 4 --chkpt-frequency 1000
  helios plan --unit iteration --valid-frequency 500 --lines 6 --json

The numbers are those of helios.Trainer. Every validation is taken to improve the score. The last
state is saved too, as with a chkpt_root. Status 1 means that an event never happens.

"""
_LARGEST = 2**31 - 1
"""A count; the product of two is then an integer that every reader of JSON takes."""

_COUNTS = {
    "total-steps": "where the run ends, in units; without it, it has no end",
    "batches-per-epoch": "micro-batches in an epoch; without it, only the loader knows",
    "accumulation-steps": "micro-batches to an update; 1 by default",
    "valid-frequency": "units from one validation to the next",
    "chkpt-frequency": "units from one checkpoint to the next",
    "print-frequency": "updates from one log to the next",
    "early-stop-cycles": "validations in a row without improvement that end the run",
}


def add(commands: Any) -> None:
    """Add the command to the parsers."""
    parser = add_command(
        commands,
        "plan",
        run,
        brief="print the calendar of a run, without running it",
        full="Print the calendar of a run, without running it.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--unit",
        choices=[unit.name.lower() for unit in TrainingUnit],
        default="epoch",
        help="what total steps and frequencies count: updates (iteration) or epochs (epoch, the "
        "default)",
    )
    for name, meaning in _COUNTS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=meaning)
    parser.add_argument(
        "--lines", type=int, metavar="N", default=12, help="first and last lines shown; 12"
    )
    add_json(parser)


def run(given: argparse.Namespace) -> int:
    """Print a calendar, and return the exit status."""
    names = [name.replace("-", "_") for name in _COUNTS]
    counts = {n: getattr(given, n) for n in names if getattr(given, n) is not None}
    if given.lines < 1:
        return complain("plan", f"lines: received {given.lines}; expected at least 1", USAGE)
    for name, count in counts.items():
        if count > _LARGEST:
            message = f"{name}: received {count}; expected at most {_LARGEST}"
            return complain("plan", message, USAGE)
    try:
        plan = Plan(unit=TrainingUnit[given.unit.upper()], save_final=True, **counts)
    except ValueError as error:
        return complain("plan", str(error), USAGE)
    warnings, sums, (head, tail) = never(plan), totals(plan), ends_of(plan, given.lines)
    whole = _is_last(plan, head[-1])
    if given.json:
        say_json(
            {
                "plan": {**counts, "unit": given.unit},
                "totals": sums,
                "warnings": warnings,
                "first": head,
                "last": head if whole else tail,
                "whole": whole,
            }
        )
        return WRONG if warnings else GOOD
    say(_totals(plan, sums))
    say(f"warning: {warning}" for warning in warnings)
    say(["", *_lines(plan, head)])
    if not whole:
        say(["  ..."] if tail else ["  ... and so on, without an end"])
        say(_lines(plan, tail))
    return WRONG if warnings else GOOD


def _is_last(plan: Plan, entry: Entry) -> bool:
    """Tell whether nothing comes after a line: a stop, or batches without an end."""
    event = entry.event
    if isinstance(event, Batches):
        return event.last is None and not _only_the_loader_knows(plan)
    return isinstance(event, Stop)


def _only_the_loader_knows(plan: Plan) -> bool:
    return plan.unit is TrainingUnit.EPOCH and plan.batches_per_epoch is None


def _totals(plan: Plan, sums: Totals) -> list[str]:
    unit = "update" if plan.unit is TrainingUnit.ITERATION else "epoch"
    if plan.total_steps is None:
        return ["no total_steps: the run goes on until something stops it"]
    lines = [f"the run ends after {counted(plan.total_steps, unit)}"]
    known = {
        "epoch": sums.epochs,
        "update": sums.updates,
        "micro-batch": sums.micro_batches,
        "validation": sums.validations,
        "checkpoint": sums.checkpoints,
        "log": sums.logs,
    }
    lines += [f"  {counted(n, noun)}" for noun, n in known.items() if n is not None]
    missing = [noun for noun, n in known.items() if n is None]
    if missing:
        names = ", ".join(plural(noun) for noun in missing)
        lines.append(f"  not known without batches_per_epoch: {names}")
    return lines


def _lines(plan: Plan, shown: Sequence[Entry]) -> list[str]:
    return [f"  {_line(plan, entry)}" for entry in shown]


def _line(plan: Plan, entry: Entry) -> str:
    event, at = entry.event, "" if entry.update is None else f", at update {entry.update:,}"
    if isinstance(event, EpochStart):
        if event.first_batch:
            return f"epoch {event.epoch:,} goes on"
        return f"epoch {event.epoch:,} begins"
    if isinstance(event, Batches):
        return "  " + _batches(plan, event)
    if isinstance(event, Validate):
        return f"  validation {event.cycle + 1:,}{at}"
    if isinstance(event, EpochEnd):
        return f"epoch {event.epoch:,} ends{at}"
    if isinstance(event, Checkpoint):
        return f"  checkpoint{'' if event.cadence else ' of the last state'}{at}"
    assert isinstance(event, Stop)
    return f"stop: {event.reason.value}{at}"


def _batches(plan: Plan, event: Batches) -> str:
    if event.last is None:
        if _only_the_loader_knows(plan):
            return "all batches of the epoch"
        return f"batches {event.first:,} and on, without an end"
    assert event.updates is not None
    what = f"batch {event.first:,}"
    if event.last > event.first:
        what = f"batches {event.first:,} to {event.last:,}"
    logs = f", {counted(event.logs, 'log')}" if event.logs else ""
    return f"{what}: {counted(event.updates, 'update')}{logs}"
