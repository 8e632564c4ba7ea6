import pytest
import torch
from torch.utils.data import Dataset

from helios.data import (
    COLLATE_FN_REGISTRY,
    DATASET_REGISTRY,
    SAMPLER_REGISTRY,
    DataLoaderParams,
    ResumableDistributedSampler,
    ResumableRandomSampler,
    ResumableSequentialSampler,
    create_dataloader,
    create_dataset,
)
from helios.errors import DataError, RegistryError
from tests.data.samples import Noisy, digest, global_state


def make(dataset=range(6), seed=7, **params):
    return create_dataloader(dataset, DataLoaderParams(**params), seed=seed)


def flat(loader):
    return torch.cat(list(loader)).tolist()


@DATASET_REGISTRY.register
class LetterDataset(list):
    pass


@COLLATE_FN_REGISTRY.register
def join_samples(samples):
    return "".join(samples)


@SAMPLER_REGISTRY.register
class EverySampler(list):
    def __init__(self, dataset, step=1):
        super().__init__(range(0, len(dataset), step))


def test_datasets_are_made_by_name():
    assert create_dataset("LetterDataset", "ab") == ["a", "b"]
    with pytest.raises(RegistryError):
        create_dataset("NoSuchDataset")


def test_collate_functions_are_found_by_name():
    loader, _ = make(["a", "b", "c"], collate_fn="join_samples", batch_size=2)
    assert list(loader) == ["ab", "c"]


def test_samplers_are_made_by_name():
    assert flat(make(sampler="EverySampler")[0]) == [0, 1, 2, 3, 4, 5]


def test_named_samplers_take_arguments():
    assert flat(make(sampler=("EverySampler", {"step": 2}))[0]) == [0, 2, 4]


def test_named_samplers_of_ours_take_over_seed_and_batch_size():
    loader, sampler = make(sampler="ResumableRandomSampler", batch_size=2, seed=9)
    assert (sampler.seed, sampler.batch_size) == (9, 2)
    assert flat(loader) == flat(make(shuffle=True, batch_size=2, seed=9)[0])


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({}, ResumableSequentialSampler),
        ({"shuffle": True}, ResumableRandomSampler),
        ({"sampler": [1, 2], "shuffle": True}, list),
    ],
)
def test_the_sampler_follows_from_the_params(params, kind):
    assert type(make(**params)[1]) is kind


def test_a_distributed_loader_takes_the_rank_of_the_group(tmp_path):
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{tmp_path}/g", rank=0, world_size=1)
    try:
        loader, sampler = make(is_distributed=True, shuffle=True)
        assert type(sampler) is ResumableDistributedSampler
        assert flat(loader) == flat(make(shuffle=True)[0])
        assert type(make()[1]) is ResumableSequentialSampler
    finally:
        group.destroy_process_group()


def test_the_seed_of_the_params_comes_before_that_of_the_run():
    orders = [flat(make(range(50), seed=s, shuffle=True, random_seed=3)[0]) for s in (1, 2)]
    assert orders[0] == orders[1] == flat(make(range(50), seed=3, shuffle=True)[0])


def test_the_seed_of_the_run_governs_the_order():
    orders = [flat(make(range(50), seed=s, shuffle=True)[0]) for s in (1, 2)]
    assert orders[0] != orders[1]


def test_a_sampler_of_another_batch_size_is_refused():
    with pytest.raises(ValueError, match="the loader has 4 but its ResumableRandomSampler was"):
        make(sampler=ResumableRandomSampler(range(6), batch_size=2), batch_size=4)


def test_a_sampler_without_a_batch_size_takes_the_loaders():
    sampler = ResumableSequentialSampler(range(6))
    loader, _ = make(sampler=sampler, batch_size=2)
    sampler.start_iter = 1
    assert flat(loader) == [2, 3, 4, 5]


@pytest.mark.parametrize(("drop_last", "length"), [(True, 1), (False, 2)])
def test_the_length_is_in_batches(drop_last, length):
    loader, _ = make(batch_size=4, drop_last=drop_last)
    assert len(loader) == len(list(loader)) == length


def test_the_default_seed_and_params_do():
    loader, _ = create_dataloader(range(2))
    assert flat(loader) == [0, 1]


def test_making_a_loader_leaves_the_global_generators_alone():
    before = global_state()
    make(Noisy(4), shuffle=True, num_workers=2)
    assert global_state() == before


def test_options_for_workers_mean_nothing_without():
    loader, _ = make(Noisy(4), prefetch_factor=3, persistent_workers=True)
    assert digest(loader) == digest(make(Noisy(4))[0])


def test_workers_are_kept_by_default():
    assert make(num_workers=1)[0].persistent_workers
    assert not make(num_workers=1, persistent_workers=False)[0].persistent_workers


def test_memory_is_pinned_where_there_is_an_accelerator():
    assert make(pin_memory=True)[0].pin_memory is torch.accelerator.is_available()


def test_a_dataset_needs_a_length():
    class Endless(Dataset):
        def __getitem__(self, index):
            return index

    with pytest.raises(DataError, match="the dataset, a Endless, has no length"):
        make(Endless())


@pytest.mark.parametrize("params", [{"shuffle": True}, {"sampler": [1]}])
def test_an_iterable_dataset_has_its_own_order(params):
    with pytest.raises(ValueError, match="which can only be iterated"):
        make(iter(range(3)), **params)


def test_the_seed_is_checked():
    with pytest.raises(TypeError, match="seed: received None"):
        make(seed=None)
