"""Learning rates as functions of the updates completed.

A rate is a small frozen value that is called with the number of updates completed and gives the
learning rate of the next one. It has no memory: any count can be asked for, in any order, at the
same cost. Values are compared, printed and pickled as what they are made of.

References:
    The counterparts in ``torch.optim.lr_scheduler``, to which each is equal
    (``tests/optim/test_rates.py``).
"""

# ruff: noqa: N801 - a rate is written, and printed, as the call that makes it.

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Literal

import msgspec

from helios.optim.joined import joined as joined


class constant(msgspec.Struct, frozen=True):
    """The same rate for every update.

    Args:
        rate: the rate.

    Raises:
        ValueError: if ``rate`` is negative.

    Example:
        >>> constant(0.1)(1000)
        0.1
    """

    rate: float

    def __post_init__(self) -> None:
        _at_least("rate", self.rate, 0)

    def __call__(self, count: int) -> float:
        """Return the rate after ``count`` updates."""
        return self.rate


class linear_warmup(msgspec.Struct, frozen=True):
    """From ``start`` up to ``peak`` in a straight line, and then ``peak``.

    Like ``LinearLR`` with ``start_factor=start / peak``. With the default ``start`` the first
    update has a rate of 0.

    Args:
        peak: the rate from ``updates`` on.
        updates: updates until the peak, at least 1.
        start: the rate of the first update.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> linear_warmup(1.0, updates=4)(1)
        0.25
    """

    peak: float
    updates: int
    start: float = 0.0

    def __post_init__(self) -> None:
        _at_least("peak", self.peak, 0)
        _at_least("updates", self.updates, 1)
        _at_least("start", self.start, 0)

    def __call__(self, count: int) -> float:
        """Return the rate after ``count`` updates."""
        if count >= self.updates:
            return self.peak
        return self.start + (self.peak - self.start) * count / self.updates


class cosine(msgspec.Struct, frozen=True):
    """From ``start`` down to ``end`` along half a cosine, and then ``end``.

    Like ``CosineAnnealingLR`` with ``T_max=updates``, which after ``T_max`` would rise again.

    Args:
        start: the rate of the first update.
        updates: updates until ``end``, at least 1.
        end: the rate from ``updates`` on.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> cosine(1.0, updates=10)(5)
        0.5
    """

    start: float
    updates: int
    end: float = 0.0

    def __post_init__(self) -> None:
        _at_least("start", self.start, 0)
        _at_least("updates", self.updates, 1)
        _at_least("end", self.end, 0)

    def __call__(self, count: int) -> float:
        """Return the rate after ``count`` updates."""
        if count >= self.updates:
            return self.end
        return _cosine(self.start, self.end, math.pi * count / self.updates)


class cosine_restarts(msgspec.Struct, frozen=True):
    """Cosines from ``start`` down to ``end``, one after the other.

    Like ``CosineAnnealingWarmRestarts`` with ``T_0=updates`` and ``T_mult=factor``.

    Args:
        start: the rate at the beginning of every cosine.
        updates: updates in the first cosine, at least 1.
        factor: how many times longer each cosine is than the one before, a whole number.
        end: the rate that each cosine approaches.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.

    Example:
        >>> rate = cosine_restarts(1.0, updates=10, factor=2)
        >>> rate(5), rate(10), rate(20)
        (0.5, 1.0, 0.5)
    """

    start: float
    updates: int
    factor: int = 1
    end: float = 0.0

    def __post_init__(self) -> None:
        _at_least("start", self.start, 0)
        _at_least("updates", self.updates, 1)
        if not isinstance(self.factor, int) or self.factor < 1:
            raise ValueError(f"factor: received {self.factor!r}; expected a whole number from 1 on")
        _at_least("end", self.end, 0)

    def __call__(self, count: int) -> float:
        """Return the rate after ``count`` updates."""
        position, length = self._place(count)
        return _cosine(self.start, self.end, math.pi * position / length)

    def _place(self, count: int) -> tuple[int, int]:
        if self.factor == 1:
            return count % self.updates, self.updates
        # Cosine n begins at updates * (factor**n - 1) / (factor - 1). The logarithm may be off by
        # one where n is whole; the integers decide.
        cosines = int(math.log(count / self.updates * (self.factor - 1) + 1, self.factor))
        for n in (cosines + 1, cosines, cosines - 1):
            begin = self.updates * (self.factor**n - 1) // (self.factor - 1) if n >= 0 else -1
            if 0 <= begin <= count:
                return count - begin, self.updates * self.factor**n
        raise AssertionError(f"no cosine begins before update {count}")


class multi_step(msgspec.Struct, frozen=True):
    """A rate that is multiplied by ``gamma`` at every milestone.

    Like ``MultiStepLR``.

    Args:
        start: the rate of the first update.
        milestones: counts of updates, in rising order; a list becomes a tuple.
        gamma: the factor.

    Raises:
        ValueError: if the milestones do not rise, or another argument is negative.

    Example:
        >>> multi_step(1.0, milestones=[10, 20], gamma=0.5)(15)
        0.5
    """

    start: float
    milestones: Sequence[int]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _at_least("start", self.start, 0)
        milestones = tuple(self.milestones)
        if list(milestones) != sorted(milestones) or any(m < 0 for m in milestones):
            raise ValueError(
                f"milestones: received {self.milestones!r}; expected counts in rising order"
            )
        msgspec.structs.force_setattr(self, "milestones", milestones)
        _at_least("gamma", self.gamma, 0)

    def __call__(self, count: int) -> float:
        """Return the rate after ``count`` updates."""
        return self.start * float(self.gamma) ** bisect_right(self.milestones, count)


