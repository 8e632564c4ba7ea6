import copy
import gc
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    ConcatDataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from helios.data import DataLoaderParams, EpochSource, create_dataloader
from helios.data.batches import BatchIndices
from helios.data.cutting import TensorBatches, can_be_cut
from helios.data.keyed import KeyedDataset
from helios.errors import DataError
from tests.data.samples import Noisy

DATASETS = {
    "two": TensorDataset(torch.randn(9, 3), torch.arange(9)),
    "scalars": TensorDataset(torch.randn(9)),
    "pictures": TensorDataset(torch.randn(9, 3, 4, 5).to(memory_format=torch.channels_last)),
    "transposed": TensorDataset(torch.randn(4, 9).t(), torch.randn(5, 3, 9).permute(2, 0, 1)),
    "expanded": TensorDataset(torch.randn(1, 4).expand(9, 4)),
    "strided": TensorDataset(torch.randn(18, 4)[::2]),
    "half": TensorDataset(torch.randn(9, 2).bfloat16(), torch.randn(9, 2).half()),
    "odd": TensorDataset(torch.randn(9, 2, dtype=torch.complex64), torch.rand(9) > 0.5),
    "bytes": TensorDataset(torch.randint(0, 255, (9, 2), dtype=torch.uint8)),
    "empty rows": TensorDataset(torch.zeros(9, 0)),
    "nan": TensorDataset(torch.tensor([float("nan"), -0.0, float("inf")] * 3)),
}


two = DATASETS["two"]
MADE_OF_TENSORS = {
    **DATASETS,
    "a tensor": torch.randn(9, 3),
    "subset": Subset(two, [8, 0, -1, 3, 3, 1, 2, 5, 4]),
    "part in a row": Subset(two, range(9)),
    "every other": Subset(ConcatDataset([two, two]), range(17, -1, -2)),
    "of an array": Subset(two, np.array([8, 0, 1, 2, 3, 4, 5, 6, 7], dtype=np.int32)),
    "of numpy's ints": Subset(two, list(np.arange(9))),
    "of a tensor": Subset(two, torch.arange(9).flip(0)),
    "split": random_split(ConcatDataset([two] * 2), [9, 9])[1],
    "parts": ConcatDataset([Subset(two, [4, 2]), Subset(two, []), Subset(two, range(7))]),
    "one part": ConcatDataset([two]),
    "tuple": StackDataset(two, Subset(DATASETS["pictures"], range(9))),
    "named": StackDataset(x=torch.randn(9, 2), y=ConcatDataset([two]), z=torch.arange(9)),
    "nested": ConcatDataset(
        [
            StackDataset(x=two, y=torch.zeros(9, 2)),
            Subset(StackDataset(x=two, y=torch.ones(9, 2)), [0, 5]),
        ]
    ),
}


