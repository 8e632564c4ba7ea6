"""What an update of a fit costs in epochs, runs and positions of any size; how long resuming takes.

All is measured in one process, in rounds: each way is a fit of its own, from a checkpoint where it
begins far into a run.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from msgspec.structs import replace
from torch import nn
from torch.utils.data import Dataset

import helios
from helios.functional.plan import Plan
from helios.trainer.fingerprint import fingerprint
from helios.trainer.saving import Saver
from helios.trainer.store import Store

BATCH = 32
SAMPLES = 10**9
_NAME = "small"


class Small(helios.Model):
    """A layer, timed from within: it asks to stop after so many updates."""

    def __init__(self, warmup: int, steps: int) -> None:
        super().__init__(_NAME)
        self.warmup, self.steps = warmup, steps
        self.begun = self.seconds = self.first = 0.0
        self.started: int | None = None

    def setup(self, fast_init: bool = False) -> None:
        self.net = nn.Linear(8, 8)
        self.optimizer = helios.optim.AdamW(lr=1e-3)

    def loss(self, batch: Any) -> torch.Tensor:
        x = batch[0]
        return F.mse_loss(self.net(x), x)

    def on_training_start(self) -> None:
        self.started = self.trainer.state.current_iteration

    def should_training_stop(self) -> bool:
        done = self.trainer.state.current_iteration - (self.started or 0)
        if done == 1 and not self.first:
            self.first = time.perf_counter()
        if done == self.warmup and not self.begun:
            self.begun = time.perf_counter()
        if done >= self.warmup + self.steps and not self.seconds:
            self.seconds = time.perf_counter() - self.begun
        return self.seconds > 0


class Repeated(helios.DataModule):
    """Epochs of one batch, again and again."""

    def __init__(self, batches: int) -> None:
        x = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(0))
        self.batches = [(x,)] * batches

    def setup(self) -> None:
        pass

    def train_dataloader(self) -> Any:
        return self.batches


class Many(Dataset):  # type: ignore[type-arg]
    """A dataset with a great many samples, of which a few are in memory."""

    def __init__(self) -> None:
        self.rows = torch.randn(1024, 8, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (self.rows[index % 1024],)


@dataclass(frozen=True)
class Way:
    """One fit.

    Args:
        epoch: batches of an epoch.
        total: updates of the whole run, ``float("inf")`` for no end.
        position: updates that were done before.
    """

    epoch: int = 1024
    total: float = float("inf")
    position: int = 0


def per_update(steps: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the time of an update, and return it in us, round by round, for each way."""
    groups = {
        "updates of an epoch": {
            f"{n:,}": Way(epoch=n) for n in (steps, steps // 4, steps // 32, steps // 256) if n
        },
        "updates of the run": {
            "2,000": Way(total=2000),
            "10^6": Way(total=10**6),
            "10^9": Way(total=10**9),
            "without end": Way(),
        },
        "updates done before": {
            f"10^{power}": Way(position=10**power, total=2 * 10**9) for power in (1, 6, 9)
        },
    }
    ways = [(group, name, way) for group, named in groups.items() for name, way in named.items()]
    found: dict[str, Any] = {group: {name: [] for name in named} for group, named in groups.items()}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            say(f"lengths: round {number} of {rounds}")
            for offset in range(len(ways)):
                i = (offset + number) % len(ways)
                group, name, way = ways[i]
                root = _prepared(Path(folder) / f"{number}-{i}", way)
                model = Small(40, steps)
                _fit(model, Repeated(way.epoch), way.total, root)
                if number:  # the first round imports and warms up
                    found[group][name].append(round(model.seconds * 1e6 / steps, 3))
    return found


def resuming(rounds: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Measure the seconds from `fit` to the end of the first update, by where it goes on."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        fractions = (0.0, 0.01, 0.5, 0.99)
        for number in range(rounds + 1):
            say(f"resuming: round {number} of {rounds}")
            for fraction in fractions:
                root = Path(folder) / f"{fraction}-{number}"
                epoch = SAMPLES // BATCH
                way = Way(epoch=epoch, position=max(int(fraction * epoch), 1))
                _prepared(root, way, module=_shuffled())
                model = Small(1, 1)
                started = time.perf_counter()
                _fit(model, _shuffled(), float("inf"), root)
                if number:
                    found.setdefault(f"{fraction:g}", []).append(model.first - started)
    return found


def _shuffled() -> helios.DataModule:
    return helios.data.from_datasets(
        train=Many(), batch_size=BATCH, sampler="ResumablePermutationSampler", drop_last=True
    )


def _fit(model: Small, data: helios.DataModule, total: float, root: Path | None) -> None:
    trainer = helios.Trainer(
        train_unit="iteration",
        total_steps=total,
        use_cpu=True,
        print_banner=False,
        chkpt_root=root,
        retention=helios.Retention(last=1) if root is not None else None,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it says where it goes on
        if not trainer.fit(model, data):
            raise SystemExit("fit returned False")


def _prepared(root: Path, way: Way, module: helios.DataModule | None = None) -> Path | None:
    """Write a checkpoint at the position of a way; None if it begins at the beginning."""
    if not way.position:
        return None
    model = Small(1, 1)
    state = helios.init_state(model)
    step = helios.make_step(model)
    state = step(state, Repeated(1).batches[0])
    epochs, into = divmod(way.position, way.epoch)
    state = replace(
        state,
        current_iteration=way.position,
        global_iteration=way.position,
        running_iter=way.position,
        global_epoch=epochs + (into > 0),
        dataset_iter=into,
    )
    plan = Plan(batches_per_epoch=way.epoch)
    environment = fingerprint(model, module or Repeated(1), "raise")
    with Store(root / _NAME, helios.Retention(last=1)) as store:
        saver = Saver(store, model, plan, {}, {}, lambda _: None, lambda _: None, environment)
        saver(state)
        saver.finish()
    return root
