"""A log that any spreadsheet reads: a column for each number, a row for each update."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path

from helios.loggers.rows import RowFile, move_away
from helios.loggers.run_log import Run, RunLog

_FIRST = ("update", "epoch", "time")


class CSVLog(RunLog):
    """Writes the numbers of a run to a CSV file.

    There is one row for each update at which something was reported. It begins with the update,
    the epoch and the time in seconds since 1970; what was not reported there is empty. When a
    number appears for the first time, the file is written anew, whole, with one column more.

    A resumed run goes on in its file, without the rows of updates that are computed again. A new
    run moves the file of an earlier one away: ``log.csv`` becomes ``log.1.csv``.

    Args:
        path: the file; a relative one is taken from the present folder, now.

    Raises:
        TypeError: if the path is something else.

    Law:
        The file of a run that was killed and resumed is that of the uninterrupted run, but for
        what a clock tells: the column ``time`` and those under ``speed/``
        (``tests/loggers/test_resumed_logs.py``).

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> log = CSVLog(folder / "log.csv")
        >>> log.open(Run("digits"))
        >>> log.scalars(10, 1, {"train/loss": 0.5})
        >>> log.close()
        >>> (folder / "log.csv").read_text().splitlines()[0]
        'update,epoch,time,train/loss'
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._rows = RowFile(checked_path("CSVLog", path))
        self._columns: list[str] = list(_FIRST)
        self._row: dict[str, str] = {}

    def open(self, run: Run) -> None:
        """Begin, or go on; see `RunLog.open`."""
        self._columns, self._row = list(_FIRST), {}
        if run.resumed_from is None and not run.is_test:
            move_away(self._rows.path)
        rows = self._read(run.resumed_from)
        self._columns += [
            name
            for name in dict.fromkeys(name for row in rows for name in row)
            if name not in _FIRST
        ]
        self._rows.begin([_line(self._columns), *map(self._written, rows)])
        if rows:
            self._row = rows[-1]

    def scalars(self, update: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write numbers; see `RunLog.scalars`."""
        number = str(update)
        goes_on = self._row.get("update") == number
        given = {name: f"{value!r}" for name, value in values.items()}
        row = {**self._row, **given} if goes_on else {"update": number, **given}
        row |= {"epoch": str(epoch), "time": f"{time.time():.3f}"}
        new = [name for name in given if name not in self._columns]
        if new:
            lines = self._read(None)
            self._columns += new
            rows = [*(lines[:-1] if goes_on else lines), row]
            self._rows.begin([_line(self._columns), *map(self._written, rows)])
        elif goes_on:
            self._rows.replace_last(self._written(row))
        else:
            self._rows.append(self._written(row))
        self._row = row

    def flush(self) -> None:
        """Bring all rows to the disk."""
        self._rows.flush()

    def close(self) -> None:
        """Close the file."""
        self._rows.close()

    def _written(self, row: Mapping[str, str]) -> str:
        return _line([row.get(name, "") for name in self._columns])

    def _read(self, until: int | None) -> list[dict[str, str]]:
        """Return the rows up to an update; None for all. The columns stand in their order."""
        lines = list(csv.reader(self._rows.read()))
        if not lines or lines[0][: len(_FIRST)] != list(_FIRST):
            return []
        header = lines[0]
        rows = []
        for cells in lines[1:]:
            if len(cells) != len(header) or not cells[0].isdecimal():
                continue
            if until is None or int(cells[0]) <= until:
                rows.append({n: c for n, c in zip(header, cells, strict=True) if c})
        known = {name for row in rows for name in row}
        # In the order of the header: a row need not name its columns in it.
        return [{n: row[n] for n in header if n in row} for row in rows] if known else rows


def checked_path(owner: str, path: object) -> Path:
    """Return an absolute path.

    Raises:
        TypeError: if it is no path.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{owner}: received {path!r}; expected the path of a file")
    return Path(path).expanduser().absolute()


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()
