"""Law: an order cut in batches is the order, as ints, as ranges and as tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.data import (
    ResumableDistributedSampler,
    ResumablePermutationSampler,
    ResumableRandomSampler,
    ResumableSequentialSampler,
)
from helios.data.batches import KeyedBatchSampler
from helios.data.order import Order, batches_of

CPU = torch.device("cpu")


def lists(batches):
    return [b.tolist() if isinstance(b, torch.Tensor) else list(b) for b in batches]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 2**62), max_size=7), max_size=6), st.integers(1, 9))
def test_blocks_of_any_size_make_the_batches_of_their_ints(blocks, size):
    tensors = [torch.tensor(block, dtype=torch.int64) for block in blocks]
    numbers = [number for block in blocks for number in block]
    expected = [numbers[first : first + size] for first in range(0, len(numbers), size)]
    assert list(Order(tensors)) == numbers
    assert lists(batches_of(Order(tensors), size, CPU)) == expected
    assert list(batches_of(Order(tensors), size, None)) == expected
    assert list(batches_of(iter(numbers), size, None)) == expected


@pytest.mark.parametrize(
    "order", [range(7), range(3, 9), range(0), range(0, 9, 2), range(9, 0, -2)]
)
@pytest.mark.parametrize("device", [CPU, None])
def test_a_range_is_cut_as_its_ints(order, device):
    expected = [list(order)[first : first + 3] for first in range(0, len(order), 3)]
    assert lists(batches_of(order, 3, device)) == expected


def test_orders_longer_than_a_chunk():
    numbers = torch.randperm(200_000)
    expected = [part.tolist() for part in numbers.split(70_001)]
    assert lists(batches_of(Order([numbers]), 70_001, CPU)) == expected
    assert list(Order([numbers])) == numbers.tolist()


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda: ResumableRandomSampler(range(200), batch_size=3),
        lambda: ResumableSequentialSampler(range(200), batch_size=3),
        lambda: ResumableDistributedSampler(range(200), 3, 1, batch_size=3),
        lambda: ResumablePermutationSampler(range(200), batch_size=3),
        lambda: list(range(200, 0, -1)),
    ],
)
def test_the_batches_of_a_sampler_are_the_same_as_lists_and_as_tensors(make, start, drop_last):
    found = []
    for device in (None, CPU):
        plan = KeyedBatchSampler(make(), 3, drop_last, seed=0, device=device)
        plan.seek(2, start)
        batches = list(plan)
        assert {batch.epoch for batch in batches} == {2}
        found.append(lists(batch.indices for batch in batches))
        assert len(list(plan)) == len(plan)  # the start is used up
    assert found[0] == found[1]


def test_a_subclass_that_overrides_its_indices_is_heard():
    class Backwards(ResumableRandomSampler):
        def indices(self, epoch, start):
            return list(super().indices(epoch, start))[::-1]

    plan = KeyedBatchSampler(Backwards(range(5), batch_size=2), 2, False, seed=0, device=CPU)
    [first, *_] = plan
    expected = list(ResumableRandomSampler(range(5), batch_size=2))[::-1][:2]
    assert first.indices == expected