class exponential(msgspec.Struct, frozen=True):
    """A rate that is multiplied by ``gamma`` after every update.

    Like ``ExponentialLR``.

    Args:
        start: the rate of the first update.
        gamma: the factor.

    Raises:
        ValueError: if an argument is negative.

    Example:
        >>> exponential(1.0, gamma=0.5)(3)
        0.125
    """

    start: float
    gamma: float

    def __post_init__(self) -> None:
        _at_least("start", self.start, 0)
        _at_least("gamma", self.gamma, 0)

    def __call__(self, count: int) -> float:
        """Return the rate after ``count`` updates."""
        return self.start * float(self.gamma) ** count


class polynomial(msgspec.Struct, frozen=True):
    """From ``start`` to ``end`` along a power of the time that is left, and then ``end``.

    Like ``PolynomialLR``, which has ``end=0``. With ``power=1`` it is a straight line.

    Args:
        start: the rate of the first update.
        updates: updates until ``end``, at least 1.
        power: the exponent.
        end: the rate from ``updates`` on.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> polynomial(1.0, updates=4, power=2.0)(2)
        0.25
    """

    start: float
    updates: int
    power: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        _at_least("start", self.start, 0)
        _at_least("updates", self.updates, 1)
        _at_least("power", self.power, 0)
        _at_least("end", self.end, 0)

    def __call__(self, count: int) -> float:
        """Return the rate after ``count`` updates."""
        if count >= self.updates:
            return self.end
        left = 1.0 - count / self.updates
        return float(self.end + (self.start - self.end) * left**self.power)


class one_cycle(msgspec.Struct, frozen=True):
    """One cycle: up to ``peak`` and then down to almost nothing.

    Like ``OneCycleLR`` without its momentum cycle: the rate begins at ``peak / div``, and ends,
    at update ``updates - 1`` and after, at ``peak / div / final_div``.

    Args:
        peak: the largest rate.
        updates: updates in the cycle, at least 1.
        warmup: the part of the cycle in which the rate rises, from 0 to 1.
        div: what the peak is divided by at the beginning.
        final_div: what that rate is divided by again at the end.
        anneal: ``"cosine"`` or ``"linear"``.

    Raises:
        ValueError: if an argument is out of its range.

    References:
        Smith and Topin, "Super-Convergence", 2018.

    Example:
        >>> one_cycle(1.0, updates=11, warmup=0.5, anneal="linear")(10)
        4e-06
    """

    peak: float
    updates: int
    warmup: float = 0.3
    div: float = 25.0
    final_div: float = 1e4
    anneal: Literal["cosine", "linear"] = "cosine"

    def __post_init__(self) -> None:
        _at_least("peak", self.peak, 0)
        _at_least("updates", self.updates, 1)
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup: received {self.warmup!r}; expected a part from 0 to 1")
        _at_least("div", self.div, 1)
        _at_least("final_div", self.final_div, 1)
        if self.anneal not in ("cosine", "linear"):
            raise ValueError(f"anneal: received {self.anneal!r}; expected 'cosine' or 'linear'")

    def __call__(self, count: int) -> float:
        """Return the rate after ``count`` updates."""
        anneal = _wave if self.anneal == "cosine" else _line
        start = self.peak / self.div
        top, last = self.warmup * self.updates - 1, self.updates - 1
        if count <= top:
            return anneal(start, self.peak, count / top) if top else self.peak
        if count >= last:
            return start / self.final_div
        # With almost no warm-up the top lies before update 0, and the fall has begun there.
        return anneal(self.peak, start / self.final_div, (count - top) / (last - top))


def warmup_cosine(peak: float, warmup: int, total: int, end: float = 0.0) -> joined:
    """Rise in a straight line from 0 to ``peak``, then fall along a cosine to ``end``.

    Args:
        peak: the largest rate.
        warmup: updates until the peak, from 1 to ``total - 1``.
        total: updates in all.
        end: the rate from update ``total`` on.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> rate = warmup_cosine(1.0, warmup=10, total=110)
        >>> rate(5), rate(10), rate(60), rate(110)
        (0.5, 1.0, 0.5, 0.0)
    """
    if not 0 < warmup < total:
        raise ValueError(
            f"warmup: received {warmup!r}; expected from 1 to total - 1 = {total - 1} updates"
        )
    fall = cosine(peak, total - warmup, end)
    return joined([(linear_warmup(peak, warmup), warmup), (fall, None)])


def _cosine(start: float, end: float, angle: float) -> float:
    return end + (start - end) * (1 + math.cos(angle)) / 2


def _wave(start: float, end: float, part: float) -> float:
    return _cosine(start, end, math.pi * part)


def _line(start: float, end: float, part: float) -> float:
    return start + (end - start) * part


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name}: received {value!r}; expected a number of at least {least}")
