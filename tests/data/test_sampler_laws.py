"""Laws: a start drops whole batches; ranks share the batches of one; an epoch is a permutation."""

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from helios.data import (
    ResumableDistributedSampler,
    ResumablePermutationSampler,
    ResumableRandomSampler,
    ResumableSequentialSampler,
)
from helios.data.batches import KeyedBatchSampler

sizes = st.integers(0, 60)
batch_sizes = st.integers(1, 9)
epochs = st.integers(0, 5)
seeds = st.integers(-(2**63), 2**63 - 1)


def batches(sampler, batch_size, drop_last, epoch, start=0):
    plan = KeyedBatchSampler(sampler, batch_size, drop_last, seed=0)
    plan.seek(epoch, start)
    return [batch.indices for batch in plan]


@settings(deadline=None)
@given(sizes, batch_sizes, epochs, seeds, st.booleans(), st.integers(0, 70), st.integers(0, 4))
def test_a_start_drops_whole_batches(size, batch_size, epoch, seed, drop_last, start, kind):
    def sampler():
        return [
            ResumableRandomSampler(range(size), seed=seed, batch_size=batch_size),
            ResumableSequentialSampler(range(size), batch_size=batch_size),
            ResumableDistributedSampler(
                range(size), 3, 1, seed=seed, drop_last=drop_last, batch_size=batch_size
            ),
            ResumablePermutationSampler(range(size), seed=seed, batch_size=batch_size),
            list(range(size)),
        ][kind]

    whole = batches(sampler(), batch_size, drop_last, epoch)
    assert batches(sampler(), batch_size, drop_last, epoch, start) == whole[start:]
    assert len(KeyedBatchSampler(sampler(), batch_size, drop_last, seed=0)) == len(whole)


@settings(deadline=None)
@given(sizes, epochs, seeds, st.sampled_from([ResumableRandomSampler, ResumablePermutationSampler]))
def test_an_epoch_is_a_permutation(size, epoch, seed, kind):
    sampler = kind(range(size), seed=seed)
    sampler.set_epoch(epoch)
    assert sorted(sampler) == list(range(size))


@settings(deadline=None)
@given(sizes, st.integers(1, 4), st.sampled_from([1, 2, 4]), epochs, seeds, st.booleans())
def test_ranks_share_the_global_batches(size, share, world, epoch, seed, drop_last):
    batch_size = 4 * share
    one = ResumableRandomSampler(range(size), seed=seed, batch_size=batch_size)
    ranks = [
        ResumableDistributedSampler(
            range(size), world, r, seed=seed, drop_last=drop_last, batch_size=batch_size // world
        )
        for r in range(world)
    ]
    expected = batches(one, batch_size, drop_last, epoch)
    shares = [batches(sampler, batch_size // world, drop_last, epoch) for sampler in ranks]
    joined = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    assert len(joined) == len(expected)
    assert [batch[: len(e)] for batch, e in zip(joined, expected, strict=True)] == expected
    assert sum(map(len, joined)) - sum(map(len, expected)) <= world - 1
