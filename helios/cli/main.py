"""The entry of the command line: the arguments, and which command gets them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from helios.cli import diff, export, inspect, plan, replay, verify
from helios.cli.output import GOOD, INTERRUPTED, STATUSES
from helios.version import __version__

COMMANDS = (inspect, plan, verify, diff, replay, export)
"""Modules with ``add(commands)``, which gives the parser a ``run(arguments) -> int``."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return the exit status.

    Args:
        arguments: what follows the name of the program; that of this process by default.

    Raises:
        SystemExit: with 2 if the arguments are wrong, with 0 after ``--help``.
    """
    given = parser().parse_args(arguments)
    try:
        status: int = given.run(given)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write("helios: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads the output has had enough of it: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    return status


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    whole = argparse.ArgumentParser(
        prog="helios",
        description="Look at runs and checkpoints of helios. No run is changed.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"helios {__version__}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return whole
