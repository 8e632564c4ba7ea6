"""Runs of a `Trainer` on several ranks, and what of them has to be the same on any number.

A leg is one fit, described by a dict that msgpack carries; every rank of a world runs it and
returns what it saw. A world may run several legs, one after the other.
"""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import helios
from helios.functional.share import is_shared
from helios.functional.step import Step
from helios.functional.tree import flatten
from helios.plugins import UniquePluginOverrides
from helios.trainer import find_last_checkpoint
from helios.trainer.report import Reporter
from helios.trainer.store import read_checkpoint
from tests.exactness.ranks_data import Data
from tests.trainer.ranks import world


class Net(helios.Model):
    """A small net in float64 or float32 with whatever is asked for."""

    def __init__(
        self,
        loss="mean",
        dropout=False,
        norm=False,
        clip=False,
        average=False,
        precision="float32",
        double=True,
        monitor=None,
        draws=False,
        lr=1e-2,
    ):
        super().__init__("net")
        self._loss = loss
        self._parts = dropout, norm
        self._clip = clip
        self._double = double
        self._draws = draws
        self._lr = lr
        self.precision = precision
        self._average = average
        if monitor is not None:
            self.monitor = helios.Monitor(monitor)

    def setup(self, fast_init=False):
        dropout, norm = self._parts
        layers: list[nn.Module] = [nn.Linear(3, 7)]
        layers += [nn.BatchNorm1d(7)] if norm else []
        layers += [nn.Tanh()]
        layers += [nn.Dropout(0.4)] if dropout else []
        layers += [nn.Linear(7, 1)]
        self.net = nn.Sequential(*layers)
        self.head = nn.Linear(3, 1)
        if self._double:
            self.double()
        self.optimizer = self._rule()
        if self._average:
            self.average = helios.optim.average(decay=0.8)

    def _rule(self):
        if not self._clip:
            return helios.optim.AdamW(lr=self._lr)
        return helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(0.05), adamw=helios.optim.AdamW(lr=self._lr)
        )

    def objectives(self):
        if self._loss != "game":
            return super().objectives()
        return [
            helios.Objective("first", self.mean, self.optimizer, (self.net,)),
            helios.Objective("second", self.second, helios.optim.SGD(lr=2e-2), (self.head,)),
        ]

    def loss(self, batch):
        return self.weighted(batch) if self._loss == "weighted" else self.mean(batch)

    def _of(self, batch):
        _, x, y, mask = batch
        return (x, y, mask) if self._double else (x.float(), y.float(), mask.float())

    def mean(self, batch):
        x, y, _ = self._of(batch)
        out = self.net(x)
        if self._loss != "game":
            out = out + self.head(x)
        return F.mse_loss(out.to(y.dtype), y), {"size": out.double().abs().mean()}

    def weighted(self, batch):
        x, y, mask = self._of(batch)
        out = (self.net(x) + self.head(x)).to(y.dtype)
        errors = (out - y).square().squeeze(1) * (mask + 0.5)
        return helios.Loss(errors.sum(), weight=(mask + 0.5).sum(), metrics={"size": out.mean()})

    def second(self, batch):
        x, y, _ = self._of(batch)
        return (self.net(x).detach() + self.head(x) - y).square().mean()


