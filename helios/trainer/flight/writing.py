"""Writing a flight record: appended to, and cut back to the update that a run goes on from."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path

from helios.errors import CheckpointError
from helios.functional.state import TrainingState
from helios.trainer.flight.reading import FlightRecord
from helios.trainer.flight.record import (
    HEADER_SIZE,
    NAME,
    RECORD_SIZE,
    START,
    Header,
    encode_header,
)
from helios.trainer.store.fs import Fs, write_all, write_file


class FlightFile:
    """The file of a run, of which one process writes.

    Args:
        path: the file, which has its header and whole records alone.
        size: its bytes.
        digest: the chained digest after its last record.
        fs: the disk.
    """

    def __init__(self, path: Path, size: int, digest: bytes, fs: Fs) -> None:
        self.digest = digest
        self._path = path
        self._size = size
        self._fs = fs
        self._descriptor: int | None = None
        self._kept = b""

    def write(self, data: bytes, *, sync: bool) -> None:
        """Append records.

        Args:
            data: their bytes.
            sync: whether to wait until they are on the disk.

        Raises:
            CheckpointError: if they cannot be written; the next call tries again.
        """
        self._kept += data
        try:
            if self._descriptor is None:
                self._descriptor = self._fs.append(self._path, self._size)
            if self._kept:
                write_all(self._fs, self._descriptor, self._kept)
                self._size, self._kept = self._size + len(self._kept), b""
            if sync:
                self._fs.fsync(self._descriptor)
        except OSError as error:
            self.close()  # opened again, what was written in part is cut off
            raise CheckpointError(
                f"cannot write {str(self._path)!r}: {error.strerror or error}"
            ) from error

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with contextlib.suppress(OSError):
                self._fs.close(descriptor)


def open_file(folder: Path, state: TrainingState, fs: Fs) -> FlightFile:
    """Open the record of a run to go on with it, cut back to the update of a state.

    Where there is none that reaches the state, a new one begins there; one that does not belong to
    it is kept under another name, with a warning.

    Args:
        folder: the folder of its checkpoints, which exists and is locked.
        state: the state that the run goes on from.
        fs: the disk.

    Raises:
        CheckpointError: if the file is something else, or cannot be read or written.
        CheckpointVersionError: if another helios wrote it, in another format.
        CorruptCheckpointError: if it was changed.
    """
    path, update = folder / NAME, state.current_iteration
    if not os.path.lexists(path):
        return _begin(path, state, fs)
    found = FlightRecord(path, fs)
    if update == 0:
        return _begin(path, state, fs)
    same = found.header.seed == state.seed
    if same and found.header.before <= update <= found.last:
        digest = START
        if update >= found.first:
            found.check(update)
            digest = found.at(update).digest
        size = HEADER_SIZE + (update - found.header.before) * RECORD_SIZE
        return FlightFile(path, size, digest, fs)
    span = f"updates {found.first} to {found.last} of seed {found.header.seed}"
    aside = folder / f"flight_until_{found.last}.bin"
    warnings.warn(
        f"{NAME} has {span}, and the run goes on from update {update} of seed {state.seed}: a new "
        f"record begins there, and the old one is kept as {aside.name}. Leave flight_recorder on "
        "for the whole of a run.",
        stacklevel=3,
    )
    try:
        fs.replace(path, aside)
    except OSError as error:
        raise CheckpointError(f"cannot rename {str(path)!r}: {error.strerror}") from error
    return _begin(path, state, fs)


def _begin(path: Path, state: TrainingState, fs: Fs) -> FlightFile:
    """Put a file without records in the place of what is there."""
    header = Header(state.seed, state.current_iteration)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):  # of a process that died here
            fs.unlink(temporary)
        write_file(fs, temporary, encode_header(header))
        fs.replace(temporary, path)
        fs.fsync_dir(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    return FlightFile(path, HEADER_SIZE, START, fs)
