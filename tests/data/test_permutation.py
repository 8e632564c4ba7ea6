"""Law: a shuffled epoch is a bijection, computed position by position in O(1) memory."""

import math
import sys
import time
import tracemalloc
from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.data import (
    DataLoaderParams,
    EpochSource,
    ResumablePermutationSampler,
    create_dataloader,
    create_sampler,
    permuted,
)
from helios.errors import DataError

HUGE = 10**12
SIZES = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 64, 65, 100, 1000, 4160, 10_000]

seeds = st.integers(-(2**63), 2**63 - 1)
epochs = st.integers(0, 2**40)


class Sized:
    """A dataset of which nothing but the length exists."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index


def order(size, seed=0, epoch=0, **options):
    sampler = ResumablePermutationSampler(Sized(size), seed=seed, **options)
    sampler.set_epoch(epoch)
    return list(sampler)


@pytest.mark.parametrize("size", SIZES)
def test_an_epoch_has_every_index_once(size):
    for epoch in range(3):
        assert sorted(order(size, seed=3, epoch=epoch)) == list(range(size))


@settings(deadline=None)
@given(st.integers(0, 3000), seeds, epochs)
def test_an_epoch_of_any_size_has_every_index_once(size, seed, epoch):
    assert sorted(order(size, seed, epoch)) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 300), seeds, epochs)
def test_the_sampler_gives_what_the_function_gives(size, seed, epoch):
    expected = [permuted(position, size, seed, epoch) for position in range(size)]
    assert order(size, seed, epoch) == expected


@settings(deadline=None)
@given(st.integers(1, sys.maxsize), seeds, epochs, st.data())
def test_the_sampler_gives_what_the_function_gives_at_any_size(size, seed, epoch, data):
    start = data.draw(st.integers(0, size - 1))
    sampler = ResumablePermutationSampler(Sized(size), seed=seed)
    first = list(islice(sampler.indices(epoch, start), 70))
    positions = range(start, min(start + 70, size))
    assert first == [permuted(position, size, seed, epoch) for position in positions]
    assert all(0 <= index < size for index in first)


def test_the_order_of_a_seed_never_changes():
    assert order(10, seed=0, epoch=0) == [3, 0, 8, 2, 5, 1, 7, 6, 4, 9]
    far = [permuted(p, HUGE, 1, 2) for p in (0, 1, HUGE - 1)]
    assert far == [775908853477, 628384499324, 83563335895]


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = {tuple(order(100, seed, epoch)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


@pytest.mark.parametrize("start", [0, 1, 10, 21, 22, 600, 1666, 1667, 5000])
def test_resuming_at_a_batch_drops_those_before(start):
    sampler = ResumablePermutationSampler(Sized(5000), seed=1, batch_size=3)
    whole = list(sampler)
    sampler.start_iter = start
    assert list(sampler) == whole[3 * start :]


def test_memory_does_not_grow_with_the_size():
    def peak(size):
        sampler = ResumablePermutationSampler(Sized(size), seed=1)
        list(islice(sampler.indices(0, 5), 20))
        tracemalloc.start()
        for _ in islice(sampler.indices(0, size // 2), 9000):
            pass
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    assert peak(HUGE) < 2**20
    assert peak(sys.maxsize) < 2**20


def test_any_position_of_a_huge_epoch_is_there_at_once():
    sampler = ResumablePermutationSampler(Sized(HUGE), seed=1, batch_size=100)
    begin = time.process_time()
    for start in range(0, HUGE // 100, HUGE // 10_000):
        next(iter(sampler.indices(7, start)))
    assert time.process_time() - begin < 5


def test_a_loader_starts_in_the_middle_of_a_huge_epoch():
    sampler = ("ResumablePermutationSampler", {})
    params = DataLoaderParams(batch_size=4, sampler=sampler)
    source = EpochSource(*create_dataloader(Sized(HUGE), params, seed=5))
    start = HUGE // 4 - 1
    (last,) = source.open(2, start)
    assert source.batches_per_epoch == HUGE // 4
    assert last.tolist() == [permuted(p, HUGE, 5, 2) for p in range(HUGE - 4, HUGE)]


@pytest.mark.parametrize("size", [2, 3, 5, 8, 10])
@pytest.mark.parametrize("position", ["first", "last"])
def test_over_many_seeds_every_index_comes_first_as_often(size, position):
    draws = 400 * size
    at = 0 if position == "first" else size - 1
    counts = [0] * size
    for seed in range(draws):
        counts[permuted(at, size, seed, 0)] += 1
    # Of a uniform draw each count is within five standard deviations but once in 10**6 times.
    bound = 5 * math.sqrt(draws * (1 / size) * (1 - 1 / size))
    assert max(abs(count - 400) for count in counts) < bound


def test_over_many_seeds_every_order_of_four_comes():
    assert len({tuple(order(4, seed)) for seed in range(400)}) == math.factorial(4)


def test_neighbours_do_not_stay_neighbours():
    shuffled = order(10_000)
    close = sum(abs(a - b) == 1 for a, b in pairwise(shuffled))
    assert close < 12  # 2 are expected of a uniform order


def test_it_is_registered():
    sampler = create_sampler("ResumablePermutationSampler", range(9), seed=4)
    assert list(sampler) == order(9, seed=4)


def test_a_dataset_without_a_length_is_refused():
    with pytest.raises(DataError, match="ResumablePermutationSampler: the dataset, a generator"):
        ResumablePermutationSampler(x for x in range(3))


@pytest.mark.parametrize(("position", "size"), [(3, 3), (0, 0), (5, 2**63)])
def test_a_position_outside_the_epoch_is_refused(position, size):
    with pytest.raises(ValueError, match="expected a position below the size"):
        permuted(position, size, 0, 0)
