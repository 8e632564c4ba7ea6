import itertools

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    TensorDataset,
)

from helios.data import EpochSource, ResumableRandomSampler
from helios.errors import DataError
from tests.data.samples import Noisy, NoisyStream, StatefulStream, digest, global_state

SIZE = 11


@pytest.fixture
def foreign():
    sources = []

    def make(loader, sampler=None, seed=7):
        sources.append(EpochSource(loader, sampler, seed=seed))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


def stock(workers=0, size=SIZE, **options):
    return DataLoader(Noisy(size), batch_size=3, num_workers=workers, **options)


def indices(batches):
    return [int(index) for batch in batches for index in batch[:, 0]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 3, 4])
def test_a_stock_loader_resumes_where_it_was(foreign, workers, start):
    expected = digest(foreign(stock(workers, shuffle=True)).open(2, 0))
    assert digest(foreign(stock(workers, shuffle=True)).open(2, start)) == expected[start:]


def test_the_order_of_a_stock_loader_is_a_function_of_seed_and_epoch(foreign):
    orders = {
        (seed, epoch, workers): indices(
            foreign(stock(workers, shuffle=True), None, seed).open(epoch)
        )
        for seed in (1, 2)
        for epoch in (0, 1)
        for workers in (0, 2)
    }
    assert orders[1, 0, 0] == orders[1, 0, 2]
    assert len({tuple(order) for order in orders.values()}) == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: stock(0, shuffle=True),
        lambda: stock(2, shuffle=True),
        lambda: DataLoader(Noisy(SIZE), sampler=torch.utils.data.SubsetRandomSampler(range(5))),
        lambda: DataLoader(NoisyStream(SIZE), batch_size=3),
        lambda: DataLoader(TensorDataset(torch.zeros(SIZE, 2)), batch_size=3, shuffle=True),
        lambda: (Noisy(SIZE)[index] for index in range(5)),
        lambda: list(range(5)),
    ],
)
def test_any_loader_leaves_the_global_generators_alone(foreign, make):
    source = foreign(make())
    before = global_state()
    list(source.open(0, 1))
    assert global_state() == before


def test_a_lent_generator_is_taken_back(foreign):
    loader = stock(shuffle=True)
    source = foreign(loader)
    next(source.open(0, 0))
    list(source.open(0, 0))
    assert loader.generator is None
    assert loader.sampler.generator is None


def test_a_generator_of_the_user_is_used(foreign):
    loaders = [stock(shuffle=True, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert indices(foreign(loaders[0]).open(0, 0)) == indices(loaders[1])


def test_a_generator_of_the_user_is_noted_on_resuming(foreign):
    source = foreign(stock(shuffle=True, generator=torch.Generator().manual_seed(3)))
    source.open(0, 1)
    assert "drawn from your own generator" in source.resume_note


def test_the_note_says_what_was_fetched_anew(foreign):
    source = foreign(stock())
    source.open(0, 2)
    assert source.resume_note == (
        "the position was restored by fetching 2 batches anew: the DataLoader is your own"
    )


def test_no_note_at_the_start(foreign):
    source = foreign(stock())
    source.open(1, 0)
    assert source.resume_note is None


def test_kept_workers_are_noted_on_resuming(foreign):
    source = foreign(stock(1, persistent_workers=True))
    list(source.open(0, 1))
    assert "random numbers drawn in its workers were not restored" in source.resume_note


def test_a_sampler_of_ours_goes_there_by_index(foreign):
    dataset = Noisy(SIZE)
    sampler = ResumableRandomSampler(dataset, seed=1, batch_size=3)
    source = foreign(DataLoader(dataset, batch_size=3, sampler=sampler), sampler)
    whole = digest(source.open(1, 0))
    dataset.asked.clear()
    assert digest(source.open(1, 2)) == whole[2:]
    assert len(dataset.asked) == 5
    assert source.resume_note is None


def test_a_sampler_of_ours_for_another_batch_size_is_fetched_up_to(foreign):
    sampler = ResumableRandomSampler(range(SIZE), seed=1)
    source = foreign(DataLoader(Noisy(SIZE), batch_size=3, sampler=sampler))
    assert indices(source.open(0, 2)) == list(sampler)[6:]


def test_set_epoch_is_called_wherever_there_is_one(foreign):
    sampler = DistributedSampler(range(SIZE), 2, 0)
    source = foreign(DataLoader(Noisy(SIZE), sampler=sampler))
    list(source.open(3, 0))
    assert sampler.epoch == 3


def test_set_epoch_of_a_sampler_beside_the_loader_is_called(foreign):
    sampler = DistributedSampler(range(SIZE), 2, 0)
    foreign(["batch"], sampler).open(3, 0)
    assert sampler.epoch == 3


def test_a_batch_sampler_of_the_user_is_used(foreign):
    batches = BatchSampler(RandomSampler(range(SIZE)), 4, drop_last=True)
    source = foreign(DataLoader(Noisy(SIZE), batch_sampler=batches))
    assert source.batches_per_epoch == 2
    assert digest(source.open(0, 0))[1:] == digest(source.open(0, 1))


def test_an_iterable_dataset_has_no_length(foreign):
    class Sized(NoisyStream):
        def __len__(self):
            return self.size

    source = foreign(DataLoader(Sized(SIZE), batch_size=3))
    assert source.batches_per_epoch is None
    assert len(list(source.open(0, 1))) == 3


def test_a_list_of_batches_is_cut(foreign):
    source = foreign(["a", "b", "c"])
    assert (source.batches_per_epoch, list(source.open(5, 2))) == (3, ["c"])


def test_a_generator_function_object_is_iterated_each_epoch(foreign):
    class Batches:
        def __iter__(self):
            yield from "abc"

    source = foreign(Batches())
    assert source.batches_per_epoch is None
    assert [list(source.open(epoch, 1)) for epoch in (0, 1)] == [["b", "c"]] * 2


def test_a_used_up_iterator_says_so(foreign):
    source = foreign(iter("ab"))
    list(source.open(0, 0))
    with pytest.raises(DataError, match=r"your own str_.*iterator .*used once only"):
        list(source.open(1, 0))


@pytest.mark.parametrize(("claimed", "text"), [(5, "5 batches but gave 3"), (2, "2 batches but ")])
def test_a_wrong_length_is_an_error(foreign, claimed, text):
    class Wrong:
        def __len__(self):
            return claimed

        def __iter__(self):
            return iter("abc")

    with pytest.raises(DataError, match=text):
        list(foreign(Wrong()).open(0, 0))


def test_an_endless_loader_is_read_as_far_as_asked(foreign):
    source = foreign(itertools.count())
    assert list(itertools.islice(source.open(0, 3), 2)) == [3, 4]


@pytest.mark.parametrize("loader", [[], DataLoader(Noisy(2), batch_size=3, drop_last=True)])
def test_an_empty_loader_is_an_error(foreign, loader):
    with pytest.raises(DataError, match="0 batches: your own"):
        foreign(loader)


def test_a_foreign_stream_is_not_asked_for_a_state(foreign):
    source = foreign(DataLoader(StatefulStream(SIZE), batch_size=3))
    list(source.open(0, 0))
    assert source.state_after(2) is None


def test_closing_ends_the_workers_of_a_foreign_loader(foreign):
    loader = stock(1, persistent_workers=True)
    source = foreign(loader)
    next(source.open(0, 0))
    workers = list(loader._iterator._workers)
    source.close()
    assert not any(worker.is_alive() for worker in workers)
