import pytest
import torch

from helios.data import (
    SAMPLER_REGISTRY,
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
    create_sampler,
)
from helios.errors import DataError, RegistryError


def test_start_iter_counts_batches():
    sampler = ResumableSequentialSampler(range(7), batch_size=2)
    sampler.start_iter = 2
    assert list(sampler) == [4, 5, 6]


@pytest.mark.parametrize(
    "sampler",
    [
        ResumableRandomSampler(range(7), batch_size=2),
        ResumableSequentialSampler(range(7), batch_size=2),
        ResumableDistributedSampler(range(7), 2, 1, batch_size=2),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_start_iter_is_used_once(sampler):
    whole = list(sampler)
    sampler.start_iter = 1
    assert list(sampler) == whole[2:]
    assert sampler.start_iter == 0
    assert list(sampler) == whole


def test_start_iter_outlives_an_iterator_that_is_not_used():
    sampler = ResumableSequentialSampler(range(4))
    sampler.start_iter = 2
    iter(sampler)
    assert list(iter(sampler)) == [2, 3]


def test_epochs_differ():
    sampler = ResumableRandomSampler(range(50))
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_seeds_differ():
    orders = [list(ResumableRandomSampler(range(50), seed=seed)) for seed in (1, 2)]
    assert orders[0] != orders[1]


def test_an_epoch_is_the_same_in_another_sampler():
    samplers = [ResumableRandomSampler(range(50), seed=3) for _ in range(2)]
    for sampler in samplers:
        sampler.set_epoch(4)
    assert list(samplers[0]) == list(samplers[1])


def test_the_epoch_of_an_iterator_is_that_of_its_making():
    sampler = ResumableRandomSampler(range(20))
    expected, iterator = list(sampler), iter(sampler)
    sampler.set_epoch(1)
    assert list(iterator) == expected


def test_len_does_not_depend_on_the_start():
    sampler = ResumableSequentialSampler(range(7), batch_size=2)
    sampler.start_iter = 2
    assert len(sampler) == 7


def test_a_large_order_is_whole():
    size = (1 << 16) + 3
    assert sorted(ResumableRandomSampler(range(size))) == list(range(size))


def test_the_global_generator_is_not_drawn_from():
    before = torch.get_rng_state()
    list(ResumableRandomSampler(range(9)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_subclass_says_its_indices_only():
    class Backwards(ResumableSampler):
        def __len__(self):
            return 5

        def indices(self, epoch, start):
            return range(4 - start * self.batch_size, -1, -1)

    sampler = Backwards(2)
    sampler.start_iter = 1
    assert (list(sampler), list(sampler)) == ([2, 1, 0], [4, 3, 2, 1, 0])


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (8, [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (5, [[0, 1, 4], [2, 3, 0]]),
        (7, [[0, 1, 4, 5], [2, 3, 6, 0]]),
        (1, [[0], [0]]),
        (0, [[], []]),
    ],
)
def test_ranks_take_their_parts_of_each_global_batch(size, parts):
    samplers = [
        ResumableDistributedSampler(range(size), 2, rank, shuffle=False, batch_size=2)
        for rank in range(2)
    ]
    assert [list(sampler) for sampler in samplers] == parts


def test_more_ranks_than_samples_wrap_more_than_once():
    parts = [
        list(ResumableDistributedSampler(range(2), 5, rank, shuffle=False)) for rank in range(5)
    ]
    assert parts == [[0], [1], [0], [1], [0]]


def test_padding_counts_the_samples_that_stand_twice():
    assert ResumableDistributedSampler(range(5), 4, 0).padding == 3
    assert ResumableDistributedSampler(range(5), 4, 0, drop_last=True).padding == 0


def test_drop_last_leaves_out_what_cannot_be_shared():
    parts = [
        list(ResumableDistributedSampler(range(7), 2, r, shuffle=False, drop_last=True))
        for r in range(2)
    ]
    assert parts == [[0, 2, 4], [1, 3, 5]]


def test_ranks_are_needed_without_a_process_group():
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised"):
        ResumableDistributedSampler(range(4))


def test_rank_and_size_come_from_the_process_group(tmp_path):
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{tmp_path}/g", rank=0, world_size=1)
    try:
        assert list(ResumableDistributedSampler(range(3), shuffle=False)) == [0, 1, 2]
    finally:
        group.destroy_process_group()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_replicas": 2, "rank": 2}, ValueError, "rank: received 2 with num_replicas 2"),
        ({"num_replicas": 0, "rank": 0}, ValueError, "num_replicas: received 0"),
        ({"num_replicas": 2, "rank": True}, TypeError, "rank: received True"),
        ({"num_replicas": 1, "rank": 0, "batch_size": 0}, ValueError, "batch_size: received 0"),
        ({"num_replicas": 1, "rank": 0, "shuffle": 1}, TypeError, "shuffle: received 1"),
    ],
)
def test_arguments_are_checked(arguments, error, text):
    with pytest.raises(error, match=text):
        ResumableDistributedSampler(range(4), **arguments)


def test_positions_are_checked():
    sampler = ResumableSequentialSampler(range(4))
    with pytest.raises(ValueError, match="start_iter: received -1"):
        sampler.start_iter = -1
    with pytest.raises(TypeError, match="epoch: received"):
        sampler.set_epoch(1.5)


def test_a_dataset_needs_a_length():
    with pytest.raises(DataError, match="generator, has no length"):
        ResumableRandomSampler(i for i in range(3))


def test_samplers_are_registered():
    assert "ResumableDistributedSampler" in SAMPLER_REGISTRY
    assert isinstance(create_sampler("ResumableRandomSampler", [1]), ResumableRandomSampler)
    with pytest.raises(RegistryError):
        create_sampler("Nothing", [1])
