"""Datasets that the tests of helios.data fetch from."""

import hashlib
import random

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset


class Noisy(Dataset):
    """Draws from every global generator; keeps the indices it was asked for."""

    def __init__(self, size):
        self.size = size
        self.asked = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.asked.append(index)
        draws = [float(torch.rand(())), random.random(), np.random.rand(), random.gauss(0, 1)]
        return torch.tensor([index, *draws, np.random.standard_normal()], dtype=torch.float64)


class NoisyStream(IterableDataset):
    """A stream without a state."""

    def __init__(self, size):
        self.size = size
        self.given = 0

    def __iter__(self):
        for number in range(self.size):
            self.given += 1
            yield torch.tensor([number, float(torch.rand(())), random.random(), np.random.rand()])


class StatefulStream(IterableDataset):
    """A stream that can say and restore where it is."""

    def __init__(self, size):
        self.size = size
        self.at = 0
        self.given = []

    def __iter__(self):
        while self.at < self.size:
            self.at += 1
            self.given.append(self.at - 1)
            yield torch.tensor([self.at - 1, float(torch.rand(())), random.random()])
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Failing(Dataset):
    """Fails at one index."""

    def __init__(self, size, at, error=ValueError):
        self.size, self.at, self.error = size, at, error

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index == self.at:
            raise self.error("no such picture")
        return index


def digest(batches):
    """Hash batches of tensors, one hash each."""
    return [hashlib.sha256(batch.numpy().tobytes()).hexdigest()[:12] for batch in batches]


def global_state():
    """Return the states of the three global generators, comparable."""
    kind, words, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), (kind, words.tolist(), rest)


def message(error):
    """Return an exception's text with its notes."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])
