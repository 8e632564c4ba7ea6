"""The format of a flight record: a header, and a record of one size for each update.

A record ends with a digest that is chained: it is of the record before it and of this one. Two runs
whose digests at an update are equal have had the same records up to there.
"""

from __future__ import annotations

import hashlib
import math
import struct

import msgspec

from helios.errors import CheckpointError, CheckpointVersionError, CorruptCheckpointError

NAME = "flight.bin"
"""The name of the file, beside the checkpoints."""

VERSION = 1
"""The version of the format; others are refused."""

_MAGIC = b"HELIOSFR"
_HEADER = struct.Struct("<8sII q Q 16x 16s")  # magic, version, record's size, seed, updates before
_BITS = struct.Struct("<QddII16s8s")
_SIZE = 16  # bytes of a digest in the file

HEADER_SIZE, RECORD_SIZE = _HEADER.size, _BITS.size + _SIZE
UNKNOWN = bytes(_SIZE)
"""Stands for indices that are not known."""

START = bytes(_SIZE)
"""The digest before the first record."""

_SKIPPED, _WITHOUT_LOSS = 1, 2


class Header(msgspec.Struct, frozen=True):
    """What a file of records begins with.

    Args:
        seed: the seed of the run.
        before: updates of the run before the first record; 0 unless it was recorded later only.
    """

    seed: int
    before: int


class Entry(msgspec.Struct, frozen=True):
    """What is recorded of an update.

    Args:
        update: its number, counted from 1.
        loss: the mean loss of its window, of the first objective; NaN if the step tells none.
        norm: the 2-norm of its gradients before clipping, of the first objective; NaN likewise.
        batches: the micro-batches of its window.
        indices: a digest of the indices of their samples; `UNKNOWN` if those are not known.
        rest: a digest of the losses and norms of the other objectives, and of the counters.
        skipped: whether an objective was left out since it was not finite.
        has_loss: whether the step told a loss and a norm.
        digest: the chained digest.
    """

    update: int
    loss: float
    norm: float
    batches: int
    indices: bytes
    rest: bytes
    skipped: bool = False
    has_loss: bool = True
    digest: bytes = START

    @property
    def indices_known(self) -> bool:
        """Whether the indices of the samples are known."""
        return self.indices != UNKNOWN

    def bits(self) -> bytes:
        """Return the bytes of the record without its digest."""
        flags = _SKIPPED * self.skipped | _WITHOUT_LOSS * (not self.has_loss)
        loss, norm = _one_nan(self.loss), _one_nan(self.norm)
        return _BITS.pack(self.update, loss, norm, flags, self.batches, self.indices, self.rest)


def chained(before: bytes, entry: Entry) -> bytes:
    """Return the digest of a record, given that of the record before it.

    Example:
        >>> entry = Entry(1, 0.5, 1.0, 1, UNKNOWN, bytes(8))
        >>> chained(START, entry) == chained(UNKNOWN, entry), len(chained(START, entry))
        (True, 16)
    """
    return hashlib.blake2b(before + entry.bits(), digest_size=_SIZE).digest()


def encode(entry: Entry) -> bytes:
    """Return the bytes of a record.

    Law:
        ``decode(encode(e)) == e`` (``property_tests/test_flight.py``).
    """
    return entry.bits() + entry.digest


def decode(data: bytes) -> Entry:
    """Read the bytes of a record."""
    update, loss, norm, flags, batches, indices, rest = _BITS.unpack_from(data)
    skipped, has_loss = bool(flags & _SKIPPED), not flags & _WITHOUT_LOSS
    digest = data[_BITS.size : RECORD_SIZE]
    return Entry(update, loss, norm, batches, indices, rest, skipped, has_loss, digest)


def encode_header(header: Header) -> bytes:
    """Return the bytes that a file begins with."""
    fields = (_MAGIC, VERSION, RECORD_SIZE, header.seed, header.before)
    check = hashlib.blake2b(_HEADER.pack(*fields, b""), digest_size=_SIZE).digest()
    return _HEADER.pack(*fields, check)


def decode_header(data: bytes, name: str) -> Header:
    """Read the bytes that a file begins with.

    Args:
        data: the bytes.
        name: of the file, for errors.

    Raises:
        CheckpointError: if it is no flight record.
        CheckpointVersionError: if another helios wrote it, in another format.
        CorruptCheckpointError: if the bytes are not those that were written.
    """
    if data[: len(_MAGIC)] != _MAGIC[: len(data)] or not data:
        raise CheckpointError(
            f"{name!r} is not a flight record of helios: it begins with {data[:8]!r}; expected "
            f"{_MAGIC!r}. Give the {NAME} of a run, or move this file away to begin a new one"
        )
    if len(data) < HEADER_SIZE:
        raise CorruptCheckpointError(
            f"{name!r} has {len(data)} bytes, less than the {HEADER_SIZE} that it begins with: it "
            "was cut short. Move it away to begin a new one"
        )
    _, version, size, seed, before, _ = _HEADER.unpack_from(data)
    if version != VERSION:
        raise CheckpointVersionError(
            f"{name!r} has version {version} of the flight record, and this helios reads version "
            f"{VERSION}. Use the helios that wrote it, or move it away to begin a new one"
        )
    header = Header(seed, before)
    if size != RECORD_SIZE or encode_header(header) != data[:HEADER_SIZE]:
        raise CorruptCheckpointError(
            f"the first bytes of {name!r} are not those that were written. Restore it from a copy, "
            "or move it away to begin a new one"
        )
    return header


def _one_nan(number: float) -> float:
    """Return a number; of all the NaNs, which differ between machines, one."""
    return math.nan if math.isnan(number) else number
