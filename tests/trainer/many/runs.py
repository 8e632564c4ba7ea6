"""What the tests of runs of several members share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import helios
from helios.trainer import find_last_checkpoint
from helios.trainer.store import read_checkpoint
from tests import zoo
from tests.trainer.runs import Batches, trainer

NAMES = ("a", "b", "c")


def data(valid: bool = True) -> Batches:
    """Return five batches to train on, and two to validate on."""
    return Batches(zoo.classes(5), zoo.classes(2, seed=9) if valid else None)


def members(
    make: Callable[[str], helios.Model] = zoo.Noisy, names: Sequence[str] = NAMES
) -> list[Any]:
    """Return one model for each name."""
    return [make(name) for name in names]


def fit(
    root: Path | None = None,
    models: Sequence[helios.Model] | None = None,
    batches: Any = None,
    seeds: Sequence[int] | None = None,
    **arguments: Any,
) -> helios.Trainer:
    """Train members at once, raising what is raised, and return the trainer."""
    made = trainer(root, **{"random_seed": 3, **arguments})
    made.train_exceptions.append(Exception)
    models = members() if models is None else models
    seeds = range(len(models)) if seeds is None else seeds
    assert helios.fit_many(made, models, batches or data(), seeds=seeds)
    return made


def last(root: Path, name: str) -> dict[str, Any]:
    """Return what a member's last checkpoint holds, without wall clock."""
    path = find_last_checkpoint(root / name)
    assert path is not None
    content = read_checkpoint(path)
    del content["training_state"]["average_iter_time"], content["log"]
    return {"name": path.name, **content}


def one_thread() -> None:
    """Compute on one thread, as the tests do; for processes of their own."""
    torch.set_num_threads(1)
