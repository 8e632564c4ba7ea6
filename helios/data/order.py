"""The order of an epoch: indices one by one, or whole batches of them without a Python int each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch

_CHUNK = 1 << 16  # indices turned into Python ints, or moved to a device, at a time


class Order:
    """Indices that are computed as tensors, and read as ints or cut in batches.

    Args:
        blocks: tensors ``i64[any]``, one after the other; they are asked for once.

    Example:
        >>> list(Order([torch.tensor([3, 1]), torch.tensor([2])]))
        [3, 1, 2]
    """

    def __init__(self, blocks: Iterable[torch.Tensor]) -> None:
        self.blocks = blocks

    def __iter__(self) -> Iterator[int]:
        """Yield the indices as ints."""
        for block in self.blocks:
            for part in _parts(block, _CHUNK):
                yield from part.tolist()


def batches_of(
    order: Iterable[Any], size: int, device: torch.device | None
) -> Iterator[range | torch.Tensor | list[Any]]:
    """Cut an order in batches, of which the last may be smaller.

    Law: the batches, joined, are the order, whatever they are made of
    (``tests/data/test_order.py``).

    Args:
        order: indices.
        size: of a batch.
        device: where indices are wanted as tensors, or as ranges; None for lists of them.

    Returns:
        Lists. With a device: ranges of a range of step 1, tensors ``i64[size]`` of an `Order`,
        which is moved in large parts, and lists of whatever else there is.

    Example:
        >>> list(batches_of(range(5), 2, None)), list(batches_of(range(5), 2, torch.device("cpu")))
        ([[0, 1], [2, 3], [4]], [range(0, 2), range(2, 4), range(4, 5)])
    """
    if type(order) is range and order.step == 1:
        spans = (order[first : first + size] for first in range(0, len(order), size))
        return map(list, spans) if device is None else spans
    if type(order) is Order:
        batches = _regrouped(order.blocks, size, torch.device("cpu") if device is None else device)
        return batches if device is not None else (batch.tolist() for batch in batches)
    return _lists(iter(order), size)


def _lists(numbers: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(numbers, size)):
        yield batch


def _regrouped(
    blocks: Iterable[torch.Tensor], size: int, device: torch.device
) -> Iterator[torch.Tensor]:
    rest = torch.empty(0, dtype=torch.int64)
    for block in blocks:
        whole = torch.cat([rest, block]) if len(rest) else block
        end = len(whole) // size * size
        for part in _parts(whole[:end], max(_CHUNK // size, 1) * size):
            moved = part.to(device)
            for first in range(0, len(moved), size):
                yield moved[first : first + size]
        rest = whole[end:]
    if len(rest):
        yield rest.to(device)


def _parts(block: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    for first in range(0, len(block), size):
        yield block[first : first + size]
