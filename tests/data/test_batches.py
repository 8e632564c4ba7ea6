import random

import pytest
import torch
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from helios.data import ResumableSampler
from helios.data.batches import KeyedBatchSampler
from tests.data.samples import Noisy, global_state


def cut(sampler, start=0, epoch=0, seed=0):
    plan = KeyedBatchSampler(sampler, 2, False, seed)
    plan.seek(epoch, start)
    return [batch.indices for batch in plan]


class Shuffling:
    """Draws from the global generators, as user samplers do."""

    def __init__(self, size):
        self.size = size
        self.epochs = []

    def __iter__(self):
        order = torch.randperm(self.size).tolist()
        random.shuffle(order)
        yield from order

    def __len__(self):
        return self.size

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


FOREIGN = [
    lambda: [5, 3, 1, 4, 2],
    lambda: Shuffling(5),
    lambda: RandomSampler(range(5)),
    lambda: SubsetRandomSampler([7, 8, 9, 10, 11]),
    lambda: WeightedRandomSampler([1.0, 2.0, 3.0], 5),
]


@pytest.mark.parametrize("make", FOREIGN)
@pytest.mark.parametrize("start", range(5))
def test_any_iterable_of_indices_is_skipped_in(make, start):
    assert cut(make(), start) == cut(make())[start:]


@pytest.mark.parametrize("make", FOREIGN)
def test_any_sampler_leaves_the_global_generators_alone(make):
    before = global_state()
    cut(make())
    assert global_state() == before


def test_a_foreign_order_is_a_function_of_seed_and_epoch():
    orders = [cut(Shuffling(50), epoch=e, seed=s) for e, s in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] == cut(Shuffling(50))
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]


def test_set_epoch_of_a_user_sampler_is_called():
    sampler = Shuffling(4)
    cut(sampler, epoch=3)
    assert sampler.epochs == [3]


def test_skipping_fetches_no_sample(opened):
    dataset = Noisy(5)
    list(opened(dataset, sampler=[4, 3, 2, 1, 0], batch_size=2).open(0, 1))
    assert dataset.asked == [2, 1, 0]


def test_a_subclass_with_its_own_iter_is_skipped_in():
    class Own(ResumableSampler):
        def __len__(self):
            return 5

        def indices(self, epoch, start):
            raise AssertionError("not asked for")

        def __iter__(self):
            return iter(range(self.start_iter * self.batch_size, 5))

    assert cut(Own(2), start=1) == [[2, 3], [4]]


def test_the_skip_is_used_once():
    plan = KeyedBatchSampler([1, 2, 3], 1, False, 0)
    plan.seek(0, 2)
    assert [len(list(plan)), len(list(plan))] == [1, 3]


def test_batches_know_their_epoch():
    plan = KeyedBatchSampler([1, 2, 3], 2, False, 0)
    plan.seek(4, 0)
    assert [batch.epoch for batch in plan] == [4, 4]


def test_a_sampler_without_a_length_has_none():
    with pytest.raises(TypeError):
        len(KeyedBatchSampler(iter([1]), 2, False, 0))
