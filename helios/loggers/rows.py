"""A text file of rows, one for each update, that a run which is computed again cuts back."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path


class RowFile:
    """The file below a log of rows. Every row is in it as soon as it is written.

    The last row may be written again: one system call puts the new one in its place, so a process
    that is killed leaves the old row or the new one.

    Args:
        path: the file; its folder is created if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._end = 0
        self._last = 0

    def read(self) -> list[str]:
        """Return the lines that are whole, without their ends; none if there is no file."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [line for line in text.split("\n")[:-1] if line]

    def begin(self, lines: Iterable[str]) -> None:
        """Let the file hold these lines and nothing else; the last of them may be written again.

        Args:
            lines: the lines, without their ends.

        Raises:
            OSError: if the file cannot be written; it is then as it was.
        """
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{line}\n".encode() for line in lines]
        content = b"".join(rows)
        beside = self.path.with_name(f".{self.path.name}.new")
        file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            _write(file, content, 0)
            os.fsync(file)
            os.replace(beside, self.path)
        except BaseException:
            os.close(file)
            raise
        self._file, self._end = file, len(content)
        self._last = len(content) - (len(rows[-1]) if rows else 0)

    def append(self, line: str) -> None:
        """Write a row after all others."""
        self._last = self._end
        self.replace_last(line)

    def replace_last(self, line: str) -> None:
        """Write a row in the place of the last one."""
        if self._file is None:
            return
        row = f"{line}\n".encode()
        end = self._last + len(row)
        _write(self._file, row, self._last)
        if end < self._end:
            os.ftruncate(self._file, end)
        self._end = end

    def flush(self) -> None:
        """Bring all rows to the disk."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def move_away(path: Path) -> None:
    """Give the file of an earlier run another name, so that a new one overwrites nothing.

    Args:
        path: the file, which need not be there. ``log.csv`` becomes ``log.1.csv``, or the first
            number that is free.
    """
    if not path.exists():
        return
    for number in itertools.count(1):
        other = path.with_name(f"{path.stem}.{number}{path.suffix}")
        if not other.exists():
            path.rename(other)
            return


def _write(file: int, content: bytes, at: int) -> None:
    while content:
        written = os.pwrite(file, content, at)
        content, at = content[written:], at + written
