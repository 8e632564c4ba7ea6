"""Tensors sorted by device and dtype, as the foreach kernels want them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch


def grouped(*columns: Iterable[torch.Tensor]) -> Iterator[tuple[list[torch.Tensor], ...]]:
    """Split columns of tensors into groups of one device and one dtype, in order of appearance.

    Args:
        columns: lists of equal length; the first one's device and dtype decide.

    Yields:
        The columns of each group.

    Example:
        >>> one, two = torch.zeros(1), torch.zeros(2, dtype=torch.float64)
        >>> [len(tensors) for (tensors,) in grouped([one, two, one])]
        [2, 1]
    """
    groups: dict[tuple[torch.device, torch.dtype], tuple[list[torch.Tensor], ...]] = {}
    for row in zip(*columns, strict=True):
        key = (row[0].device, row[0].dtype)
        if key not in groups:
            groups[key] = tuple([] for _ in row)
        for column, tensor in zip(groups[key], row, strict=True):
            column.append(tensor)
    yield from groups.values()
