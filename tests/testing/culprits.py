"""Models and datasets that each break a law, or are clean."""

from __future__ import annotations

import itertools
import random

import numpy as np
import torch
from msgspec.structs import replace
from torch import nn
from torch.utils.data import Dataset

import helios


class Base(helios.Model):
    """Clean but for what a subclass does in ``touch``, which returns a factor of the loss."""

    def setup(self, fast_init=False):
        self.net = nn.Linear(3, 2)
        self.optimizer = helios.optim.AdamW(lr=1e-2)
        self.begin()

    def begin(self):
        pass

    def touch(self, batch):
        return 1.0

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1]) * self.touch(batch)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0


class Nested(Base):
    def begin(self):
        self.parts = nn.ModuleList([Part()])

    def touch(self, batch):
        self.parts[0].calls += 1
        return 1.0


class Counting(Base):
    def begin(self):
        self.count = 0

    def touch(self, batch):
        self.count += 1
        return 1.0 / self.count


class Hoarding(Base):
    def begin(self):
        self.seen = {"losses": []}

    def touch(self, batch):
        self.seen["losses"].append(len(batch))
        return 1.0


class Lazy(Base):
    def touch(self, batch):
        if not hasattr(self, "scale"):
            self.scale = torch.full((3,), 2.0)
        return self.scale[0]


class Averaging(Base):
    def begin(self):
        self.mean = torch.zeros(3)

    def touch(self, batch):
        self.mean.mul_(0.9).add_(batch[0].mean(0), alpha=0.1)
        return 1 + self.mean.square().sum()


class Buffered(Averaging):
    def begin(self):
        self.register_buffer("mean", torch.zeros(3))


class OwnGenerator(Base):
    def begin(self):
        self.rng = torch.Generator().manual_seed(1)

    def touch(self, batch):
        return torch.rand((), generator=self.rng)


class NumpyGenerator(Base):
    def begin(self):
        self.rng = np.random.default_rng(1)

    def touch(self, batch):
        return float(self.rng.random())


class PythonRandom(Base):
    def touch(self, batch):
        return random.random()


class NumpyRandom(Base):
    def touch(self, batch):
        return float(np.random.rand())


class InPlace(Base):
    def loss(self, batch):
        batch[0].add_(1)
        return super().loss(batch)


class Thawing(Base):
    def begin(self):
        self.net.bias.requires_grad_(False)
        self.extra = nn.Parameter(torch.zeros(2), requires_grad=False)

    def touch(self, batch):
        self.extra.requires_grad_(True)
        return 1.0


class OfTheClass(Base):
    calls = 0

    def touch(self, batch):
        OfTheClass.calls += 1
        return 1.0


class GlobalClock(Base):
    ticks = staticmethod(itertools.count(1).__next__)

    def touch(self, batch):
        return 1.0 / self.ticks()


class UnseededSetup(Base):
    made = itertools.count(1)

    def begin(self):
        with torch.no_grad():
            self.net.bias.fill_(float(next(UnseededSetup.made)))


class NumpySetup(Base):
    """A trainer seeds numpy before ``setup``: that is allowed."""

    def begin(self):
        with torch.no_grad():
            self.net.bias.fill_(float(np.random.rand()))


class Aliasing(Base):
    """Keeps the weights of its start without a copy: a donated step overwrites them."""

    def begin(self):
        self.old = None

    def touch(self, batch):
        if self.old is None:
            self.old = self.net.weight.detach()
        return 1 + (self.net.weight - self.old).square().sum()


class OwnCarry(helios.Model):
    def setup(self, fast_init=False):
        pass

    def init_carry(self):
        return {"mean": torch.zeros(3), "seen": 0}

    def step(self, state, batch):
        seen = state.carry["seen"] + len(batch[0])
        mean = state.carry["mean"] + (batch[0] - state.carry["mean"]).sum(0) / seen
        return replace(state, carry={"mean": mean, "seen": seen})


class UnwritableCarry(OwnCarry):
    def step(self, state, batch):
        return replace(state, carry={"kept": {1, 2}})


class Remembering(Dataset):
    """Each sample depends on how many were fetched before."""

    def __init__(self):
        self.fetched = 0

    def __len__(self):
        return 24

    def __getitem__(self, index):
        self.fetched += 1
        return torch.full((3,), float(self.fetched)), torch.tensor(index % 2)


class Knowing(Dataset):
    """Each sample depends on whether a worker fetches it."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        worker = torch.utils.data.get_worker_info()
        return torch.full((3,), 0.0 if worker is None else 1.0), torch.tensor(index % 2)


class First(helios.Model):
    """Takes the batches of the samples of tests/data."""

    def setup(self, fast_init=False):
        self.net = nn.Linear(1, 1)
        self.optimizer = helios.optim.SGD(lr=1e-3)

    def loss(self, batch):
        return self.net(batch[:, :1].float()).square().mean()