class Observer(helios.Plugin):
    """Writes down every hook with its counters, and asks to stop where it is told to.

    Args:
        stop: after which update to ask for a stop, None for never.
        asks: the ranks that ask.
        when: ``"update"``: as long as the counter stands there; ``"once"``: the one time that
            micro-batch ``stop`` is done; ``"late"``: from the end of that update on, as a hook
            that sets a flag does.
    """

    claims: UniquePluginOverrides | None = None

    def __init__(self, stop=None, asks=None, when="update"):
        super().__init__("observer", self.claims)
        self.hooks: list[list[Any]] = []
        self._stop = stop
        self._asks = asks is None or int(os.environ.get("RANK", "0")) in asks
        self._when = when
        self._late = False

    def write(self, name, *values):
        self.hooks.append([name, *values, *self.counters()])
        if name == "batch_end" and self.trainer.state.current_iteration == self._stop:
            self._late = True

    def counters(self):
        if self.trainer.loop is None:
            return []
        counters = self.trainer.state.dict()
        return [value for name, value in counters.items() if name != "average_iter_time"]

    def on_training_start(self):
        self.write("start")

    def on_training_end(self):
        self.write("end")

    def on_validation_start(self, validation_cycle):
        self.write("valid_start", validation_cycle)

    def on_validation_end(self, validation_cycle):
        self.write("valid_end", validation_cycle)

    def should_training_stop(self):
        if self._stop is None or not self._asks:
            return False
        state = self.trainer.state
        if self._when == "late":
            return self._late
        if self._when == "once":
            return state.global_iteration == self._stop
        return state.current_iteration == self._stop and state.window_iter == 0


class Noise(Observer):
    """Changes training and validation batches by random numbers, as a plugin may."""

    claims = UniquePluginOverrides(training_batch=True, validation_batch=True)

    def process_training_batch(self, batch, state):
        index, x, y, mask = batch
        return index, x + 0.1 * torch.randn_like(x), y, mask

    def process_validation_batch(self, batch, step):
        index, x, y, mask = batch
        return index, x + 0.1 * torch.randn_like(x), y, mask


class Sized(Noise):
    """Draws as many numbers from numpy and ``random`` as there are samples on this rank."""

    def process_training_batch(self, batch, state):
        index, x, y, mask = batch
        noise = torch.from_numpy(np.random.randn(*x.shape)) + random.random()
        return index, x + 0.1 * noise, y, mask


class Watched(Net):
    """Writes down the model's hooks too; those of batches draw from torch."""

    def on_training_epoch_start(self, current_epoch):
        self.write("epoch_start", current_epoch)

    def on_training_epoch_end(self, current_epoch):
        self.write("epoch_end", current_epoch)

    def on_training_batch_start(self, state):
        self.write("batch_start", float(torch.rand(())) if self._draws else 0.0)

    def on_training_batch_end(self, state, should_log=False):
        self.write("batch_end", should_log, state.window_iter)

    def on_validation_batch_start(self, step):
        self.write("valid_batch_start", step, float(torch.rand(())) if self._draws else 0.0)

    def on_validation_batch_end(self, step):
        self.write("valid_batch", step)

    def on_validation_end(self, validation_cycle):
        self.write("metrics", *(value.hex() for _, value in sorted(self.valid_metrics.items())))

    def have_metrics_improved(self):
        improved = super().have_metrics_improved()
        self.write("improved", improved)
        return improved

    def write(self, *what):
        self.trainer.plugins["observer"].write(*what)


def leg(spec: dict[str, Any]) -> dict[str, Any]:
    """Fit once on this rank, and return what was seen."""
    torch.set_num_threads(1)
    make = {None: Observer, "torch": Noise, "numpy": Sized}[spec.get("noise")]
    observer = make(**spec.get("stop", {}))
    model = Watched(**spec.get("model", {}))
    options = {"total_steps": 2, **spec.get("options", {})}
    for name in ("chkpt_root", "log_path", "run_path"):
        if name in options:
            options[name] = Path(options[name])
    trainer = helios.Trainer(
        use_cpu=True, print_banner=False, random_seed=11, rank_timeout=10, **options,
        plugins=[observer],
    )  # fmt: skip
    trainer.train_exceptions.append(Exception)
    seen: list[Any] = []
    compute = Step.compute

    def computed(self, state, batch, *, donate=False):
        seen.append([state.global_iteration, state.current_iteration, state.window_iter])
        seen[-1].append(_counted(batch))
        return compute(self, state, batch, donate=donate)

    shown: list[Any] = []
    show = Reporter.show

    def showing(self, state, label, values):
        shown.append([state.current_iteration, label, dict(values)])
        show(self, state, label, values)

    Step.compute, Reporter.show = computed, showing  # type: ignore[method-assign]
    try:
        trainer.fit(model, Data(**spec.get("data", {})))
    finally:
        Step.compute, Reporter.show = compute, show  # type: ignore[method-assign]
    if spec.get("test"):
        trainer.test(model, Data(**spec.get("data", {})))
    state, carry = trainer.state, trainer.state.carry
    kept = carry.params, carry.buffers, carry.opt_state, carry.average
    return {
        "samples": seen,
        "shown": shown,
        "hooks": observer.hooks,
        "bits": digest(kept),
        "params": [p.double().flatten().tolist() for p in leaves_of((kept[0], kept[3]))],
        "counters": {n: v for n, v in state.dict().items() if n != "average_iter_time"},
        "best": carry.best,
        "valid": model.valid_metrics,
        "test": model.test_metrics,
    }