def same(one, other):
    """Tell whether two batches have the same structure, bits, shapes and strides."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if (one.dtype, one.shape, one.stride()) != (other.dtype, other.shape, other.stride()):
        return False
    return one.numel() == 0 or one.view(torch.uint8).equal(other.view(torch.uint8))


@pytest.mark.parametrize("name", MADE_OF_TENSORS)
@pytest.mark.parametrize(
    "indices",
    [[2, 0, 8, 2], [5], [-1, 3], range(4), range(6, 9), range(1, 9), torch.tensor([7, 1, 1])],
    ids=str,
)
def test_a_cut_batch_is_the_collated_one(name, indices):
    dataset = MADE_OF_TENSORS[name]
    assert can_be_cut(dataset)
    cut = TensorBatches(dataset).__getitems__(BatchIndices(0, indices))
    assert same(cut, default_collate([dataset[int(index)] for index in indices]))


@st.composite
def datasets(draw, depth=3):
    """Datasets of at least one sample, all of whose samples are alike."""
    columns = draw(st.integers(0, 2))
    stacked = draw(st.sampled_from([None, tuple, dict]))

    def whole(level):
        kind = draw(st.sampled_from(["tensors", "subset", "concat"])) if level else "tensors"
        if kind == "subset":
            inner = whole(level - 1)
            places = st.integers(-len(inner), len(inner) - 1)
            return Subset(inner, draw(st.lists(places, min_size=1, max_size=9)))
        if kind == "concat":
            return ConcatDataset([whole(level - 1) for _ in range(draw(st.integers(1, 3)))])
        rows = draw(st.integers(1, 5))
        leaf = torch.randn(rows, 2)
        plain = leaf if columns == 0 else TensorDataset(*[leaf + i for i in range(columns)])
        if stacked is None:
            return plain
        return StackDataset(plain, leaf) if stacked is tuple else StackDataset(a=plain, b=leaf)

    return whole(depth)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_loaders_give_the_batches_of_the_samples_for_any_nesting(data):
    dataset = data.draw(datasets())
    params = DataLoaderParams(
        batch_size=data.draw(st.integers(1, 4)), shuffle=data.draw(st.booleans())
    )
    loader, sampler = create_dataloader(dataset, params)
    assert type(loader.dataset) is TensorBatches
    order = list(sampler)
    cuts = [
        order[first : first + params.batch_size]
        for first in range(0, len(order), params.batch_size)
    ]
    expected = [default_collate([dataset[index] for index in indices]) for indices in cuts]
    for found in (list(loader), list(EpochSource(loader, sampler).open(0))):
        assert len(found) == len(expected)
        assert all(map(same, found, expected))


@pytest.mark.parametrize("indices", [[0, 1], range(2), torch.tensor([0, 1])], ids=str)
def test_a_cut_batch_shares_no_storage(indices):
    dataset = TensorDataset(torch.zeros(4, 2))
    TensorBatches(dataset).__getitems__(BatchIndices(0, indices))[0].fill_(1)
    assert dataset.tensors[0].sum() == 0


@pytest.mark.parametrize(
    "dataset",
    [
        Subset(Noisy(3), [0]),
        Subset(two, ["a"]),
        Subset(two, [True]),
        Subset(two, {0: 1}),
        ConcatDataset([two, Noisy(3)]),
        ConcatDataset([two, TensorDataset(torch.zeros(2, 3))]),
        ConcatDataset([torch.zeros(2), torch.zeros(2, dtype=torch.int64)]),
        StackDataset(two, [0] * 9),
        torch.zeros(()),
        Noisy(3),
        [1, 2],
        TensorDataset(torch.zeros(0, 2)),
        TensorDataset(torch.eye(3).to_sparse()),
    ],
)
def test_other_datasets_are_not_cut(dataset):
    assert not can_be_cut(dataset)


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({}, TensorBatches),
        ({"num_workers": 2}, KeyedDataset),
        ({"num_workers": 2, "debug_mode": True}, TensorBatches),
        ({"collate_fn": list}, KeyedDataset),
    ],
)
def test_batches_are_cut_in_the_main_process_only(params, kind):
    loader, _ = create_dataloader(DATASETS["two"], DataLoaderParams(**params))
    assert type(loader.dataset) is kind


@pytest.mark.parametrize("name", ["two", "a tensor", "subset", "part in a row", "parts", "tuple"])
@pytest.mark.parametrize("indices", [[3, 12], range(3, 13), torch.tensor([3, 12])], ids=str)
def test_an_index_out_of_range_is_named(name, indices):
    with pytest.raises(IndexError) as caught:
        TensorBatches(MADE_OF_TENSORS[name]).__getitems__(BatchIndices(2, indices))
    named = list(indices) if type(indices) is range else [3, 12]
    assert caught.value.__notes__ == [f"raised by dataset[{named}] in epoch 2 (from 0)"]


def test_anything_else_than_tensors_is_refused():
    with pytest.raises(DataError, match="received a list; expected tensors"):
        TensorBatches([1, 2]).__getitems__(BatchIndices(0, [0]))


def test_what_is_changed_between_epochs_counts():
    dataset = Subset(TensorDataset(torch.arange(9)), [0, 1])
    source = EpochSource(*create_dataloader(dataset, DataLoaderParams(batch_size=2)))
    assert [batch[0].tolist() for batch in source.open(0)] == [[0, 1]]
    dataset.indices[:] = [5, 4]
    dataset.dataset.tensors = (torch.arange(10, 19),)
    assert [batch[0].tolist() for batch in source.open(0)] == [[15, 14]]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_cuts_tensors_of_its_own(copied):
    whole = TensorBatches(TensorDataset(torch.zeros(3)))
    whole.__getitems__(BatchIndices(0, [0]))
    other = copied(whole)
    whole.dataset.tensors[0].fill_(1)
    assert other.__getitems__(BatchIndices(0, [0]))[0].tolist() == [0]


def test_a_source_begins_no_iteration_of_the_loader():
    source = EpochSource(*create_dataloader(two, DataLoaderParams(batch_size=2)))
    batches = source.open(0)
    next(batches)
    gc.collect()
    assert not any(issubclass(type(found), _BaseDataLoaderIter) for found in gc.get_objects())


def test_a_collate_fn_that_the_loader_is_given_later_is_used():
    loader, sampler = create_dataloader(two, DataLoaderParams(batch_size=2))
    loader.collate_fn = lambda batch: {"x": batch[0]}
    assert [list(batch) for batch in EpochSource(loader, sampler).open(0)] == [["x"]] * 5
