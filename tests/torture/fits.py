"""The run that is tortured, in several configurations: small, fast, and with everything in it."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import msgspec
import torch

import helios
from helios.trainer.store import Retention
from tests.exactness.runs import Data, Recorded, Shuffler

PLANS: dict[str, dict[str, Any]] = {
    # Twelve micro-batches in epochs of four, as in tests.exactness.runs, or a few less.
    "updates": {
        "train_unit": "iteration",
        "total_steps": 11,
        "valid_frequency": 2,
        "chkpt_frequency": 1,
    },
    "updates of 3": {
        "train_unit": "iteration",
        "accumulation_steps": 3,
        "total_steps": 4,
        "valid_frequency": 1,
        "chkpt_frequency": 1,
    },
    "updates, few saves": {
        "train_unit": "iteration",
        "total_steps": 11,
        "valid_frequency": 3,
        "chkpt_frequency": 4,
    },
    "epochs": {
        "train_unit": "epoch",
        "total_steps": 3,
        "valid_frequency": 1,
        "chkpt_frequency": 1,
    },
    "epochs of 3": {
        "train_unit": "epoch",
        "accumulation_steps": 3,
        "total_steps": 3,
        "valid_frequency": 2,
        "chkpt_frequency": 1,
    },
}


class Configuration(msgspec.Struct, frozen=True):
    """One way to run it.

    Args:
        plan: a key of `PLANS`.
        workers: processes that fetch.
        in_background: whether saves are.
        last: how many checkpoints are kept, None for all.
    """

    plan: str
    workers: int = 0
    in_background: bool = False
    last: int | None = None

    def __str__(self) -> str:
        saves = "async" if self.in_background else "sync"
        return f"{self.plan} / {self.workers} workers / {saves} / keep {self.last or 'all'}"


CONFIGURATIONS = [
    Configuration(*values) for values in itertools.product(PLANS, (0, 2), (False, True), (None, 2))
]


def fit(configuration: Configuration, folder: Path, leg: int, **arguments: Any) -> bool:
    """Go on with a run; ``leg`` numbers the processes of the run, from 0."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    last = configuration.last
    trainer = helios.Trainer(
        **PLANS[configuration.plan],
        print_frequency=2,
        random_seed=11,
        use_cpu=True,
        chkpt_root=folder / "chkpt",
        print_banner=False,
        plugins=[Shuffler()],
        retention=None if last is None else Retention(last=last),
        async_saving=configuration.in_background,
        **arguments,
    )
    trainer.train_exceptions.append(Exception)
    # A line is one write, and stays after a kill.
    with (folder / f"leg-{leg}.events").open("w", buffering=1) as events:
        return trainer.fit(Recorded(events, None), Data(configuration.workers))
