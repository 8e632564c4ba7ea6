"""Small models and data that the tests share."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import helios


class Line(helios.Model):
    """One linear layer: the smallest thing that trains."""

    def __init__(self, save_name="line", optimizer=None, dtype=torch.float32):
        super().__init__(save_name)
        self._make = optimizer or (lambda: helios.optim.SGD(lr=0.1))
        self._dtype = dtype

    def setup(self, fast_init=False):
        self.net = nn.Linear(3, 1, dtype=self._dtype)
        self.optimizer = self._make()

    def loss(self, batch):
        x, y = batch
        return F.mse_loss(self.net(x), y)


class Noisy(helios.Model):
    """Dropout, batch normalisation, and a reassigned buffer."""

    def __init__(self, save_name="noisy", optimizer=None):
        super().__init__(save_name)
        self._make = optimizer or (lambda: helios.optim.AdamW(lr=1e-2))

    def setup(self, fast_init=False):
        self.net = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)
        )
        self.register_buffer("seen", torch.zeros(()))
        self.optimizer = self._make()

    def loss(self, batch):
        x, y = batch
        if self.training:
            self.seen = self.seen + len(x)
        logits = self.net(x)
        accuracy = (logits.argmax(1) == y).float().mean()
        return F.cross_entropy(logits, y), {"accuracy": accuracy}


class Weighted(helios.Model):
    """A masked loss in float64 that is a sum with a weight."""

    def __init__(self, save_name="weighted", optimizer=None):
        super().__init__(save_name)
        self._make = optimizer or (lambda: helios.optim.SGD(lr=0.05, momentum=0.9))

    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.optimizer = self._make()

    def loss(self, batch):
        x, y, mask = batch
        errors = (self.net(x) - y).square().squeeze(1) * mask
        return helios.Loss(errors.sum(), weight=mask.sum())


class Adversarial(helios.Model):
    """Two objectives with a module each: a generator and a discriminator."""

    def setup(self, fast_init=False):
        self.generator = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
        self.discriminator = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.rules = helios.optim.Adam(lr=1e-2), helios.optim.Adam(lr=2e-2)

    def objectives(self):
        first, second = self.rules
        return [
            helios.Objective("critic", self.critic_loss, first, (self.discriminator,)),
            helios.Objective("forger", self.forger_loss, second, (self.generator,)),
        ]

    def critic_loss(self, batch):
        fake = self.generator(torch.randn(len(batch), 2)).detach()
        real = self.discriminator(batch)
        return F.softplus(-real).mean() + F.softplus(self.discriminator(fake)).mean()

    def forger_loss(self, batch):
        return F.softplus(-self.discriminator(self.generator(torch.randn(len(batch), 2)))).mean()


class Game(helios.Model):
    """Two objectives with a module each."""

    def setup(self, fast_init=False):
        self.one, self.two = nn.Linear(3, 1).double(), nn.Linear(1, 1).double()
        self.rules = helios.optim.Adam(lr=1e-2), helios.optim.SGD(lr=2e-2)

    def objectives(self):
        first, second = self.rules
        return [
            helios.Objective("first", self.first, first, (self.one,)),
            helios.Objective("second", self.second, second, (self.two,)),
        ]

    def first(self, batch):
        return self.two(self.one(batch[0])).square().mean()

    def second(self, batch):
        return (self.two(self.one(batch[0])) - batch[1]).square().mean()


class Augmented(torch.utils.data.Dataset):
    """Samples that draw from torch, ``random`` and numpy every time they are read."""

    def __init__(self, size=22):
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(size, 3, generator=generator)
        self.y = torch.randint(0, 2, (size,), generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = torch.randn(3) * 0.1 + random.random() * 0.1 + float(np.random.rand()) * 0.1
        return self.x[index] + noise, self.y[index]


def regression(batches: int, size: int = 4, seed: int = 0, dtype: Any = torch.float32):
    """Return batches of ``x: [size, 3]`` and ``y: [size, 1]``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, generator=generator).to(dtype),
            torch.randn(size, 1, generator=generator).to(dtype),
        )
        for _ in range(batches)
    ]


def classes(batches: int, size: int = 4, seed: int = 0):
    """Return batches of ``x: [size, 3]`` and labels ``y: [size]``."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, generator=generator),
            torch.randint(0, 2, (size,), generator=generator),
        )
        for _ in range(batches)
    ]


def batches_for(model: helios.Model, count: int, size: int = 4, seed: int = 0):
    """Return batches that fit a model of this file."""
    if isinstance(model, Noisy):
        return classes(count, size, seed)
    if isinstance(model, Adversarial):
        return [x for x, _ in regression(count, size, seed)]
    if isinstance(model, Weighted):
        generator = torch.Generator().manual_seed(seed + 1)
        batches = []
        for x, y in regression(count, size, seed, torch.float64):
            mask = (torch.rand(size, generator=generator) < 0.7).double()
            mask[0] = 1
            batches.append((x, y, mask))
        return batches
    return regression(count, size, seed)
