"""Data: loaders whose position is an integer and whose randomness is a function of it."""

from helios.data.datamodule import DataModule, Dataset, DatasetSplit
from helios.data.device import move_to_device, mover
from helios.data.distributed import ResumableDistributedSampler
from helios.data.given import from_datasets
from helios.data.loader import (
    COLLATE_FN_REGISTRY,
    DATASET_REGISTRY,
    create_dataloader,
    create_dataset,
)
from helios.data.params import DataLoaderParams
from helios.data.permutation import ResumablePermutationSampler, permuted
from helios.data.samplers import (
    SAMPLER_REGISTRY,
    ResumableRandomSampler,
    ResumableSampler,
    ResumableSequentialSampler,
    create_sampler,
)
from helios.data.source import EpochSource, source_of

__all__ = [
    "DataModule",
    "from_datasets",
    "DataLoaderParams",
    "Dataset",
    "DatasetSplit",
    "create_dataset",
    "create_dataloader",
    "create_sampler",
    "DATASET_REGISTRY",
    "SAMPLER_REGISTRY",
    "COLLATE_FN_REGISTRY",
    "ResumableSampler",
    "ResumableRandomSampler",
    "ResumableSequentialSampler",
    "ResumableDistributedSampler",
    "ResumablePermutationSampler",
    "permuted",
    "EpochSource",
    "source_of",
    "move_to_device",
    "mover",
]
