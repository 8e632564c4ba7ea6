"""How a micro-batch is shared: cut in pieces, of which every rank takes its own.

The number of ranks changes nothing about a run but its speed: a micro-batch is the same samples on
any number of them, and so are the counters, the positions and the events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec


class Piece(msgspec.Struct, frozen=True, eq=False):
    """One piece of a micro-batch.

    Args:
        index: which of its pieces, from 0.
        batch: its samples, collated.
        count: samples in it that count; 0 if the one in it is there for its shape alone.
        of: samples of the whole micro-batch, over all pieces.
    """

    index: int
    batch: Any
    count: int
    of: int


class Shares(msgspec.Struct, frozen=True):
    """In how many pieces every micro-batch is cut, and which of them are this rank's.

    Args:
        pieces: pieces of a micro-batch.
        first: the first piece of this rank.
        end: one past the last piece of this rank.

    Example:
        >>> Shares.of_rank(pieces=8, rank=1, world_size=4)
        Shares(pieces=8, first=2, end=4)
    """

    pieces: int
    first: int
    end: int

    @classmethod
    def of_rank(cls, pieces: int, rank: int, world_size: int) -> Shares:
        """Return the share of a rank: as many pieces as any other, all in a row.

        Raises:
            ValueError: if the pieces cannot be shared equally.
        """
        if pieces % world_size:
            raise ValueError(
                f"pieces: received {pieces} for {world_size} ranks; expected a multiple of the "
                "number of ranks"
            )
        each = pieces // world_size
        return cls(pieces, rank * each, (rank + 1) * each)


def sizes(samples: int, pieces: int) -> list[int]:
    """Return the samples in each piece: they differ by at most one, the larger ones first.

    Args:
        samples: samples of the whole micro-batch.
        pieces: in how many pieces it is cut.

    Example:
        >>> sizes(10, 4)
        [3, 3, 2, 2]
    """
    each, more = divmod(samples, pieces)
    return [each + 1] * more + [each] * (pieces - more)


def is_shared(batch: Any) -> bool:
    """Tell whether a batch is a list of pieces of one."""
    return type(batch) is list and bool(batch) and type(batch[0]) is Piece


def each_piece(function: Callable[[Any], Any], batch: Any) -> Any:
    """Apply a function to a batch, or to that of each piece if it is shared.

    Example:
        >>> [piece.batch for piece in each_piece(abs, [Piece(0, -1, count=1, of=1)])]
        [1]
        >>> each_piece(abs, -1)
        1
    """
    if not is_shared(batch):
        return function(batch)
    return [msgspec.structs.replace(piece, batch=function(piece.batch)) for piece in batch]
