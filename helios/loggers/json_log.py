"""A log for programs: a line of JSON for each update."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from typing import Any

from helios.loggers.csv_log import checked_path
from helios.loggers.rows import RowFile, move_away
from helios.loggers.run_log import Run, RunLog


class JSONLog(RunLog):
    """Writes the numbers of a run to a file of JSON lines.

    The first line is ``{"hyperparameters": {...}}``. Then comes an object for each update at which
    something was reported: ``update``, ``epoch``, ``time`` in seconds since 1970, the numbers by
    name, and texts. A number that is not finite is null, since JSON has no other word for it.
    Resumed runs and new ones do as with `CSVLog`.

    Args:
        path: the file; a relative one is taken from the present folder, now.

    Raises:
        TypeError: if the path is something else.

    Law:
        As for `CSVLog` (``tests/loggers/test_resumed_logs.py``).

    Example:
        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "log.jsonl"
        >>> log = JSONLog(path)
        >>> log.open(Run("digits"))
        >>> log.scalars(10, 1, {"train/loss": 0.5})
        >>> log.close()
        >>> json.loads(path.read_text())["train/loss"]
        0.5
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._rows = RowFile(checked_path("JSONLog", path))
        self._row: dict[str, Any] = {}

    def open(self, run: Run) -> None:
        """Begin, or go on; see `RunLog.open`."""
        self._row = {}
        if run.resumed_from is None and not run.is_test:
            move_away(self._rows.path)
        kept = []
        for line in self._rows.read():
            try:
                row = json.loads(line)
                update = row.get("update", -1)
            except (ValueError, AttributeError):  # torn, or not ours
                continue
            if run.resumed_from is None or update <= run.resumed_from:
                kept.append(line)
                self._row = row
        self._rows.begin(kept)

    def scalars(self, update: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write numbers; see `RunLog.scalars`."""
        finite = {n: value if math.isfinite(value) else None for n, value in values.items()}
        self._write(update, {"epoch": epoch, **finite})

    def text(self, update: int, tag: str, text: str) -> None:
        """Write a text."""
        self._write(update, {tag: text})

    def hyperparameters(self, values: Mapping[str, bool | int | float | str]) -> None:
        """Write what the run was started with."""
        self._rows.append(_dumped({"hyperparameters": dict(values)}))

    def flush(self) -> None:
        """Bring all lines to the disk."""
        self._rows.flush()

    def close(self) -> None:
        """Close the file."""
        self._rows.close()

    def _write(self, update: int, given: Mapping[str, Any]) -> None:
        goes_on = self._row.get("update") == update
        row = {**self._row, **given} if goes_on else {"update": update, "time": 0.0, **given}
        row["time"] = round(time.time(), 3)
        write = self._rows.replace_last if goes_on else self._rows.append
        write(_dumped(row))
        self._row = row


def _dumped(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)
