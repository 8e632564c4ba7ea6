import pytest
import torch

from helios.data import EpochSource, create_dataloader
from helios.data.params import DataLoaderParams


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def opened():
    """Make sources that are closed after the test."""
    sources = []

    def make(dataset, *, seed=7, **params):
        loader, sampler = create_dataloader(dataset, DataLoaderParams(**params), seed=seed)
        sources.append(EpochSource(loader, sampler, seed=seed))
        return sources[-1]

    yield make
    for source in sources:
        source.close()
