"""Which samples a batch is of can be asked without fetching it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, SequentialSampler

from helios.data import DataLoaderParams, EpochSource, create_dataloader


def source(dataset=range(10), **params):
    return EpochSource(*create_dataloader(dataset, DataLoaderParams(batch_size=3, **params)))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_they_are_those_that_are_fetched(shuffle, drop_last):
    asked = source(shuffle=shuffle, drop_last=drop_last)
    for epoch in range(2):
        fetched = [batch.tolist() for batch in asked.open(epoch)]
        assert [asked.indices(epoch, k) for k in range(len(fetched))] == fetched


def test_asking_changes_nothing_of_what_is_open():
    quiet, asked = source(shuffle=True), source(shuffle=True)
    batches = []
    for batch in asked.open(1):
        asked.indices(0, 2)
        batches.append(batch.tolist())
    assert batches == [batch.tolist() for batch in quiet.open(1)]


def test_nothing_is_fetched():
    class Unreadable:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            raise AssertionError(index)

    assert source(Unreadable()).indices(0, 3) == [9]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(range(10))


@pytest.mark.parametrize(
    "unknown",
    [
        lambda: source(Stream()),
        lambda: source(sampler=SequentialSampler(range(10))),
        lambda: EpochSource(DataLoader(range(10), batch_size=3)),
        lambda: EpochSource([1, 2, 3]),
    ],
)
def test_where_nobody_can_tell_there_are_none(unknown):
    assert unknown().indices(0, 0) is None
