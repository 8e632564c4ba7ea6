"""What a child tells the harness by memory that they share, so that it is known when it dies."""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Iterator
from enum import IntEnum

_SIZE = 1 << 14
_DIGESTS = 256
_DIGEST_SIZE = 64
LAST_SEQUENCE = (_SIZE - _DIGESTS) // _DIGEST_SIZE


class Phase(IntEnum):
    """Where the training thread is."""

    SETUP = 0
    RECOVERY = 1
    OPENING = 2
    LOOP = 3
    WORKER_START = 4
    FETCH = 5
    STEP = 6
    VALIDATION = 7
    EPOCH_END = 8
    SAVE = 9
    REMOVAL = 10
    FINISH = 11

    @property
    def title(self) -> str:
        """The name for the table."""
        return self.name.lower().replace("_", " ")


class Saving(IntEnum):
    """What the store is doing, maybe in a thread of its own."""

    NOTHING = 0
    SAVE = 1
    REMOVAL = 2


class _Number:
    """A signed number at a place in the memory."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __get__(self, board: Board, owner: type[Board]) -> int:
        return int(_PACKED.unpack_from(board.memory, self._offset)[0])

    def __set__(self, board: Board, value: int) -> None:
        # In one go: pack_into fills with zeros first, and a kill in between would leave them.
        board.memory[self._offset : self._offset + _PACKED.size] = _PACKED.pack(value)


_PACKED = struct.Struct("<q")


class Board:
    """Shared memory with a few numbers; a child writes, and the harness reads once it is dead.

    Attributes:
        phase: a `Phase`.
        saving: a `Saving`.
        operations: file operations of the store that were begun.
        acknowledged: the sequence of the last checkpoint for which a save has returned.
        micro_batches: those that were begun, of the state that the loop holds.
        arrived: ``micro_batches`` when the handler of a signal first ran, -1 if it did not.
        arrived_in: the phase then.
        handlers_set: 1 once the handlers of signals are set.
    """

    phase = _Number(0)
    saving = _Number(8)
    operations = _Number(16)
    acknowledged = _Number(24)
    micro_batches = _Number(32)
    arrived = _Number(40)
    arrived_in = _Number(48)
    handlers_set = _Number(56)

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, _SIZE)
        self.begin_leg()

    def begin_run(self) -> None:
        """Forget everything."""
        self.memory[:] = bytes(_SIZE)
        self.begin_leg()

    def begin_leg(self) -> None:
        """Forget what belongs to one process."""
        self.phase = self.saving = self.operations = self.micro_batches = self.handlers_set = 0
        self.arrived = self.arrived_in = -1

    def acknowledge(self, sequence: int, digest: str) -> None:
        """Note that a checkpoint is on the disk."""
        start = _DIGESTS + _DIGEST_SIZE * (sequence - 1)
        self.memory[start : start + _DIGEST_SIZE] = digest.encode()
        self.acknowledged = sequence

    def digest(self, sequence: int) -> str:
        """Return the digest of an acknowledged checkpoint, "" if it has none."""
        start = _DIGESTS + _DIGEST_SIZE * (sequence - 1)
        return self.memory[start : start + _DIGEST_SIZE].rstrip(b"\0").decode()

    @contextlib.contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Set the phase, and then the one before it."""
        before = self.phase
        self.phase = phase
        try:
            yield
        finally:
            self.phase = before

    @property
    def place(self) -> str:
        """Where the child was, for the table."""
        phase, saving = Phase(self.phase), Saving(self.saving)
        if saving is not Saving.NOTHING and phase not in (Phase.SAVE, Phase.REMOVAL):
            return "save in the background"
        return phase.title
