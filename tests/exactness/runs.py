"""A small run with everything random in it, one leg of which is one process.

A leg is described by a `Leg`, which travels as JSON, and leaves files alone: checkpoints in
``<folder>/chkpt`` and one line per hook in ``<folder>/leg-<number>.events``.
"""

from __future__ import annotations

import random
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec.structs import replace

import helios
from helios.plugins import UniquePluginOverrides
from helios.trainer import find_last_checkpoint
from helios.trainer.store import read_checkpoint
from tests.zoo import Augmented, Noisy

SAMPLES, BATCH, EPOCHS = 11, 3, 3
BATCHES = -(-SAMPLES // BATCH)
MICRO_BATCHES = EPOCHS * BATCHES
PLANS: dict[tuple[str, int], dict[str, Any]] = {
    ("epoch", 1): {"total_steps": EPOCHS, "valid_frequency": 1, "chkpt_frequency": 2},
    ("epoch", 3): {"total_steps": EPOCHS, "valid_frequency": 2, "chkpt_frequency": 1},
    # 11 updates end in the middle of the third epoch, and 4 windows of 3 at its end.
    ("iteration", 1): {"total_steps": 11, "valid_frequency": 2, "chkpt_frequency": 3},
    ("iteration", 3): {"total_steps": 4, "valid_frequency": 1, "chkpt_frequency": 2},
}


class Leg(msgspec.Struct, frozen=True):
    """One process of a run.

    Args:
        folder: where the whole run lives.
        unit: ``"epoch"`` or ``"iteration"``.
        accumulation: micro-batches in a window.
        workers: processes that fetch.
        number: which leg of the run this is, from 0.
        stop_at: the global iteration after which the model asks to stop, None for never.
    """

    folder: str
    unit: str
    accumulation: int
    workers: int
    number: int = 0
    stop_at: int | None = None


class Recorded(Noisy):
    """Draws from every generator in every hook, and writes down what it drew and when."""

    def __init__(self, events: Any, stop_at: int | None) -> None:
        super().__init__("recorded")
        self._events = events
        self._stop_at = stop_at

    def setup(self, fast_init=False):
        super().setup()
        self.optimizer = helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(0.5), adamw=helios.optim.AdamW(lr=1e-2)
        )
        self.average = helios.optim.average(decay=0.9)

    def loss(self, batch):
        x, y = batch
        if self.training:
            x = x + self.noise
        return super().loss((x, y))

    def record(self, name, counters, *values):
        counters = {n: v for n, v in counters.items() if n != "average_iter_time"}
        drawn = [float(torch.rand(())), random.random(), float(np.random.rand())]
        fields = [*counters.values(), *values, *(number.hex() for number in drawn)]
        self._events.write(" ".join([name, *map(str, fields)]) + "\n")
        return drawn

    def on_training_start(self):
        self.record("start", self.trainer.state.dict())

    def on_training_epoch_start(self, current_epoch):
        self.record("epoch_start", {}, current_epoch)

    def on_training_batch_start(self, state):
        self.noise = sum(self.record("batch_start", state.dict())) * 0.1

    def on_training_batch_end(self, state, should_log=False):
        self.record("batch_end", state.dict(), state.window_iter, should_log)

    def on_training_epoch_end(self, current_epoch):
        self.record("epoch_end", self.trainer.state.dict(), current_epoch)

    def on_training_end(self):
        self.record("end", self.trainer.state.dict())

    def on_validation_start(self, validation_cycle):
        self.record("valid_start", {}, validation_cycle)

    def on_validation_batch_end(self, step):
        self.record("valid_batch", {}, step)

    def on_validation_end(self, validation_cycle):
        scores = [f"{n}={value.hex()}" for n, value in self.valid_metrics.items()]
        self.record("valid_end", {}, validation_cycle, *scores)

    def should_training_stop(self):
        return self.trainer.state.global_iteration == self._stop_at


class Shuffler(helios.Plugin):
    """Changes every batch by numbers of all three generators."""

    def __init__(self):
        super().__init__("shuffler", UniquePluginOverrides(training_batch=True))

    def process_training_batch(self, batch, state):
        x, y = batch
        order = torch.randperm(len(x))
        return x[order] * (0.9 + 0.2 * random.random()) + 0.1 * float(np.random.randn()), y[order]


class Data(helios.DataModule):
    """Random augmentation in both datasets; the training one is shuffled."""

    def __init__(self, workers):
        self._workers = workers

    def setup(self):
        params = {"batch_size": BATCH, "num_workers": self._workers}
        self._train_dataset = self._create_dataset(Augmented(SAMPLES), {**params, "shuffle": True})
        self._valid_dataset = self._create_dataset(Augmented(5), {**params, "num_workers": 0})


def run_leg(leg: Leg) -> None:
    """Go on with a run to where the leg ends."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    folder = Path(leg.folder)
    folder.mkdir(parents=True, exist_ok=True)
    trainer = helios.Trainer(
        train_unit=leg.unit,
        accumulation_steps=leg.accumulation,
        **PLANS[leg.unit, leg.accumulation],
        print_frequency=2,
        random_seed=11,
        use_cpu=True,
        chkpt_root=folder / "chkpt",
        print_banner=False,
        plugins=[Shuffler()],
    )
    trainer.train_exceptions.append(Exception)
    with (folder / f"leg-{leg.number}.events").open("w") as events:
        trainer.fit(Recorded(events, leg.stop_at), Data(leg.workers))


def legs_of(run: Leg, stops: tuple[int, ...]) -> list[Leg]:
    """Return the legs of a run that is stopped after each of ``stops``, and at last not."""
    return [replace(run, number=n, stop_at=stop) for n, stop in enumerate((*stops, None))]


def events_of(folder: str | Path) -> list[str]:
    """Return what happened in a run, over all its legs, as of one process.

    Every leg begins with ``start`` and ends with ``end``. A leg that takes up an epoch announces
    it once more; this is the only repetition that is taken out.
    """
    paths = sorted(Path(folder).glob("leg-*.events"), key=lambda p: int(p.stem.split("-")[1]))
    happened: list[str] = []
    announced: set[str] = set()
    for path in paths:
        lines = path.read_text().splitlines()
        assert lines[0].startswith("start ")
        assert lines[-1].startswith("end ")
        lines = lines[1:-1]
        if lines and _epoch(lines[0]) in announced:
            del lines[0]
        announced.update(filter(None, map(_epoch, lines)))
        happened += lines
    return happened


def contents_of(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return what the checkpoints of a run hold by name, without wall clock."""
    contents = {}
    for path in sorted((Path(folder) / "chkpt" / "recorded").glob("*.pth")):
        content = read_checkpoint(path)
        del content["training_state"]["average_iter_time"], content["log"]
        contents[path.name] = content
    return contents


def last_checkpoint(folder: str | Path) -> str:
    """Return the name of the checkpoint that a resume would take."""
    path = find_last_checkpoint(Path(folder) / "chkpt" / "recorded")
    assert path is not None
    return path.name


def _epoch(line: str) -> str | None:
    name, number, *_ = line.split()
    return number if name == "epoch_start" else None


if __name__ == "__main__":
    run_leg(msgspec.json.decode(sys.argv[1].encode(), type=Leg))
