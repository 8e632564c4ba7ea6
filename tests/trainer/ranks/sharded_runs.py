"""Small models, sharded over ranks and driven by hand; what they come to is compared with one."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import helios
from helios.data.pieces import cut
from helios.functional.schedule import Plan
from helios.functional.serial import from_bytes, to_bytes
from helios.functional.share import Shares
from helios.functional.tree import flatten
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.ranks.fsdp import FSDP, FSDPEngine, shard
from helios.trainer.ranks.group import Ranks
from tests import zoo

SIZES = [7, 12, 1, 5, 9, 3, 16, 2, 8, 11, 6, 4]
"""Samples of the micro-batches; some leave ranks with nothing but padding."""


class Mean(helios.Model):
    """A mean loss in float64, with a parameter of the model itself, and buffers of both kinds."""

    lr = 1e-2

    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
        self.gain = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.full((), 0.5, dtype=torch.float64))
        self.optimizer = helios.optim.AdamW(lr=self.lr)
        self.average = helios.optim.average(0.9)
        self.calls = 0

    def loss(self, batch):
        self.calls += 1
        self.seen = self.seen + 1
        x, y, _ = batch
        out = self.net(x * self.gain[0]) + self.gain[1]
        return self.scale * F.mse_loss(out, y), {"size": (x * 0).mean() + 1}


class Weighted(Mean):
    """A loss that is a sum, some samples masked."""

    def loss(self, batch):
        x, y, mask = batch
        losses = (self.net(x * self.gain[0]) - y).square()[:, 0]
        return helios.Loss((losses * mask).sum(), weight=mask.sum())


class Dropped(Mean):
    def loss(self, batch):
        x, y, _ = batch
        return F.mse_loss(self.net(F.dropout(x, 0.3)), y)


class Clipped(Mean):
    norm = 2.0

    def setup(self, fast_init=False):
        super().setup()
        self.optimizer = helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(0.05, self.norm),
            sgd=helios.optim.SGD(lr=0.1, momentum=0.9),
        )


class ClippedByMaximum(Clipped):
    norm = float("inf")


class Tied(Mean):
    def setup(self, fast_init=False):
        super().setup()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1))
        self.net.double()
        self.net[2].weight = self.net[0].weight


class Lazy(Mean):
    """One layer takes part from a micro-batch on; weight decay would move it before."""

    def setup(self, fast_init=False):
        super().setup()
        self.other = nn.Linear(3, 1).double()

    def takes_part(self):
        return self.calls > 3

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        return (loss + self.other(batch[0]).square().mean() if self.takes_part() else loss), metrics


class LazyByRank(Lazy):
    def takes_part(self):
        return dist.get_rank() == 1


class Frozen(Mean):
    def setup(self, fast_init=False):
        super().setup()
        self.net[0].weight.requires_grad_(False)


class Float(Mean):
    def setup(self, fast_init=False):
        super().setup()
        self.float()

    def loss(self, batch):
        return super().loss([part.float() for part in batch])


class Scaled(Float):
    """Gradients that overflow at the first scale, in a row that only rank 0 has."""

    precision = helios.Policy(loss_scale=helios.LossScale(2.0**127))

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        return loss + 100 * self.gain[0], metrics


class PoisonedLoss(Mean):
    """The loss of the third micro-batch is infinite on one rank; its gradient is not."""

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        if self.calls == 3 and dist.get_rank() == 1:
            loss = loss + torch.full_like(loss, float("inf"))
        return loss, metrics


class PoisonedGradient(Mean):
    """One row of a gradient is NaN, and the loss is finite."""

    def loss(self, batch):
        loss, metrics = super().loss(batch)
        if self.calls == 3 and dist.get_rank() == 1:
            loss = loss + (self.gain[:1] - self.gain[:1].detach()).abs().sqrt().sum()
        return loss, metrics


MODELS = {
    c.__name__: c for c in (Mean, Weighted, Dropped, Clipped, ClippedByMaximum, Tied, zoo.Game)
}
MODELS |= {c.__name__: c for c in (Lazy, LazyByRank, Frozen, Float, Scaled)}
MODELS |= {c.__name__: c for c in (PoisonedLoss, PoisonedGradient)}

BLOCKS = FSDP(wrap=(nn.Linear,))


def batch_of(number):
    generator = torch.Generator().manual_seed(number)
    size = SIZES[number % len(SIZES)]
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(size, 1, generator=generator, dtype=torch.float64)
    return x, y, (torch.rand(size, generator=generator) < 0.7).double()


class Run:
    """A sharded model on this rank, one micro-batch after the other."""

    def __init__(self, name, window=1, options=None, wish=lambda: False, **how):
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.model = MODELS[name](name.lower())
        self.model.prepare(3)
        self.ranks = Ranks(self.rank, self.rank, self.world_size)
        self.ballot = Ballot(wish)
        self.binding = shard(self.model, FSDP() if options is None else options)

        def engine(binding, policy):
            return FSDPEngine(binding, policy, self.ranks, self.ballot)

        plan = Plan(accumulation_steps=window)
        self.step = helios.make_step(self.model, plan, engine=engine, **how)
        self.state = helios.init_state(self.model, 3)
        self.shares = Shares.of_rank(self.world_size, self.rank, self.world_size)

    def pieces(self, number):
        batch = batch_of(number)
        return cut(batch, len(batch[0]), self.shares)

    def go(self, upto, donate=True):
        for number in range(self.state.global_iteration, upto):
            self.state = self.step(self.state, self.pieces(number), donate=donate)
        return self

    def whole(self):
        """The parameters, average and slots of all ranks, put together."""
        carry = self.state.carry
        together = [self.binding.whole(carry.params)]
        if carry.average is not None:
            together.append(self.binding.whole(carry.average))
        return together

    def save(self, folder, name):
        Path(folder, f"{name}-{self.rank}").write_bytes(to_bytes(self.state))

    def read(self, folder, name):
        self.state = from_bytes(Path(folder, f"{name}-{self.rank}").read_bytes())
        return self


def alone(name, window, updates):
    """The same in one process."""
    model = MODELS[name](name.lower())
    model.prepare(3)
    step = helios.make_step(model, Plan(accumulation_steps=window))
    state = helios.init_state(model, 3)
    for number in range(updates * window):
        state = step(state, batch_of(number), donate=True)
    return state


def furthest(a, b):
    pairs = zip(flatten(a)[0], flatten(b)[0], strict=True)
    return max((x.double() - y.double()).abs().max().item() for x, y in pairs if x.numel())
