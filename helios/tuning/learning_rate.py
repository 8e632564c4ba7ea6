"""Finding a learning rate: the loss over a sweep of rates, each update at a higher one."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from tqdm import tqdm

from helios.core.rng import preserved_rng
from helios.data import DataModule, EpochSource, mover, source_of
from helios.errors import DataError, NonFiniteError
from helios.functional import metrics
from helios.functional.state import TrainingState, report
from helios.functional.step import make_step
from helios.functional.trainable import init_state
from helios.tuning.copies import ModelOrFactory, copy_of, drive

_SMOOTHING = 0.9
_MARGIN = 0.1  # of the updates, at either end, that suggest nothing: noise, and divergence


class LearningRates(msgspec.Struct, frozen=True):
    """What a sweep of learning rates came to.

    Args:
        rates: the rate of each update.
        losses: the smoothed loss before each update.
        suggestion: the rate at which the loss fell the fastest over the logarithm of the rate; None
            if it fell nowhere.
        diverged: whether the sweep ended early, because the loss grew out of bounds.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float | None
    diverged: bool

    def plot(self, axes: Any = None) -> Any:
        """Draw the losses over the rates; return the axes of Matplotlib.

        Args:
            axes: (optional) where to draw; by default on a new figure.

        Raises:
            ModuleNotFoundError: if Matplotlib is not installed.
        """
        if axes is None:
            try:
                from matplotlib.figure import Figure
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    "plot() needs Matplotlib, which is not installed: pip install matplotlib"
                ) from error
            axes = Figure().subplots()
        axes.plot(self.rates, self.losses)
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, linestyle="--")
        return axes


def find_lr(
    model: ModelOrFactory,
    datamodule: DataModule | Iterable[Any],
    low: float = 1e-7,
    high: float = 1.0,
    updates: int = 100,
    *,
    state: TrainingState | None = None,
    divergence: float = 4.0,
    progress: bool = True,
) -> LearningRates:
    """Train a copy for some updates, at rates from ``low`` to ``high``, and look at the loss.

    The rates are equally far apart on a logarithmic scale, whatever rate the optimizer has. The
    sweep ends early where the smoothed loss is more than ``divergence`` times the smallest, or is
    not finite.

    Args:
        model: a `helios.Model`, or a function that returns one.
        datamodule: the data, of which the training batches are used; or an iterable of batches.
        low: the first rate, above 0.
        high: the last rate, above ``low``.
        updates: updates of the sweep, at least 2; one micro-batch each.
        state: (optional) where to begin; by default with the parameters that the model has.
        divergence: how many times the smallest loss is too much, above 1.
        progress: whether a bar is shown, on a terminal.

    Returns:
        The rates, the losses and a suggestion.

    Raises:
        ValueError: if an argument is out of its range.
        ModelError: if the model has a step of its own, or an optimizer without a rate.
        DataError: if there are no training batches.

    Law:
        Model, optimizer, state and global random generators keep every bit
        (``tests/tuning/test_learning_rate.py``).
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"low, high: received {low!r}, {high!r}; expected 0 < low < high")
    if isinstance(updates, bool) or not isinstance(updates, int) or updates < 2:
        raise ValueError(f"updates: received {updates!r}; expected an integer of at least 2")
    if not divergence > 1:
        raise ValueError(f"divergence: received {divergence!r}; expected a number above 1")
    rates = [low * (high / low) ** (index / (updates - 1)) for index in range(updates)]
    now = 0
    losses: list[float] = []
    diverged, mean, best = False, 0.0, math.inf
    with preserved_rng(), contextlib.ExitStack() as stack:
        copied = copy_of(model)
        drive(copied, lambda count: rates[now])
        step = make_step(copied)
        name = copied.objectives()[0].metric
        begun = init_state(copied) if state is None else report(state)
        batches = _batches(datamodule, stack)
        move = mover(copied.device)
        bar = stack.enter_context(_bar(updates, progress))
        for now in range(updates):  # the rate looks at it
            try:
                # The first state may be the user's.
                begun = step(begun, move(next(batches)), donate=now > 0)
            except NonFiniteError:
                diverged = True
                break
            loss = metrics.compute(begun.carry.metrics)[name]
            begun = report(begun)
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            smooth = mean / (1 - _SMOOTHING ** (now + 1))
            if not math.isfinite(smooth) or (now > 0 and smooth > divergence * best > 0):
                diverged = True
                break
            losses.append(smooth)
            best = min(best, smooth)
            bar.update()
    tried = rates[: len(losses)]
    return LearningRates(tuple(tried), tuple(losses), suggested(tried, losses), diverged)


def suggested(rates: list[float], losses: list[float]) -> float | None:
    """Return the rate at which the loss falls the fastest; None if it falls nowhere.

    Args:
        rates: equally far apart on a logarithmic scale.
        losses: of each.

    Example:
        >>> suggested([0.01, 0.1, 1.0, 10.0], [3.0, 2.9, 1.0, 0.9])
        0.1
    """
    margin = int(len(losses) * _MARGIN)
    slopes = {
        index: losses[index + 1] - losses[index - 1]
        for index in range(max(margin, 1), len(losses) - max(margin, 1))
    }
    steepest = min(slopes, key=lambda index: slopes[index], default=None)
    return None if steepest is None or slopes[steepest] >= 0 else rates[steepest]


def _batches(data: Any, stack: contextlib.ExitStack) -> Iterator[Any]:
    """Yield training batches, epoch after epoch."""
    if isinstance(data, DataModule):
        data.prepare_data()
        stack.callback(data.teardown)
        data.setup()
        source = source_of(data.train_dataloader(), seed=data.seed)
        if source is None:
            raise DataError(f"{type(data).__name__} has no training set to sweep over")
    else:
        source = EpochSource(data)
    stack.enter_context(contextlib.closing(source))
    return itertools.chain.from_iterable(source.open(epoch) for epoch in itertools.count())


def _bar(total: int, progress: bool) -> Any:
    # None: on a terminal alone.
    return tqdm(total=total, desc="learning rates", disable=None if progress else True)
