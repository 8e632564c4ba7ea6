import random

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from helios.data.batches import BatchIndices
from helios.data.keyed import KeyedDataset, draws_nothing, fetches_together
from helios.errors import DataError
from tests.data.samples import Failing, Noisy, global_state, message


def fetch(dataset, indices, epoch=0, seed=0):
    return KeyedDataset(dataset, seed).__getitems__(BatchIndices(epoch, indices))


class Together(Noisy):
    def __getitems__(self, indices):
        self.asked.append(list(indices))
        return [(index, random.random()) for index in indices]


def test_a_sample_does_not_depend_on_those_before_it():
    alone, second = fetch(Noisy(9), [4])[0], fetch(Noisy(9), [8, 4])[1]
    assert torch.equal(alone, second)


def test_no_two_samples_draw_the_same_numbers():
    draws = [
        number
        for epoch in range(3)
        for seed in range(2)
        for sample in fetch(Noisy(20), list(range(20)), epoch, seed)
        for number in sample[1:].tolist()
    ]
    assert len(set(draws)) == len(draws)


def test_fetching_leaves_the_global_generators_alone():
    before = global_state()
    fetch(Noisy(5), [0, 1, 2])
    assert global_state() == before


def test_a_failing_fetch_leaves_the_global_generators_alone():
    before = global_state()
    with pytest.raises(ValueError, match="no such picture"):
        fetch(Failing(5, at=1), [0, 1])
    assert global_state() == before


def test_a_dataset_that_fetches_together_is_called_once():
    dataset = Together(9)
    fetch(dataset, [3, 5])
    assert dataset.asked == [[3, 5]]


def test_fetching_together_is_keyed_by_the_batch():
    first, again = fetch(Together(9), [3, 5]), fetch(Together(9), [3, 5])
    others = [fetch(Together(9), [3, 6]), fetch(Together(9), [3, 5], epoch=1)]
    assert first == again
    assert len({batch[0][1] for batch in [first, *others]}) == 3


def test_a_subset_is_keyed_by_sample():
    part = Subset(Noisy(9), [2, 4, 6])
    assert not fetches_together(part)
    assert torch.equal(fetch(part, [0, 1])[1], fetch(part, [1])[0])


def test_a_subset_of_what_fetches_together_does_so():
    dataset = Together(9)
    fetch(Subset(dataset, [2, 4, 6]), [0, 1])
    assert dataset.asked == [[2, 4]]


@pytest.mark.parametrize("index", ["a", (1, 2), torch.tensor(3)])
def test_indices_need_not_be_numbers(index):
    class Any(Dataset):
        def __getitem__(self, key):
            return random.random()

    assert fetch(Any(), [index]) == fetch(Any(), [index])


class Derived(TensorDataset):
    pass


PLAIN = TensorDataset(torch.zeros(4))


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (PLAIN, True),
        (Subset(PLAIN, [1]), True),
        (ConcatDataset([PLAIN, Subset(PLAIN, [0])]), True),
        ([1, 2], True),
        (Derived(torch.zeros(4)), False),
        (Noisy(3), False),
        (Subset(Noisy(3), [1]), False),
        (ConcatDataset([PLAIN, Noisy(3)]), False),
    ],
)
def test_what_cannot_draw_is_known(dataset, expected):
    assert draws_nothing(dataset) is expected


def test_set_epoch_of_a_dataset_is_called_once_an_epoch():
    class Phased(Noisy):
        def set_epoch(self, epoch):
            self.asked.append(f"epoch {epoch}")

    dataset = Phased(4)
    keyed = KeyedDataset(dataset, 0)
    for epoch in (0, 0, 1):
        keyed.__getitems__(BatchIndices(epoch, [epoch]))
    assert dataset.asked == ["epoch 0", 0, 0, "epoch 1", 1]


def test_an_error_names_the_index():
    with pytest.raises(ValueError, match="no such picture") as caught:
        fetch(Failing(9, at=7), [6, 7])
    assert "dataset[7]" in message(caught.value)


def test_a_stop_iteration_does_not_pass_for_the_end():
    with pytest.raises(DataError, match=r"dataset\[7\] raised StopIteration"):
        fetch(Failing(9, at=7, error=StopIteration), [7])
