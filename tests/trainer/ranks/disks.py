"""A run of several ranks on a disk that fails rank 0 while it saves."""

from __future__ import annotations

import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

from helios.trainer.store import Store
from helios.trainer.store import store as stores
from tests.trainer.ranks import small
from tests.trainer.store.faulty import CountingFs
from tests.trainer.store.tiny import UnsyncedFs
from tests.zoo import Noisy

ERROR = errno.EIO
SAVES = "saves.json"
"""Holds which operations of the disk belong to which save, if none has failed."""


def fit(
    folder: str, at: int = 0, lasting: bool = False, arguments: dict[str, Any] | None = None
) -> None:
    """Run the small run on this rank, and write down where it ended.

    Args:
        folder: of the run.
        at: the operation of rank 0 that fails, from 1; 0 for none.
        lasting: whether all from there on fail.
        arguments: (optional) more of them for the trainer.
    """
    rank = int(os.environ["RANK"])
    made = small.trainer(folder, rank_timeout=10.0, **(arguments or {}))
    disk = CountingFs(UnsyncedFs(), at, lambda: OSError(ERROR, os.strerror(ERROR)), lasting=lasting)
    done: list[list[tuple[int, str]]] = []
    save = Store.save

    def counted(self: Store, *args: Any) -> Any:
        before = disk.count
        manifest = save(self, *args)
        done.append(list(enumerate(disk.log, start=1))[before:])
        return manifest

    try:
        with (
            mock.patch.object(stores, "OsFs", return_value=disk),
            mock.patch.object(Store, "save", counted),
        ):
            made.fit(Noisy(small.NAME), small.Data())
    finally:
        counters = made.state.dict()
        counters.pop("average_iter_time")
        Path(folder, f"ended-{rank}.json").write_text(json.dumps(counters))
        if rank == 0 and not disk.failed:
            Path(folder, SAVES).write_text(json.dumps(done))


def ended(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Return the counters with which each rank ended."""
    return [json.loads((folder / f"ended-{rank}.json").read_text()) for rank in range(ranks)]


def operations(folder: Path, save: int, *, every: bool = True) -> list[int]:
    """Return the operations of a save, from 0, in a run in which none has failed.

    Args:
        folder: of the run.
        save: which save.
        every: whether to return all of them, or the first and the last of each of a kind in a row.
    """
    done = json.loads((folder / SAVES).read_text())[save]
    rows = [list(row) for _, row in itertools.groupby(done, key=lambda one: one[1])]
    if not every:
        rows = [[row[0], row[-1]] if len(row) > 1 else row for row in rows]
    return [number for row in rows for number, _ in row]
