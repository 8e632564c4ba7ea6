"""The index of a sharded checkpoint: which rows of which tensor are where in which file.

It is JSON, and describes raw bytes: nothing in it, or in what it describes, can be run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import torch

from helios.errors import CheckpointError, CorruptCheckpointError
from helios.trainer.store.symbols import refused
from helios.trainer.store.tensors import DTYPES, MAX_DIMS

VERSION = 1
MAX_INDEX = 1 << 28
"""Bytes that an index may have; a tensor takes some two hundred, and fifty for each rank."""

NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
"""The dtypes by the names that an index has for them."""


class Chunk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Some rows of a tensor.

    Args:
        start: the first row.
        count: how many rows, at least 1.
        file: the number of the file.
        offset: where in the file they begin, in bytes.
    """

    start: int
    count: int
    file: int
    offset: int


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor: its dtype by name, its shape, and its rows in their order, all of them."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    @property
    def row(self) -> int:
        """The bytes of one row."""
        return math.prod(self.shape[1:]) * NAMES[self.dtype].itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype."""
        return NAMES[self.dtype]


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the files of a sharded checkpoint hold, by the names of the tensors."""

    version: int
    tensors: dict[str, Stored]


def encode_index(index: Index) -> bytes:
    """Return the bytes of an index."""
    return msgspec.json.encode(index, order="sorted")


def decode_index(data: bytes, sizes: Sequence[int]) -> Index:
    """Read an index, and check that all it describes is there, once, and within the files.

    Args:
        data: its bytes.
        sizes: the bytes of the files, by their numbers.

    Raises:
        CorruptCheckpointError: if it is anything else; the message is one line.
    """
    try:
        index = msgspec.json.decode(data, type=Index)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise refused(f"its index cannot be read: {error}") from error
    if index.version > VERSION:
        raise CheckpointError(
            f"its index has version {index.version}, and this helios reads up to {VERSION}. "
            "Update helios."
        )
    if encode_index(index) != data:
        raise refused("its index is not in the form in which helios writes it")
    places: list[list[tuple[int, int]]] = [[] for _ in sizes]
    for name, stored in index.tensors.items():
        _check_tensor(name, stored)
        for chunk in stored.chunks:
            end = chunk.offset + chunk.count * stored.row
            if not 0 <= chunk.file < len(sizes) or not 0 <= chunk.offset <= end:
                raise _bad(name, f"has rows in file {chunk.file} at {chunk.offset}")
            if end > sizes[chunk.file]:
                raise _bad(name, f"ends beyond the {sizes[chunk.file]} bytes of its file")
            places[chunk.file].append((chunk.offset, end))
    for taken in places:
        taken.sort()
        if any(end > start for (_, end), (start, _) in pairwise(taken)):
            raise refused("its index has two tensors in the same bytes")
    return index


def _check_tensor(name: str, stored: Stored) -> None:
    if stored.dtype not in NAMES:
        raise _bad(name, f"has the dtype {stored.dtype[:40]!r}")
    # What has no elements is not stored here, and its other dimensions would have no bound.
    if not 1 <= len(stored.shape) <= MAX_DIMS or min(stored.shape) < 1:
        raise _bad(name, f"has the shape {list(stored.shape)[:8]}")
    row = 0
    for chunk in stored.chunks:
        if chunk.start != row or chunk.count < 1:
            raise _bad(name, f"lacks row {row}, or has it twice")
        row += chunk.count
    if row != stored.shape[0]:
        raise _bad(name, f"has {row} of its {stored.shape[0]} rows")


def _bad(name: str, what: str) -> CorruptCheckpointError:
    return refused(f"in its index, {name[:80]!r} {what}")
