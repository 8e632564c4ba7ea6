"""Rates one after the other, each for some updates."""

# ruff: noqa: N801 - a rate is written, and printed, as the call that makes it.

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

Part = tuple[Callable[[int], float], int | None]
"""A rate and the updates for which it holds; None, for ever."""


class joined(msgspec.Struct, frozen=True):
    """Rates one after the other; each counts its own updates from 0.

    Like ``SequentialLR``.

    Args:
        parts: pairs of a rate and the updates for which it holds. The last one holds for ever, and
            its number of updates may be None.

    Raises:
        ValueError: if there is no part, or a number of updates is not at least 1.
        TypeError: if a part is not such a pair.

    Example:
        >>> from helios.optim import rates
        >>> rate = joined([(rates.linear_warmup(1.0, 10), 10), (rates.constant(0.5), None)])
        >>> rate(5), rate(10)
        (0.5, 0.5)
    """

    parts: Sequence[Part]

    def __post_init__(self) -> None:
        parts = tuple(map(_part, self.parts))
        if not parts:
            raise ValueError("parts: received none; expected at least one (rate, updates)")
        for index, (_, updates) in enumerate(parts):
            last = index == len(parts) - 1
            if not (last if updates is None else updates >= 1):
                raise ValueError(
                    f"parts[{index}]: received {updates!r} updates; expected at least 1"
                    + (", or None" if last else "; None is for the last part")
                )
        msgspec.structs.force_setattr(self, "parts", parts)

    def __call__(self, count: int) -> float:
        """Return the rate after ``count`` updates."""
        for rate, updates in self.parts[:-1]:
            assert updates is not None  # checked in __post_init__
            if count < updates:
                return rate(count)
            count -= updates
        return self.parts[-1][0](count)


def _part(part: Part) -> Part:
    if not (isinstance(part, (tuple, list)) and len(part) == 2 and callable(part[0])):
        raise TypeError(f"parts: received {part!r}; expected pairs of a rate and its updates")
    return (part[0], part[1])
