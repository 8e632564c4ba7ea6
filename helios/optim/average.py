"""An average of the parameters along a run: exponential, or of equal weights."""

from __future__ import annotations

import msgspec
import torch

from helios.functional.transformation import Tensors
from helios.functional.tree import clone
from helios.optim.kinds import grouped
from helios.optim.slots import trainable


class Average(msgspec.Struct, frozen=True):
    """What `average` returns; the arguments are explained there."""

    decay: float | None = 0.999
    start: int = 0
    evaluate: bool = True
    every: int = 1

    def __post_init__(self) -> None:
        if self.decay is not None and not 0.0 <= self.decay <= 1.0:
            raise ValueError(
                f"decay: received {self.decay!r}; expected a number from 0 to 1, or None for "
                "equal weights"
            )
        if self.start < 0:
            raise ValueError(f"start: received {self.start!r}; expected at least 0 updates")
        if self.every < 1:
            raise ValueError(f"every: received {self.every!r}; expected at least 1 update")

    def init(self, params: Tensors) -> Tensors:
        """Return the average before the first update: private copies of the parameters."""
        copies: Tensors = clone(params)
        return copies

    def weight(self, count: int) -> float:
        """Return the weight that the next parameters have in the average, from 0 to 1.

        Args:
            count: updates done before.

        Example:
            >>> Average(decay=None).weight(3), Average(decay=0.75).weight(3)
            (0.25, 0.25)
        """
        averaged, between = divmod(count - self.start, self.every)
        if count <= self.start:
            return 1.0
        if between:
            return 0.0
        return 1 / (averaged + 1) if self.decay is None else 1 - self.decay

    def update(
        self, average: Tensors, params: Tensors, count: int, *, donate: bool = False
    ) -> Tensors:
        """Take the parameters after an update into the average.

        Args:
            average: what `init` or the last `update` returned.
            params: the parameters after the update, by path; left as they are.
            count: updates done before this one.
            donate: if true, ``average`` is updated in place and returned; if false, it keeps its
                bits, and the result shares no storage with it.

        Returns:
            The new average.
        """
        result: Tensors = average if donate else clone(average)
        averaged, between = divmod(count - self.start, self.every)
        if between and count > self.start:
            return result
        with torch.no_grad():
            for old, new in grouped(result.values(), [params[path] for path in result]):
                # Integers have no average: the last value stands.
                if count <= self.start or not trainable(old[0]):
                    torch._foreach_copy_(old, new)
                elif self.decay is None:
                    steps = torch._foreach_sub(new, old)
                    torch._foreach_div_(steps, averaged + 1)
                    torch._foreach_add_(old, steps)
                else:
                    torch._foreach_lerp_(old, new, self.weight(count))
        return result


def average(
    decay: float | None = 0.999, *, start: int = 0, evaluate: bool = True, every: int = 1
) -> Average:
    """Average the parameters along a run.

    After every update, ``average <- decay * average + (1 - decay) * params``; with ``decay=None``
    the average is the mean of the parameters after every update since ``start``, with equal
    weights. Up to ``start`` updates, the average is the parameters themselves.

    Stochastic weight averaging is ``average(None, start=..., every=...)``, with the updates of an
    epoch as ``every``. Batch normalisation has statistics of the parameters, not of their average:
    `helios.model.update_bn` computes those of the average.

    Args:
        decay: the weight of the past, from 0 to 1, or None for equal weights.
        start: updates before the first one that is averaged.
        evaluate: whether validation runs on the averaged parameters.
        every: updates from one that is averaged to the next; the first one is ``start + 1``.

    Raises:
        ValueError: if ``decay``, ``start`` or ``every`` is out of its range.

    Law:
        Equal to ``torch.optim.swa_utils.AveragedModel`` bit for bit
        (``tests/optim/test_average.py``).

    References:
        Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018.

    Example:
        >>> ema = average(decay=0.5)
        >>> mean = ema.init({"w": torch.tensor([0.0])})
        >>> mean = ema.update(mean, {"w": torch.tensor([1.0])}, 0)
        >>> ema.update(mean, {"w": torch.tensor([2.0])}, 1)
        {'w': tensor([1.5000])}
    """
    return Average(decay=decay, start=start, evaluate=evaluate, every=every)
