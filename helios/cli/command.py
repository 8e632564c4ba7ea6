"""What the parsers of all commands have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from helios.cli.output import STATUSES

Run = Callable[[argparse.Namespace], int]
"""Runs a command, and returns the exit status."""


def add_command(
    commands: Any, name: str, run: Run, *, brief: str, full: str, examples: str
) -> argparse.ArgumentParser:
    """Add a command to the parsers, and return its own.

    Args:
        commands: the parsers of all commands.
        name: what it is called by.
        run: what it does.
        brief: what it does, in the list of all commands.
        full: what it does, in its own help.
        examples: what stands below its arguments.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=brief,
        description=full,
        epilog=examples + STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the flag that all commands have, after their own."""
    parser.add_argument("--json", action="store_true", help="print a JSON document")
