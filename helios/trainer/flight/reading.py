"""Reading flight records: one at a time, by the number of its update."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, overload

from helios.errors import CheckpointError, CorruptCheckpointError
from helios.trainer.flight.record import (
    HEADER_SIZE,
    NAME,
    RECORD_SIZE,
    START,
    Entry,
    Header,
    chained,
    decode,
    decode_header,
)
from helios.trainer.store.fs import Fs, OsFs

_CHUNK = 1 << 12  # records


class FlightRecord(Sequence[Entry]):
    """The record of a run, read from its file where it is asked for.

    It is a sequence; `at` takes the number of an update. A last record that was written in part, by
    a process that ended there, is left out.

    Args:
        path: the file.
        fs: (optional) the disk.

    Attributes:
        header: what the file begins with.
        reads: how many records were read.

    Raises:
        CheckpointError: if it cannot be read, or is no flight record.
        CheckpointVersionError: if another helios wrote it, in another format.
        CorruptCheckpointError: if its first bytes are not those that were written.
    """

    def __init__(self, path: Path, fs: Fs | None = None) -> None:
        self.path = path
        self.reads = 0
        self._fs: Fs = OsFs() if fs is None else fs
        with self._open() as file:
            self.header: Header = decode_header(file.read(HEADER_SIZE), str(path))
            size = os.fstat(file.fileno()).st_size
        self._count = max(size - HEADER_SIZE, 0) // RECORD_SIZE

    @contextlib.contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            with self._fs.open(self.path) as file:
                yield file
        except OSError as error:
            raise CheckpointError(
                f"cannot read {str(self.path)!r}: {error.strerror or error}. Runs with a "
                f"chkpt_root and flight_recorder=True write it, as <chkpt_root>/<save_name>/{NAME}"
            ) from error

    def __len__(self) -> int:
        """Return the number of whole records."""
        return self._count

    @property
    def first(self) -> int:
        """The first update on record."""
        return self.header.before + 1

    @property
    def last(self) -> int:
        """The last update on record; one before the first if there is none."""
        return self.header.before + self._count

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        """Return records by their place in the file, from 0."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._count))]
        place = range(self._count)[index]
        with self._open() as file:
            return self._read(file, place)

    def __iter__(self) -> Iterator[Entry]:
        """Yield all records in order."""
        for first in range(0, self._count, _CHUNK):  # none stays open while the caller is at work
            with self._open() as file:
                end = min(first + _CHUNK, self._count)
                entries = [self._read(file, place) for place in range(first, end)]
            yield from entries

    def _read(self, file: IO[bytes], place: int) -> Entry:
        file.seek(HEADER_SIZE + place * RECORD_SIZE)
        data = file.read(RECORD_SIZE)
        self.reads += 1
        entry = decode(data) if len(data) == RECORD_SIZE else None
        if entry is None or entry.update != self.first + place:
            raise _changed(self.path, self.first + place)
        return entry

    def at(self, update: int) -> Entry:
        """Return the record of an update.

        Args:
            update: its number, counted from 1.

        Raises:
            CheckpointError: if it is not on record.
        """
        if not self.first <= update <= self.last:
            raise CheckpointError(
                f"update {update} is not in {str(self.path)!r}, which has {self._span()}"
            )
        return self[update - self.first]

    def digest_after(self, update: int) -> bytes:
        """Return the chained digest after an update on record, or after the one before them all."""
        return START if update == self.header.before else self.at(update).digest

    def check(self, update: int | None = None) -> None:
        """Compare a record with its digest, or all of them.

        Args:
            update: which; None for all.

        Raises:
            CorruptCheckpointError: if one is not what was written.
        """
        if update is None:
            before, entries = START, iter(self)
        else:
            before, entries = self.digest_after(update - 1), iter([self.at(update)])
        for entry in entries:
            if entry.digest != chained(before, entry):
                raise _changed(self.path, entry.update)
            before = entry.digest

    def _span(self) -> str:
        return f"updates {self.first} to {self.last}" if self._count else "none"


def flight_record(run: str | Path) -> FlightRecord:
    """Open the record of a run.

    Args:
        run: the folder of its checkpoints, ``<chkpt_root>/<save_name>``, or the file itself.

    Returns:
        Its records, as a sequence that reads them from the file one by one.

    Raises:
        CheckpointError: if there is none, or it cannot be read.
    """
    path = Path(run)
    return FlightRecord(path / NAME if path.is_dir() else path)


def first_difference(a: FlightRecord, b: FlightRecord) -> int | None:
    """Return the first update at which two records differ, by bisection.

    Args:
        a: the record of one run.
        b: that of another, which begins at the same update.

    Returns:
        Its number; None if all updates that both have are equal.

    Raises:
        CheckpointError: if they do not begin at the same update.

    Law:
        It is the first that comparing one by one finds, in about ``2 * log2(n)`` reads
        (``property_tests/test_flight.py``).
    """
    if a.first != b.first:
        raise CheckpointError(
            f"{str(a.path)!r} begins at update {a.first} and {str(b.path)!r} at {b.first}; "
            "expected records that begin at the same update"
        )
    low, high = a.first, min(a.last, b.last) + 1
    end = high
    while low < high:
        middle = (low + high) // 2
        if a.at(middle).digest == b.at(middle).digest:
            low = middle + 1
        else:
            high = middle
    return low if low < end else None


def what_differs(a: Entry, b: Entry) -> list[str]:
    """Return what of an update differs: the samples, the loss, the norm, or what else is recorded.

    Example:
        >>> one = Entry(1, 0.5, 1.0, 1, bytes(16), bytes(8))
        >>> what_differs(one, Entry(1, 0.25, 1.0, 1, bytes(16), bytes(8)))
        ['loss']
    """
    bits = {"loss": (a.loss, b.loss), "norm": (a.norm, b.norm)}
    found = [] if a.indices == b.indices else ["indices"]
    found += [name for name, (x, y) in bits.items() if x.hex() != y.hex()]
    found += ["skipped"] if a.skipped != b.skipped else []
    found += ["batches"] if a.batches != b.batches else []
    return found + (["rest"] if a.rest != b.rest else [])


def _changed(path: Path, update: int) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"the record of update {update} in {str(path)!r} is not what was written. Restore the file "
        "from a copy, or move it away to begin a new one"
    )
