"""Sums over pieces have the bits of the tree, on any number of ranks, in little memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helios.functional.tree import same_bits
from helios.functional.tree_sum import TreeSum, check_pieces, combine

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def oracle(leaves: list[torch.Tensor]) -> torch.Tensor:
    """The definition, from the root down: the left child is the largest aligned block."""
    if len(leaves) == 1:
        return leaves[0]
    left = 1 << ((len(leaves) - 1).bit_length() - 1)
    return oracle(leaves[:left]) + oracle(leaves[left:])


def wild(count: int, seed: int, dtype: torch.dtype, size: int = 17) -> list[torch.Tensor]:
    """Numbers of magnitudes 1e-30 to 1e30, of both signs, and zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.rand(count, size, generator=generator, dtype=torch.float64) * 60 - 30
    sign = torch.randint(0, 2, (count, size), generator=generator) * 2 - 1
    values = sign * 10**exponent
    near = torch.rand(count, size, generator=generator) < 0.5
    values = torch.where(near, torch.randn(count, size, generator=generator).double(), values)
    zero = torch.rand(count, size, generator=generator) < 0.2
    return list(torch.where(zero, sign * 0.0, values).to(dtype))


def summed(leaves: list[torch.Tensor], donate: bool = False) -> torch.Tensor:
    sums = TreeSum()
    for leaf in leaves:
        sums.add([leaf.clone()], donate=donate)
    return sums.total()[0]


CASES = (st.integers(1, 40), st.integers(0, 999), st.sampled_from(DTYPES))


@given(*CASES, st.booleans())
def test_the_sum_is_that_of_the_recursive_definition(count, seed, dtype, donate):
    leaves = wild(count, seed, dtype)
    assert same_bits(summed(leaves, donate), oracle(leaves))


@given(*CASES)
def test_the_sum_has_the_same_bits_on_every_number_of_ranks(pieces, seed, dtype):
    leaves = wild(pieces, seed, dtype)
    alone = summed(leaves)
    for world_size in range(2, pieces + 1):
        try:
            check_pieces(pieces, world_size)
        except ValueError:
            continue
        each = pieces // world_size
        roots = [summed(leaves[i : i + each], True) for i in range(0, pieces, each)]
        assert same_bits(combine(roots), alone)


@given(st.integers(1, 40), st.integers(0, 99), st.integers(0, 39))
def test_a_leaf_of_zeros_counts_the_same_wherever_it_is_computed(count, seed, absent):
    leaves = wild(count, seed, torch.float32)
    leaves[absent % count] = torch.zeros(17)
    if count % 2 == 0:
        halves = leaves[: count // 2], leaves[count // 2 :]
        if (count // 2) & (count // 2 - 1) == 0:
            assert same_bits(combine([summed(half) for half in halves]), summed(leaves))
    assert same_bits(summed(leaves), oracle(leaves))


@given(st.integers(1, 300))
def test_the_nodes_alive_are_the_ones_of_a_binary_counter(count):
    sums = TreeSum()
    for number in range(1, count + 1):
        sums.add(torch.ones(1))
        assert sums.alive == number.bit_count() <= math.floor(math.log2(number)) + 1
    assert sums.total() == count


@given(*CASES)
def test_leaves_that_are_not_donated_and_roots_keep_their_bits(count, seed, dtype):
    leaves = wild(count, seed, dtype)
    copies = [leaf.clone() for leaf in leaves]
    sums = TreeSum()
    for leaf in leaves:
        sums.add({"a": leaf, "b": [leaf]})
    both = sums.total()
    assert same_bits(both["a"], both["b"][0])
    assert same_bits(both["a"], combine(leaves))
    assert all(map(same_bits, leaves, copies))


def test_donated_leaves_are_added_in_place():
    leaves = [torch.ones(3) for _ in range(5)]
    sums = TreeSum()
    for leaf in leaves:
        sums.add([leaf], donate=True)
    assert sums.total()[0] is leaves[0]


def test_a_total_begins_anew():
    sums = TreeSum()
    sums.add([torch.ones(1)])
    assert sums.total() == [torch.ones(1)]
    sums.add(torch.full((1,), 5.0))
    assert sums.total() == 5
    with pytest.raises(ValueError, match="no leaf"):
        sums.total()


def test_a_leaf_of_another_structure_is_refused():
    sums = TreeSum()
    sums.add({"a": torch.ones(1)})
    with pytest.raises(ValueError, match="zeros"):
        sums.add({"b": torch.ones(1)})


def test_pieces_that_ranks_cannot_share_name_the_numbers_that_can():
    with pytest.raises(ValueError, match=r"12 for 4 ranks.*\[1, 3, 6, 12\]"):
        check_pieces(12, 4)
    for world_size in (1, 3, 6, 12):
        check_pieces(12, world_size)
    with pytest.raises(ValueError, match=r"\[1, 2, 4, 8\]"):
        check_pieces(8, 3)
