"""Finding a batch size: the largest that fits into memory, or the fastest."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from tqdm import tqdm

from helios.core.rng import preserved_rng
from helios.data import DataModule, create_dataloader, mover
from helios.errors import DataError
from helios.functional.state import TrainingState
from helios.functional.step import Step, make_step
from helios.functional.trainable import init_state
from helios.functional.tree import clone
from helios.model.model import Model
from helios.tuning.copies import ModelOrFactory, copy_of

AIMS = ("largest", "throughput")


class BatchSizes(msgspec.Struct, frozen=True):
    """What a search for a batch size came to.

    Args:
        suggestion: the size to take, in samples.
        tried: samples per second of each size that was tried, in the order of size; None for those
            that did not fit into memory.
    """

    suggestion: int
    tried: dict[int, float | None]


def find_batch_size(
    model: ModelOrFactory,
    datamodule: DataModule | Callable[[int], Any],
    low: int = 1,
    high: int | None = None,
    *,
    aim: str = "largest",
    updates: int = 3,
    progress: bool = True,
) -> BatchSizes:
    """Run updates of a copy on ever larger batches, until memory does not suffice.

    The size is doubled from ``low`` on; between the last that fits and the first that does not, it
    is bisected. Each size is tried with the first batch of that size, taken as often as there are
    updates. A copy of the state is held beside the one that trains, so what fits here fits a run.

    Args:
        model: a `helios.Model`, or a function that returns one.
        datamodule: the data, whose training dataset is cut in batches; or a function that returns a
            batch of a given size.
        low: the smallest size, in samples, at least 1.
        high: (optional) the largest size; by default, and at most, the size of the dataset. A
            function needs one.
        aim: ``"largest"`` for the largest size that fits; ``"throughput"`` for the one with the
            most samples per second among those tried.
        updates: updates for each size, at least 2: the first one is not timed.
        progress: whether a bar is shown, on a terminal.

    Returns:
        The size, and what was tried.

    Raises:
        MemoryError: if not even ``low`` fits.
        ValueError: if an argument is out of its range.
        DataError: if there is no training dataset of known size to cut.
        ModelError: if the model has a step of its own.

    Law:
        Model, optimizer and global random generators keep every bit
        (``tests/tuning/test_batch_size.py``).
    """
    if aim not in AIMS:
        raise ValueError(f"aim: received {aim!r}; expected one of {list(AIMS)}")
    if updates < 2:
        raise ValueError(f"updates: received {updates!r}; expected an integer of at least 2")
    with preserved_rng():
        copied = copy_of(model)
        make, most = _maker(datamodule)
        high = most if high is None else (high if most is None else min(high, most))
        if high is None:
            raise ValueError("high: received None; a function that makes batches needs a limit")
        if not 1 <= low <= high:
            raise ValueError(
                f"low, high: received {low}, {high} (the dataset has {most} samples); expected "
                "1 <= low <= high"
            )
        trial = _Trial(copied, make, updates)
        bar = tqdm(desc="batch sizes", disable=None if progress else True)
        try:
            tried = _search(trial, low, high, bar.update)
        finally:
            bar.close()
            if isinstance(datamodule, DataModule):
                datamodule.teardown()
    speeds = {size: speed for size, speed in tried.items() if speed is not None}
    if not speeds:
        raise MemoryError(
            f"a batch of {low} samples does not fit into memory; expected low to fit. Take a "
            "smaller one, a smaller model or a smaller precision"
        )
    best = max(speeds, key=lambda size: speeds[size]) if aim == "throughput" else max(speeds)
    return BatchSizes(best, dict(sorted(tried.items())))


def _search(
    trial: Callable[[int], float | None], low: int, high: int, tick: Callable[[], Any]
) -> dict[int, float | None]:
    """Double, then bisect; return the speed of each size that was tried."""
    tried: dict[int, float | None] = {}

    def fits(size: int) -> bool:
        tried[size] = trial(size)
        tick()
        return tried[size] is not None

    size, fitting = low, 0
    while fits(size):
        fitting = size
        if size == high:
            return tried
        size = min(2 * size, high)
    failing = size
    while fitting and failing - fitting > max(1, fitting // 16):
        middle = (fitting + failing) // 2
        if fits(middle):
            fitting = middle
        else:
            failing = middle
    return tried


class _Trial:
    """Tries a batch size: samples per second, None if memory does not suffice."""

    def __init__(self, model: Model, make: Callable[[int], Any], updates: int) -> None:
        self._make, self._updates = make, updates
        self._step: Step = make_step(model, non_finite="skip")
        self._state: TrainingState = init_state(model)
        self._move = mover(model.device)
        self._device = model.device

    def __call__(self, size: int) -> float | None:
        try:
            return self._run(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Here the exception is gone, and the tensors of its frames with it.
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _run(self, size: int) -> float:
        batch = self._move(self._make(size))
        state, began = clone(self._state), 0.0
        for index in range(self._updates):
            if index == 1:
                began = self._now()
            state = self._step(state, batch, donate=True)
        return size * (self._updates - 1) / max(self._now() - began, 1e-9)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory does not suffice.

    Example:
        >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried ..."))
        True
        >>> is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
        False
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "can't allocate memory" in text or "out of memory" in text
    )


def _maker(data: Any) -> tuple[Callable[[int], Any], int | None]:
    """Return what makes a batch of a size, and the largest size, None if there is none."""
    if not isinstance(data, DataModule):
        return data, None
    data.prepare_data()
    data.setup()
    given = data._train_dataset
    if given is None or not hasattr(given.dataset, "__len__"):
        raise DataError(
            f"{type(data).__name__}: expected a training dataset of known size, assigned to "
            "self._train_dataset in setup(); else give a function that returns a batch of a size"
        )

    def make(size: int) -> Any:
        alone = {"num_workers": 0, "is_distributed": None, "sampler": None, "drop_last": False}
        params = msgspec.structs.replace(given.params, batch_size=size, **alone)
        return next(iter(create_dataloader(given.dataset, params, seed=data.seed)[0]))

    return make, len(given.dataset)
