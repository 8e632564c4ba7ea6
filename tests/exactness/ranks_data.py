"""Data for runs on several ranks: every sample says which it is, and is augmented at random."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import helios


def sample(index):
    """Return a sample with noise of all three generators: its index, x, y, and a mask."""
    generator = torch.Generator().manual_seed(1000 + index)
    x = torch.randn(3, generator=generator, dtype=torch.float64)
    y = torch.randn(1, generator=generator, dtype=torch.float64)
    mask = (torch.rand((), generator=generator) < 0.7).double()
    noise = torch.randn(3).double() + random.random() + float(np.random.rand())
    return torch.tensor(index), x + 0.1 * noise, y, mask


class Indexed(Dataset):
    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return sample(index)


class Stream(IterableDataset):
    """No length, and no state: a resume reads it from the start."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return map(sample, range(self.size))


class Resumable(IterableDataset):
    """No length, and a state that says where it is."""

    def __init__(self, size):
        self.size = size
        self.at = 0

    def __iter__(self):
        while self.at < self.size:
            self.at += 1
            yield sample(self.at - 1)
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Data(helios.DataModule):
    """Training data of one kind, and validation data that is keyed."""

    def __init__(self, kind="indexed", samples=11, batch=4, workers=0, drop_last=False, valid=0):
        self.kind = kind
        self.samples = samples
        self.params = {"batch_size": batch, "num_workers": workers, "drop_last": drop_last}
        self.valid = valid

    def setup(self):
        if self.kind == "indexed":
            params = {**self.params, "shuffle": True}
            self._train_dataset = self._create_dataset(Indexed(self.samples), params)
        elif self.kind in ("stream", "resumable"):
            make = Stream if self.kind == "stream" else Resumable
            self._train_dataset = self._create_dataset(make(self.samples), self.params)
        if self.valid:
            params = {"batch_size": self.params["batch_size"]}
            self._valid_dataset = self._create_dataset(Indexed(self.valid), params)
            self._test_dataset = self._create_dataset(Indexed(self.valid + 1), params)

    def train_dataloader(self):
        if self.kind == "own":
            return DataLoader(Indexed(self.samples), shuffle=True, **self.params)
        return super().train_dataloader()
