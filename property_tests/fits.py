"""Small whole runs that the laws of `Trainer.fit` are tried on."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st

import helios
from helios.trainer import find_last_checkpoint
from helios.trainer.store import read_checkpoint
from tests.zoo import Augmented, Noisy


def a_share(of: int) -> settings:
    """Return the profile with fewer examples: one is a whole run, or several."""
    return settings(max_examples=max(settings().max_examples // of, 5))


class Data(helios.DataModule):
    """Shuffled and augmented samples; the validation set is five others."""

    def __init__(self, samples: int, batch_size: int, drop_last: bool = False) -> None:
        self._samples = samples
        self._params = {"batch_size": batch_size, "shuffle": True, "drop_last": drop_last}

    def setup(self):
        self._train_dataset = self._create_dataset(Augmented(self._samples), self._params)
        self._valid_dataset = self._create_dataset(Augmented(5), {"batch_size": 3})


class Stopping(Noisy):
    """Asks to stop after a micro-batch."""

    def __init__(self, optimizer: Any = None, stop_at: int | None = None) -> None:
        super().__init__("noisy", optimizer)
        self.stop_at = stop_at

    def should_training_stop(self):
        return self.trainer.state.global_iteration == self.stop_at


def fit(model: helios.Model, data: helios.DataModule, **arguments: Any) -> helios.TrainingState:
    """Fit on one thread of the CPU, and return the state at the end."""
    torch.set_num_threads(1)
    trainer = helios.Trainer(use_cpu=True, print_banner=False, **arguments)
    trainer.train_exceptions.append(Exception)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(model, data)
    return trainer.state


def trained(state: helios.TrainingState) -> dict[str, Any]:
    """Return the part of a state that training made: no counter of validations or seconds."""
    carry = state.carry
    return {
        "params": carry.params,
        "buffers": carry.buffers,
        "opt_state": carry.opt_state,
        "accumulators": carry.accumulators,
        "updates": state.current_iteration,
        "micro_batches": state.global_iteration,
        "window": state.window_iter,
    }


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Give a folder for one example."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def last_content(root: Path, name: str = "noisy") -> dict[str, Any]:
    """Return what the last checkpoint holds, without wall clock."""
    path = find_last_checkpoint(root / name)
    assert path is not None
    content = read_checkpoint(path)
    del content["training_state"]["average_iter_time"], content["log"]
    return {"name": path.name, **content}


@st.composite
def sizes(draw: Any) -> tuple[int, int, bool]:
    """Draw samples, a batch size and ``drop_last``; batch normalisation refuses a batch of one."""
    batch_size = draw(st.integers(2, 4))
    samples = draw(st.integers(batch_size, 12))
    drop_last = samples % batch_size == 1 or draw(st.booleans())
    return samples, batch_size, drop_last


def batches_of(size: tuple[int, int, bool]) -> int:
    """Return the micro-batches of an epoch."""
    samples, batch_size, drop_last = size
    return samples // batch_size if drop_last else -(-samples // batch_size)


@st.composite
def lengths(draw: Any) -> dict[str, Any]:
    """Draw what decides how long a run is and where its windows lie."""
    unit = draw(st.sampled_from(["epoch", "iteration"]))
    return {
        "train_unit": unit,
        "total_steps": draw(st.integers(1, 3 if unit == "epoch" else 6)),
        "accumulation_steps": draw(st.integers(1, 4)),
        "random_seed": draw(st.integers(0, 2**63 - 1)),
    }


@st.composite
def cadences(draw: Any) -> dict[str, Any]:
    """Draw what happens between the steps; a checkpoint frequency needs a ``chkpt_root``."""
    frequency = st.none() | st.integers(1, 3)
    return {
        "valid_frequency": draw(frequency),
        "chkpt_frequency": draw(frequency),
        "print_frequency": draw(frequency),
    }
