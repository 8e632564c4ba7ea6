"""A shuffle of any size in O(1) memory: the index at a position is computed, not looked up."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from helios.data.checks import check_integer, length_of
from helios.data.order import Order
from helios.data.samplers import SAMPLER_REGISTRY, ResumableSampler
from helios.functional.rng import fold

_ROUNDS = 8
_FIRST, _CHUNK = 64, 4096  # positions computed at a time: few at first, for a quick first batch
_WORD = 0xFFFFFFFFFFFFFFFF
# The finaliser of splitmix64: every bit of its input changes every bit of its output.
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)


def permuted(position: int, size: int, seed: int, epoch: int) -> int:
    """Return the index that stands at a position of a shuffled epoch.

    A Feistel network is a bijection of ``[0, 4**h)``, whatever its round function. Here h is the
    least with ``4**h >= size``, the round function is a hash under a key folded from the seed, the
    epoch and the round, and the network is applied until the result lies below ``size`` (less than
    four times on average), which makes it a bijection of ``[0, size)``.

    Law: ``position -> permuted(position, size, seed, epoch)`` is a bijection of ``range(size)``
    (``tests/data/test_permutation.py``).

    Args:
        position: where in the epoch, in samples, from 0.
        size: samples of the epoch, at most ``2**63 - 1``.
        seed: what the order is drawn from.
        epoch: counted from 0.

    Raises:
        ValueError: if the position is not in ``range(size)``, or the size is above its maximum.

    Example:
        >>> sorted(permuted(position, 5, seed=0, epoch=1) for position in range(5))
        [0, 1, 2, 3, 4]

    References:
        Black and Rogaway, "Ciphers with arbitrary finite domains" (2002): cycle walking.
    """
    check_integer("position", position, at_least=0)
    check_integer("size", size, at_least=0)
    if position >= size or size >= 1 << 63:
        raise ValueError(
            f"position, size: received {position}, {size}; expected a position below the size, "
            "and a size below 2**63"
        )
    keys, half = _keys(seed, epoch), _half(size)
    mask = (1 << half) - 1
    index = position
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & mask)
        index = left << half | right
        if index < size:
            return index


def _mixed(word: int) -> int:
    for factor, shift in zip(_FACTORS, _SHIFTS, strict=False):
        word = ((word ^ word >> shift) * factor) & _WORD
    return word ^ word >> _SHIFTS[-1]


def _half(size: int) -> int:
    return max(((size - 1).bit_length() + 1) // 2, 1)


@lru_cache(maxsize=16)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(fold(seed, "shuffle", epoch, number) for number in range(_ROUNDS))


def _permuted_row(
    positions: npt.NDArray[np.uint64], size: int, seed: int, epoch: int
) -> npt.NDArray[np.uint64]:
    """Return what `permuted` returns for each of the positions, ``u64[positions]``."""
    keys, half = _keys(seed, epoch), _half(size)
    index = _encrypted(positions, keys, half)
    while len(beyond := np.flatnonzero(index >= np.uint64(size))):
        index[beyond] = _encrypted(index[beyond], keys, half)
    return index


def _encrypted(
    index: npt.NDArray[np.uint64], keys: tuple[int, ...], half: int
) -> npt.NDArray[np.uint64]:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = index >> shift, index & mask
    for key in keys:
        word = right ^ np.uint64(key)
        for factor, by in zip(_FACTORS, _SHIFTS, strict=False):
            word ^= word >> np.uint64(by)
            word *= np.uint64(factor)  # arrays of unsigned integers wrap, as masking does above
        word ^= word >> np.uint64(_SHIFTS[-1])
        word &= mask
        word ^= left
        left, right = right, word
    return left << shift | right


@SAMPLER_REGISTRY.register
class ResumablePermutationSampler(ResumableSampler):
    """Every index once an epoch, shuffled, in O(1) memory and from any position at once.

    `ResumableRandomSampler` holds the order of a whole epoch, 8 bytes a sample, and draws it before
    the first batch. This one computes it as it goes (see `permuted`), for datasets of up to
    ``2**63 - 1`` samples. The two give different orders.

    Law: the order is that of `permuted` (``tests/data/test_permutation.py``).

    Args:
        data_source: the dataset, of which only the length is used.
        seed: what the order is drawn from; None for that of the loader.
        batch_size: samples per batch; None for that of the loader (1 without one).

    Raises:
        DataError: if ``data_source`` has no length.

    Example:
        >>> sampler = ResumablePermutationSampler(range(10**12), batch_size=2)
        >>> sampler.start_iter = 4 * 10**11
        >>> next(iter(sampler)) == permuted(8 * 10**11, 10**12, sampler.seed, epoch=0)
        True
    """

    def __init__(
        self, data_source: Any, seed: int | None = None, batch_size: int | None = None
    ) -> None:
        super().__init__(batch_size, seed=seed)
        self._size = length_of(data_source, "ResumablePermutationSampler")

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._size

    def indices(self, epoch: int, start: int) -> Order:
        """Return the shuffled indices from batch ``start`` on."""
        return Order(self._blocks(epoch, start))

    def _blocks(self, epoch: int, start: int) -> Iterator[torch.Tensor]:
        position, count = start * self.batch_size, _FIRST
        while position < self._size:
            count = min(count, self._size - position)
            positions = np.arange(count, dtype=np.uint64) + np.uint64(position)
            row = _permuted_row(positions, self._size, self.seed, epoch)
            yield torch.from_numpy(row.view(np.int64))  # all below 2**63
            position += count
            count = min(2 * count, _CHUNK)
