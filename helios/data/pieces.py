"""From a batch that a rank has read whole to the pieces of it that are that rank's."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import torch

from helios.errors import DataError
from helios.functional.share import Piece, Shares, sizes

Deal = Callable[[Any, int, Shares], list[Piece]]
"""Makes a rank's pieces of a batch, given the samples in it and the rank's shares."""


def spans(samples: int, shares: Shares) -> list[tuple[int, slice, int]]:
    """Say which samples of a micro-batch a rank's pieces have.

    Args:
        samples: samples of the whole micro-batch, at least 1.
        shares: which pieces are the rank's.

    Returns:
        For each piece its index, its samples, and how many of them count. A piece that has none
        is lent the first sample of the micro-batch, which does not count.

    Example:
        >>> spans(2, Shares(pieces=3, first=1, end=3))
        [(1, slice(1, 2, None), 1), (2, slice(0, 1, None), 0)]
    """
    counts = sizes(samples, shares.pieces)
    begins = list(accumulate(counts, initial=0))
    found = []
    for index in range(shares.first, shares.end):
        begin, count = begins[index], counts[index]
        found.append((index, slice(begin, begin + count) if count else slice(0, 1), count))
    return found


def cut(batch: Any, samples: int, shares: Shares) -> list[Piece]:
    """Cut a rank's pieces out of a batch that it has read whole.

    Every tensor and array is sliced along its first dimension; the slices are views. It is seen
    through dicts and other mappings, lists, tuples, named tuples, dataclasses and msgspec structs.
    A list or a tuple with as many items as there are samples, none of which holds a tensor that
    could be sliced, is one of samples (names, say) and is sliced too. Whatever else there is,
    such as numbers and tensors without dimensions, is given to each piece as it is.

    Law: the pieces of all ranks, joined in order and without those that count 0, are the batch
    (``tests/data/test_pieces.py``).

    Args:
        batch: tensors ``[samples, ...]`` in any structure.
        samples: samples of the whole batch; `samples_of` tells.
        shares: which pieces are the rank's.

    Raises:
        DataError: if not every tensor of the batch has ``samples`` rows, or if there is none.

    Example:
        >>> batch = {"x": torch.arange(3), "name": ["a", "b", "c"], "scale": 2.0}
        >>> [piece] = cut(batch, 3, Shares(pieces=2, first=1, end=2))
        >>> piece.batch, piece.count, piece.of
        ({'x': tensor([2]), 'name': ['c'], 'scale': 2.0}, 1, 3)
    """
    if samples_of(batch) != samples:
        raise _refusal(batch, f"{samples} rows in each tensor")
    return [
        Piece(index, _taken(batch, samples, span), count, samples)
        for index, span, count in spans(samples, shares)
    ]


def repeated(batch: Any, samples: int, shares: Shares) -> list[Piece]:
    """Give the whole batch to each piece of a rank, so that all pieces together have its mean.

    Example:
        >>> [(p.index, p.count, p.of) for p in repeated("ab", 2, Shares(pieces=3, first=1, end=3))]
        [(1, 2, 6), (2, 2, 6)]
    """
    whole = samples * shares.pieces
    return [Piece(index, batch, samples, whole) for index in range(shares.first, shares.end)]


def own(batch: Any, samples: int, shares: Shares) -> list[Piece]:
    """Cut the pieces of a rank out of a batch that is its share already.

    All ranks have as many samples: so it is with distributed samplers.

    Example:
        >>> [(p.index, p.count, p.of) for p in own("ab", 2, Shares(pieces=3, first=1, end=2))]
        [(1, 2, 6)]
    """
    each = shares.end - shares.first
    whole = samples * (shares.pieces // each)
    if each == 1:
        return [Piece(shares.first, batch, samples, whole)]
    return [
        msgspec.structs.replace(piece, index=shares.first + piece.index, of=whole)
        for piece in cut(batch, samples, Shares(each, 0, each))
    ]


def samples_of(batch: Any) -> int:
    """Return the samples of a batch: the rows that all of its tensors have.

    Raises:
        DataError: if there is no tensor with a dimension, or if they differ in their rows.

    Example:
        >>> samples_of((torch.zeros(4, 2), {"y": torch.zeros(4)}))
        4
    """
    if not has_samples(batch):
        raise _refusal(batch, "tensors with the samples along their first dimension, as many each")
    return _rows(batch).pop()


def has_samples(batch: Any) -> bool:
    """Tell whether all tensors of a batch have as many rows, so that `samples_of` knows them.

    Example:
        >>> has_samples(torch.zeros(4)), has_samples("text"), has_samples(torch.zeros(()))
        (True, False, False)
    """
    rows = _rows(batch)
    return len(rows) == 1 and rows != {0}


def _rows(batch: Any) -> set[int]:
    return {len(part) for part in _parts(batch) if _has_rows(part)}


def _has_rows(part: Any) -> bool:
    return isinstance(part, (torch.Tensor, np.ndarray)) and part.ndim > 0


def _fields(batch: Any) -> tuple[str, ...] | None:
    if isinstance(batch, msgspec.Struct):
        return batch.__struct_fields__
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return tuple(
            field.name for field in dataclasses.fields(batch) if hasattr(batch, field.name)
        )
    return None


def _parts(batch: Any) -> Iterator[Any]:
    inner: Any = None
    if isinstance(batch, Mapping):
        inner = batch.values()
    elif isinstance(batch, (list, tuple)):
        inner = batch
    elif (names := _fields(batch)) is not None:
        inner = [getattr(batch, name) for name in names]
    if inner is None:
        yield batch
    else:
        for part in inner:
            yield from _parts(part)


def _taken(batch: Any, samples: int, span: slice) -> Any:
    if _has_rows(batch):
        return batch[span]

    def take(part: Any) -> Any:
        return _taken(part, samples, span)

    if isinstance(batch, (list, tuple)):
        return _taken_sequence(batch, samples, span, take)
    if type(batch) is dict:
        return {key: take(value) for key, value in batch.items()}
    if isinstance(batch, MutableMapping):
        result: Any = copy.copy(batch)  # keeps a default factory, an order, attributes
        for key, value in batch.items():
            result[key] = take(value)
        return result
    if isinstance(batch, Mapping):
        return type(batch)({k: take(v) for k, v in batch.items()})  # type: ignore[call-arg]
    if (names := _fields(batch)) is not None:
        # Copied and assigned, not built anew: a constructor may have other arguments than fields.
        result = copy.copy(batch)
        is_struct = isinstance(batch, msgspec.Struct)
        assign = msgspec.structs.force_setattr if is_struct else object.__setattr__
        for name in names:
            assign(result, name, take(getattr(batch, name)))
        return result
    if callable(getattr(batch, "to", None)) and not isinstance(batch, (torch.Tensor, type)):
        raise _refusal(batch, "tensors in dicts, lists, tuples or dataclasses")
    return batch


def _taken_sequence(batch: Any, samples: int, span: slice, take: Callable[[Any], Any]) -> Any:
    if hasattr(batch, "_fields"):
        return type(batch)(*map(take, batch))
    if len(batch) == samples and not any(map(_has_rows, _parts(batch))):
        return batch[span]
    if isinstance(batch, list) and type(batch) is not list:
        result = copy.copy(batch)
        result[:] = map(take, batch)
        return result
    return type(batch)(map(take, batch))


def _refusal(batch: Any, expected: str) -> DataError:
    shapes = [list(part.shape) for part in _parts(batch) if _has_rows(part)]
    held = f"tensors of the shapes {shapes}" if shapes else "no tensor that has a dimension"
    return DataError(
        f"a batch cannot be shared among the ranks: received a {type(batch).__name__} with {held}; "
        f"expected {expected}. Let the collate_fn return such tensors; or return a loader of "
        "create_dataloader with an indexable dataset, whose samples are shared before they are "
        "collated; or create it with is_distributed=False, for the whole batch on every rank"
    )
