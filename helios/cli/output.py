"""What the commands print: lines for people, or one JSON document, and errors on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

import msgspec

GOOD, WRONG, USAGE = 0, 1, 2
"""The exit statuses: all is well; what was looked at is not; it could not be looked at."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as a shell has it."""

STATUSES = """\
exit status:
  0  all is well
  1  something is wrong with what was looked at
  2  it was called wrongly, or there is nothing to look at
"""


def say(lines: Iterable[str]) -> None:
    """Print lines; what a terminal would take for a command is escaped."""
    for line in lines:
        _write(sys.stdout, f"{printable(line)}\n")


def say_json(document: Any) -> None:
    """Print a JSON document, indented."""
    data = msgspec.json.format(msgspec.json.encode(document), indent=2)
    _write(sys.stdout, f"{data.decode()}\n")


def complain(command: str, message: str, status: int) -> int:
    """Print what is wrong on standard error, and return the exit status."""
    lines = "\n".join(printable(line) for line in message.splitlines())
    _write(sys.stderr, f"helios {command}: {lines}\n")
    return status


def _write(stream: TextIO, text: str) -> None:
    """Write a text, escaping what the encoding of the stream does not have."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def printable(line: str) -> str:
    r"""Escape what is no printable character: names in a checkpoint may be anybody's.

    Example:
        >>> print(printable("net\x1b[2J.weight"))
        net\x1b[2J.weight
    """
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def table(rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Return rows with their columns below each other.

    Example:
        >>> table([["weight", "float32[2]"], ["b", "int64[]"]])
        ['  weight  float32[2]', '  b       int64[]']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        indent + "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def in_bytes(count: int) -> str:
    """Return a number of bytes for people.

    Example:
        >>> in_bytes(900), in_bytes(5 << 20)
        ('900 B', '5.0 MiB')
    """
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def counted(count: int, noun: str) -> str:
    """Return a number with its noun.

    Example:
        >>> counted(1, "batch"), counted(2000, "update")
        ('1 batch', '2,000 updates')
    """
    return f"{count:,} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the plural of a noun.

    Example:
        >>> plural("micro-batch"), plural("epoch")
        ('micro-batches', 'epochs')
    """
    return f"{noun}es" if noun.endswith("batch") else f"{noun}s"
