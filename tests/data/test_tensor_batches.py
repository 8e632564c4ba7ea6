import pytest
import torch
from torch.utils.data import Subset, TensorDataset, default_collate

from helios.data import DataLoaderParams, create_dataloader
from helios.data.batches import BatchIndices
from helios.data.keyed import KeyedDataset, TensorBatches, can_be_cut
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


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("indices", [[2, 0, 8, 2], [5], [-1, 3]])
def test_a_cut_batch_is_the_collated_one(name, indices):
    dataset = DATASETS[name]
    assert can_be_cut(dataset)
    cut = TensorBatches(dataset).__getitems__(BatchIndices(0, indices))
    expected = default_collate([dataset[index] for index in indices])
    assert type(cut) is type(expected)
    for one, other in zip(cut, expected, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert one.view(torch.uint8).equal(other.view(torch.uint8)) or one.numel() == 0


def test_a_cut_batch_shares_no_storage():
    dataset = TensorDataset(torch.zeros(4, 2))
    TensorBatches(dataset).__getitems__(BatchIndices(0, [0, 1]))[0].fill_(1)
    assert dataset.tensors[0].sum() == 0


@pytest.mark.parametrize(
    "dataset",
    [
        Subset(DATASETS["two"], [0]),
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


def test_an_index_out_of_range_is_named():
    loader, _ = create_dataloader(DATASETS["two"], DataLoaderParams(sampler=[3, 12], batch_size=2))
    with pytest.raises(IndexError) as caught:
        list(loader)
    assert "[3, 12]" in caught.value.__notes__[0]
