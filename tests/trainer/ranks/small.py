"""A small run with everything random in it, for any number of ranks, and what it leaves behind.

12 updates of 8 samples in 4 epochs: validations and checkpoints come after updates 4, 8 and 12.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import helios
from helios.trainer.store import read_checkpoint
from helios.trainer.store.fs import OsFs
from helios.trainer.store.reading import last_valid
from tests.zoo import Augmented, Noisy

SAMPLES, BATCH, UPDATES, EVERY = 24, 8, 12, 4
NAME = "noisy"


class Net(Noisy):
    """Dropout and batch normalisation, and no buffer that canonical reduction does not know."""

    def loss(self, batch):
        x, y = batch
        logits = self.net(x)
        return F.cross_entropy(logits, y), {"accuracy": logits.argmax(1) == y}


class Data(helios.DataModule):
    """Random augmentation; the training set is shuffled.

    Args:
        dataset: (optional) of 24 samples as those of `Augmented`.
        workers: processes that fetch, on every rank.
        batch: samples of a micro-batch over all ranks.
    """

    def __init__(self, dataset: Any = None, workers: int = 0, batch: int = BATCH) -> None:
        self._dataset = Augmented(SAMPLES) if dataset is None else dataset
        self._params = {"batch_size": batch, "num_workers": workers}

    def setup(self):
        params = {**self._params, "shuffle": True}
        self._train_dataset = self._create_dataset(self._dataset, params)
        params = {"batch_size": BATCH, "num_workers": 0}
        self._valid_dataset = self._create_dataset(Augmented(SAMPLES), params)


def trainer(folder: str | Path, **arguments: Any) -> helios.Trainer:
    """Return the trainer of the run, on this rank."""
    torch.set_num_threads(1)
    given: dict[str, Any] = {
        "train_unit": "iteration",
        "total_steps": UPDATES,
        "valid_frequency": EVERY,
        "chkpt_frequency": EVERY,
        "print_frequency": 3,
        "random_seed": 11,
        "chkpt_root": Path(folder),
        "use_cpu": True,
        "print_banner": False,
    }
    return helios.Trainer(**{**given, **arguments})


def fit(folder: str, arguments: dict[str, Any] | None = None, workers: int = 0) -> None:
    """Run it to its end, as one of the ranks or alone."""
    assert trainer(folder, **(arguments or {})).fit(Noisy(NAME), Data(workers=workers))


def contents(folder: str | Path) -> dict[str, Any]:
    """Return what the newest whole checkpoint of a run holds, without wall clock and names."""
    content, _ = newest(folder)
    del content["training_state"]["average_iter_time"], content["log"]
    return content


def newest(folder: str | Path) -> tuple[dict[str, Any], Path]:
    """Return the content of the newest whole checkpoint of a run, and where it is."""
    found = last_valid(OsFs(), Path(folder) / NAME, NAME)
    assert found is not None, f"{folder} has no checkpoint"
    return found


def every(folder: str | Path) -> list[str]:
    """Return the names of the checkpoints of a run, each of which is whole."""
    paths = sorted((Path(folder) / NAME).glob("*.pth"))
    for path in paths:
        read_checkpoint(path)
    return [path.name for path in paths]


def update(folder: str | Path) -> int:
    """Return the updates that the newest whole checkpoint of a run has."""
    return int(newest(folder)[0]["training_state"]["current_iteration"])
