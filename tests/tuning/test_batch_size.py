import pytest
import torch

import helios
from helios.tuning import find_batch_size
from tests import zoo


class Limited(zoo.Line):
    """Has memory for so many samples."""

    def __init__(self, most, error=None):
        super().__init__()
        self.most, self.error = most, error or torch.OutOfMemoryError("out of memory")

    def loss(self, batch):
        if len(batch[0]) > self.most:
            raise self.error
        return super().loss(batch)


def made(size):
    return zoo.regression(1, size=size)[0]


@pytest.mark.parametrize("most", [1, 2, 7, 13, 16, 100])
def test_the_largest_that_fits_is_found(most):
    assert find_batch_size(Limited(most), made, high=15).suggestion == min(most, 15)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")]
)
def test_every_allocator_is_understood(error):
    assert find_batch_size(Limited(5, error), made, high=16).suggestion == 5


def test_the_real_allocator_is_understood():
    def huge(size):
        return (torch.zeros(3) if size < 4 else torch.empty(2**55), None)

    class Sum(zoo.Line):
        def loss(self, batch):
            return self.net(batch[0][:3]).sum()

    assert find_batch_size(Sum(), huge, high=8).suggestion == 3


def test_other_errors_are_raised():
    with pytest.raises(RuntimeError, match="planned"):
        find_batch_size(Limited(5, RuntimeError("planned")), made, high=16)


def test_nothing_that_fits_is_an_error():
    with pytest.raises(MemoryError, match="a batch of 4 samples does not fit"):
        find_batch_size(Limited(2), made, low=4, high=16)


def test_the_fastest_is_taken_for_throughput():
    found = find_batch_size(zoo.Line(), made, high=64, aim="throughput")
    assert found.tried[found.suggestion] == max(found.tried.values())


def test_the_model_and_the_generators_keep_every_bit():
    model = zoo.Noisy()
    model.prepare(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    find_batch_size(model, lambda size: zoo.classes(1, size)[0], low=2, high=8)
    assert helios.first_difference(dict(model.state_dict()), before) is None
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_dataset_is_cut_and_is_the_limit():
    data = helios.data.from_datasets(train=zoo.regression(1, size=12)[0], batch_size=4)
    assert find_batch_size(zoo.Line(), data).suggestion == 12
    assert data._train_dataset.params.batch_size == 4


def test_a_function_needs_a_limit():
    with pytest.raises(ValueError, match="high: received None"):
        find_batch_size(zoo.Line(), made)


def test_another_aim_is_an_error():
    with pytest.raises(ValueError, match="aim: received 'best'"):
        find_batch_size(zoo.Line(), made, high=4, aim="best")