def _counted(batch):
    """Return what of a batch counts: for each piece its index, indices, and the bytes of x."""
    if not is_shared(batch):
        return [[0, batch[0].tolist(), batch[1].numpy().tobytes()]]
    return [
        [p.index, p.batch[0][: p.count].tolist(), p.batch[1][: p.count].numpy().tobytes()]
        for p in batch
    ]


def leaves_of(tree) -> list[torch.Tensor]:
    """Return the tensors of a tree."""
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def digest(tree) -> str:
    """Return a hash of the bits of all tensors of a tree, and of what else is in it."""
    found = hashlib.sha256()
    for leaf in flatten(tree)[0]:
        if isinstance(leaf, torch.Tensor):
            found.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            found.update(leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()


def legs(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fit several times on this rank."""
    return [leg(spec) for spec in specs]


def run(specs: list[dict[str, Any]], ranks: int) -> list[list[dict[str, Any]]]:
    """Run legs in one world; return for each leg what every rank saw."""
    found = world.values(world.run(legs, ranks, 60.0, args=(specs,)))
    return [list(of_leg) for of_leg in zip(*found, strict=True)]


def alike(ranks: list[dict[str, Any]], *names: str) -> dict[str, Any]:
    """Return what rank 0 saw, after a look at the others: they saw the same."""
    for other in ranks[1:]:
        for name in names or ("hooks", "bits", "counters", "best", "valid", "test"):
            assert other[name] == ranks[0][name], name
    return ranks[0]


def micro_batches(ranks: list[dict[str, Any]]) -> list[Any]:
    """Return the counters, samples and bits of every micro-batch, joined over ranks."""
    joined = []
    for turns in zip(*(rank["samples"] for rank in ranks), strict=True):
        assert all(turn[:3] == turns[0][:3] for turn in turns)
        pieces = [piece for turn in turns for piece in turn[3]]
        assert [piece[0] for piece in pieces] == list(range(len(pieces)))
        indices = [index for piece in pieces for index in piece[1]]
        joined.append([*turns[0][:3], indices, b"".join(piece[2] for piece in pieces)])
    return joined


def furthest(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Return the largest difference of the parameters, relative to their largest."""
    worst = 0.0
    for x, y in zip(a["params"], b["params"], strict=True):
        largest = max(map(abs, y))
        worst = max(worst, *(abs(p - q) / largest for p, q in zip(x, y, strict=True)))
    return worst


def called(hooks: list[list[Any]], name: str) -> list[list[Any]]:
    """Return the calls of one hook."""
    return [hook for hook in hooks if hook[0] == name]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Assert that two legs have the same bits, hooks, counters and validations."""
    for name in ("hooks", "bits", "counters", "best", "valid", "test"):
        assert one[name] == other[name], name


def last_content(root: Path) -> dict[str, Any]:
    """Return what the last checkpoint under a folder holds."""
    path = find_last_checkpoint(root / "net")
    assert path is not None
    return read_checkpoint(path)
