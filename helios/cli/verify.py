"""``helios verify``: whether the checkpoints of a run are those that were committed."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from helios.cli import recompute
from helios.cli.again import add_script
from helios.cli.command import add_command, add_json
from helios.cli.output import (
    GOOD,
    USAGE,
    WRONG,
    complain,
    counted,
    in_bytes,
    printable,
    say,
    say_json,
)
from helios.cli.survey import VALID, Surveyed, at, nothing_there, survey
from helios.errors import CheckpointError
from helios.trainer.store.fs import OsFs

_EXAMPLES = """\
examples:
  helios verify runs/digits
  helios verify runs/digits --json
  helios verify runs/digits --recompute --script train.py --lr 0.1

Every byte of every checkpoint is read, those of sharded ones too, and none is parsed. A digest
tells that nothing has changed since it was written, not who wrote it. With --recompute the run is
computed again from its first checkpoint to its last instead, and the states are compared; the
program is started as it was, ends where the fit would begin, and prints to standard error.

"""


def add(commands: Any) -> None:
    """Add the command to the parsers."""
    parser = add_command(
        commands,
        "verify",
        run,
        brief="compare the checkpoints of a run with their digests",
        full="Compare the checkpoints of a run with the digests in their manifests, a line "
        "for each.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "folder", metavar="RUN", type=Path, help="a folder of checkpoints: <chkpt_root>/<save_name>"
    )
    add_json(parser)
    parser.add_argument(
        "--recompute", action="store_true", help="compute the run again, and compare its states"
    )
    add_script(parser)


def run(given: argparse.Namespace) -> int:
    """Verify a run's checkpoints, and return the exit status."""
    if given.recompute:
        return recompute.run(given)
    folder: Path = given.folder
    problem = at(folder)
    if problem is None and given.script is not None:
        problem = "received --script without --recompute; expected both, or neither"
    if problem is None and not folder.is_dir():
        problem = (
            f"{str(folder)!r} is a file; expected a folder of checkpoints. For one of them, use "
            "helios inspect"
        )
    if problem is not None:
        return complain("verify", problem, USAGE)
    found = []
    try:
        for one in survey(OsFs(), folder):
            found.append(one)
            if not given.json:
                say([line(one)])
                sys.stdout.flush()  # the next one may take its time
    except CheckpointError as error:
        return complain("verify", str(error), USAGE)
    if not found:
        return complain("verify", nothing_there(folder), USAGE)
    if given.json:
        say_json({"folder": printable(str(folder)), "checkpoints": found})
    else:
        say([summary(found)])
    return GOOD if all(one.status == VALID for one in found) else WRONG


def line(one: Surveyed) -> str:
    """Return the line for a checkpoint."""
    size = "" if one.size is None else f"  {in_bytes(one.size)}"
    pin = "  pinned" if one.pinned else ""
    problem = "" if one.problem is None else f"  {one.problem}"
    return f"{one.status:<11}  {one.file}{size}{pin}{problem}".replace("\n", " ")


def summary(found: list[Surveyed]) -> str:
    """Return how many there are of which kind."""
    kinds = Counter(one.status for one in found)
    parts = ", ".join(f"{count} {status}" for status, count in kinds.items())
    return f"{counted(len(found), 'checkpoint')}: {parts}"
