"""Law: the pieces of all ranks, joined in order without padding, are the batches of one rank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from helios.data import (
    DataLoaderParams,
    EpochSource,
    ResumableDistributedSampler,
    create_dataloader,
    source_of,
)
from helios.errors import DataError
from helios.functional.share import Shares
from tests.data.samples import Failing, Noisy, NoisyStream, StatefulStream, global_state, message

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def keyed(size, **params):
    return create_dataloader(Noisy(size), DataLoaderParams(shuffle=True, **params), seed=7)


def tensors(size, **params):
    dataset = TensorDataset(torch.arange(size))
    return create_dataloader(dataset, DataLoaderParams(shuffle=True, **params), seed=7)


def listed(size, **params):
    order = list(range(size))[::-1]
    return create_dataloader(Noisy(size), DataLoaderParams(sampler=order, **params), seed=7)


def stream(size, **params):
    return create_dataloader(NoisyStream(size), DataLoaderParams(**params), seed=7)


def stateful(size, **params):
    return create_dataloader(StatefulStream(size), DataLoaderParams(**params), seed=7)


def stock(size, batch_size, drop_last=False):
    return DataLoader(Noisy(size), batch_size, shuffle=True, drop_last=drop_last)


def batches(size, batch_size, drop_last=False):
    whole = list(torch.arange(size).split(batch_size))
    return whole[: size // batch_size] if drop_last else whole


KINDS = [keyed, tensors, listed, stream, stateful, stock, batches]


def rows(batch):
    return batch[0] if isinstance(batch, (list, tuple)) else batch


def alone(make, epoch=0, start=0, **params):
    source = source_of(make(**params))
    whole = [rows(batch) for batch in source.open(epoch, start)]
    source.close()
    return whole


def joined(make, pieces, world, epoch=0, start=0, **params):
    """Return the micro-batches that all ranks together have, put together from the pieces."""
    ranks = []
    for rank in range(world):
        source = source_of(make(**params), shares=Shares.of_rank(pieces, rank, world))
        ranks.append(list(source.open(epoch, start)))
        source.close()
    found = []
    for shares in zip(*ranks, strict=True):
        dealt = [piece for share in shares for piece in share]
        assert [piece.index for piece in dealt] == list(range(pieces))
        assert all(len(rows(piece.batch)) == max(piece.count, 1) for piece in dealt)
        assert {piece.of for piece in dealt} == {sum(piece.count for piece in dealt)}
        found.append(torch.cat([rows(piece.batch)[: piece.count] for piece in dealt]))
    return found


def same(found, expected):
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 25),
    st.integers(1, 9),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 2),
    st.integers(0, 30),
)
def test_the_pieces_of_all_ranks_are_the_batches(
    make, size, batch_size, drop_last, each, world, epoch, start
):
    batch_size = min(size, batch_size)  # with drop_last there is one batch at least
    number = size // batch_size if drop_last else -(-size // batch_size)
    params = {"size": size, "batch_size": batch_size, "drop_last": drop_last}
    start = min(start, number)
    expected = alone(make, epoch, start, **params)
    assert len(expected) == number - start
    same(joined(make, each * world, world, epoch, start, **params), expected)


@pytest.mark.parametrize("make", [keyed, stream])
@pytest.mark.parametrize(
    "options", [{}, {"prefetch_factor": 1}, {"prefetch_factor": 5, "persistent_workers": False}]
)
@pytest.mark.parametrize(("pieces", "world", "start"), [(2, 2, 0), (3, 1, 2), (4, 2, 1)])
def test_workers_change_nothing(make, options, pieces, world, start):
    params = {"size": 11, "batch_size": 3, "num_workers": 2, **options}
    at_rest = {**params, "num_workers": 0} if make is keyed else params
    expected = alone(make, 1, start, **at_rest)
    same(joined(make, pieces, world, 1, start, **params), expected)


@pytest.mark.parametrize("drop_last", [False, True])
def test_every_epoch_of_kept_workers_is_dealt_anew(drop_last):
    params = {"size": 10, "batch_size": 4, "drop_last": drop_last}
    source = source_of(keyed(num_workers=2, **params), shares=Shares(3, 0, 3))
    for epoch, start in ((0, 0), (1, 1), (1, 0), (2, 2)):
        if epoch == 1:
            next(source.open(epoch, 0))  # left in the middle
        found = [torch.cat([p.batch[: p.count] for p in ps]) for ps in source.open(epoch, start)]
        same(found, alone(keyed, epoch, start, **params))
    source.close()


def test_positions_and_indices_are_those_of_whole_batches():
    params = {"size": 10, "batch_size": 4}
    whole = source_of(keyed(**params))
    shared = source_of(keyed(**params), shares=Shares(4, 2, 3))
    assert shared.batches_per_epoch == whole.batches_per_epoch == 3
    assert [shared.indices(1, k) for k in range(3)] == [whole.indices(1, k) for k in range(3)]
    with pytest.raises(DataError, match="after batch 4 of the epoch, which has 3"):
        shared.open(0, 4)


@pytest.mark.parametrize("rank", range(3))
def test_only_what_is_this_ranks_is_fetched(rank):
    dataset = Noisy(10)
    source = source_of(
        create_dataloader(dataset, DataLoaderParams(batch_size=5)), shares=Shares(3, rank, rank + 1)
    )
    list(source.open(0, 1))
    assert dataset.asked == [[5, 6], [7, 8], [9]][rank]


def test_the_loader_by_itself_gives_whole_batches():
    loader, sampler = keyed(size=7, batch_size=3)
    source = EpochSource(loader, sampler, shares=Shares(2, 0, 1))
    expected = alone(keyed, size=7, batch_size=3)
    opened = source.open(0, 0)
    next(opened)
    same(list(loader), expected)
    same(list(EpochSource(loader, sampler).open(0)), expected)


def test_two_sources_of_a_loader_do_not_disturb_each_other():
    loaders = keyed(size=7, batch_size=3)
    first = source_of(loaders, shares=Shares(2, 0, 2))
    second = source_of(loaders, shares=Shares(3, 0, 3))
    found = []
    for pieces, others in zip(first.open(0), second.open(0), strict=True):
        found.append(torch.cat([p.batch[: p.count] for p in pieces]))
        same([torch.cat([p.batch[: p.count] for p in others])], found[-1:])
    same(found, alone(keyed, size=7, batch_size=3))


@pytest.mark.parametrize("make", [keyed, stream, stateful, stock])
def test_sharing_leaves_the_global_generators_alone(make):
    before = global_state()
    joined(make, 2, 2, size=5, batch_size=2)
    assert global_state() == before


def test_the_state_of_a_stream_counts_whole_batches():
    params = {"size": 11, "batch_size": 3}
    source = source_of(stateful(**params), shares=Shares(2, 1, 2))
    batches = source.open(0, 0)
    next(batches)
    next(batches)
    state = source.state_after(2)
    assert state["dataset"] == {"at": 6}
    resumed = source_of(stateful(**params), shares=Shares(4, 0, 4))  # on another number of ranks
    resumed.load_state(state)
    found = [torch.cat([p.batch[: p.count] for p in ps]) for ps in resumed.open(0, 2)]
    same(found, alone(stateful, 0, 2, **params))
    assert "load_state_dict" in resumed.resume_note


@pytest.mark.parametrize("make", [keyed, stream])
def test_without_sharing_every_piece_is_the_whole_batch(make):
    params = {"size": 5, "batch_size": 2, "is_distributed": False}
    expected = alone(make, **params)
    for rank in range(2):
        source = source_of(make(**params), shares=Shares.of_rank(4, rank, 2))
        for pieces, batch in zip(source.open(0), expected, strict=True):
            assert [p.index for p in pieces] == [2 * rank, 2 * rank + 1]
            assert all(torch.equal(p.batch, batch) for p in pieces)
            assert [(p.count, p.of) for p in pieces] == [(len(batch), 4 * len(batch))] * 2


@pytest.mark.parametrize("make", [list, iter])
def test_without_sharing_a_batch_may_be_anything(make):
    params = DataLoaderParams(batch_size=2, is_distributed=False)
    source = source_of(create_dataloader(make(["a", "b", "c"]), params), shares=Shares(2, 1, 2))
    pieces = [piece for pieces in source.open(0) for piece in pieces]
    assert [(p.index, p.batch, p.of / p.count) for p in pieces] == [
        (1, ["a", "b"], 2.0),
        (1, ["c"], 2.0),
    ]


def test_samples_without_tensors_are_shared_before_they_are_collated():
    source = source_of(
        create_dataloader(["a", "b", "c"], DataLoaderParams(batch_size=3)), shares=Shares(2, 0, 2)
    )
    assert [p.batch for p in next(source.open(0))] == [["a", "b"], ["c"]]


def distributed(rank, how):
    data = TensorDataset(torch.arange(8))
    if how == "params":
        sampler = ResumableDistributedSampler(data, 2, rank, shuffle=False)
        return create_dataloader(data, DataLoaderParams(batch_size=2, sampler=sampler))
    sampler = DistributedSampler(data, 2, rank, shuffle=False)
    if how == "loader":
        return DataLoader(data, 2, sampler=sampler)
    if how == "batch sampler":
        return DataLoader(data, batch_sampler=BatchSampler(sampler, 2, False))
    return list(DataLoader(data, 2, sampler=sampler)), sampler


HOW = ["params", "loader", "batch sampler", "beside"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("each", [1, 2])
def test_batches_of_a_distributed_sampler_are_this_ranks_own(how, each):
    for rank in range(2):
        loaders = distributed(rank, how)
        expected = torch.cat([rows(batch) for batch in source_of(loaders).open(0)])
        source = source_of(distributed(rank, how), shares=Shares.of_rank(2 * each, rank, 2))
        pieces = [piece for pieces in source.open(0) for piece in pieces]
        assert torch.equal(torch.cat([rows(piece.batch) for piece in pieces]), expected)
        assert [p.index for p in pieces] == [*range(each * rank, each * (rank + 1))] * 2
        assert [(p.count, p.of) for p in pieces] == [(2 // each, 4)] * len(pieces)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("shares", [Shares(2, 1, 2), Shares(4, 0, 1), Shares(4, 0, 4)])
def test_a_distributed_sampler_of_another_rank_is_refused(how, shares):
    with pytest.raises(DataError, match=r"received one of rank 0 of 2 in rank . of .; leave it"):
        source_of(distributed(0, how), shares=shares)


def test_a_distributed_sampler_of_one_rank_is_shared():
    def one(**params):
        sampler = ResumableDistributedSampler(range(7), 1, 0)
        return create_dataloader(Noisy(7), DataLoaderParams(sampler=sampler, **params), seed=7)

    same(joined(one, 4, 2, batch_size=3), alone(one, batch_size=3))


def test_batches_that_cannot_be_cut_are_refused_by_name():
    source = EpochSource(["a", "b"], shares=Shares(2, 0, 1))
    with pytest.raises(DataError, match="received a str with no tensor"):
        next(source.open(0))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_the_whole_batch(workers):
    params = DataLoaderParams(batch_size=4, num_workers=workers)
    source = source_of(create_dataloader(Failing(9, at=7), params), shares=Shares(2, 1, 2))
    with pytest.raises(ValueError, match="no such picture") as caught:
        list(source.open(1, 0))
    assert "batch 1 of epoch 1 (both from 0), of the indices [4, 5, 6, 7]" in message(caught.value)
    source.close()
