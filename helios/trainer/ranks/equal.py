"""Whether all ranks have the same parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from helios.errors import RankError


def checksum(tensors: Iterable[torch.Tensor]) -> int:
    """Return a number that tells the bits of some tensors from others, if not by an ill chance.

    Example:
        >>> checksum([torch.ones(3)]) == checksum([torch.ones(3)])
        True
    """
    total = 0
    for tensor in tensors:
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        whole = data[: data.numel() // 4 * 4].view(torch.int32)
        total += int(whole.sum(dtype=torch.int64)) + int(data[whole.numel() * 4 :].sum())
    return total


def check_equal(checksums: list[int], when: str) -> None:
    """Raise unless all ranks have the same checksum of their parameters.

    Args:
        checksums: of every rank.
        when: for the error.

    Raises:
        RankError: naming the first rank that differs from rank 0.

    Example:
        >>> check_equal([7, 7], "at the start")
    """
    for rank, number in enumerate(checksums):
        if number != checksums[0]:
            raise RankError(
                f"rank {rank} has other parameters than rank 0 {when}; they are to be the same on "
                "all ranks. Look in setup() and in hooks for what differs by rank: random numbers "
                "that are drawn without a seed, or parameters that are changed on one rank alone.",
                rank=rank,
            )
