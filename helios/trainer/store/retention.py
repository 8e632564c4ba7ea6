"""Which checkpoints to keep: a pure function of what the manifests say."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import msgspec

from helios.functional.state import TrainingUnit
from helios.trainer.store.manifest import Manifest


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """Which checkpoints of a run to keep; the others are removed after each save.

    A checkpoint is kept if any of these holds: it is among the ``last``, or among the ``best``, or
    ``every`` divides its position, or it is pinned (`pin_checkpoint`). The one just written and the
    newest healthy one are kept in any case. One with a parameter that is not finite counts for
    nothing: it is never among the last or the best, and takes nobody's place.

    Args:
        last: how many of the newest to keep; 0 keeps none but the one just written.
        best: how many to keep of those with the best validation score, by `Model.monitor`.
            Checkpoints that were not validated at their state have no score. Of equal scores the
            earlier one is better.
        every: keep those whose epoch, or update where ``train_unit`` is ITERATION, is a multiple
            of this.

    Raises:
        TypeError: if a number is not an int.
        ValueError: if ``last`` or ``best`` is negative, or ``every`` is less than 1.

    Example:
        >>> Retention(last=3, best=1)
        Retention(last=3, best=1, every=None)
    """

    last: int = 1
    best: int = 0
    every: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("last", 0), ("best", 0), ("every", 1)):
            value = getattr(self, name)
            if value is None and name == "every":
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: received {value!r}; expected an int")
            if value < least:
                raise ValueError(f"{name}: received {value}; expected at least {least}")


def superfluous(
    retention: Retention, manifests: Iterable[Manifest], newest: str, pinned: Collection[str]
) -> list[str]:
    """Return the stems of the checkpoints that need not be kept, the oldest first.

    Which came after which is told by the order of the commits, not by the numbers in the names: a
    run that went on from an earlier checkpoint writes smaller numbers again.

    Args:
        retention: what to keep.
        manifests: the whole checkpoints.
        newest: the stem of the one just written.
        pinned: the stems of the pinned ones.

    Law:
        The newest, the newest healthy one, the best and the pinned ones are never among them, and
        at most ``last`` others are left beside those (``property_tests/test_retention.py``).
    """
    by_commit = sorted(manifests, key=lambda manifest: manifest.sequence)
    healthy = [manifest for manifest in by_commit if manifest.finite]
    keep = {newest, *pinned}
    keep.update(m.stem for m in healthy[-max(retention.last, 1) :])
    keep.update(m.stem for m in _by_score(healthy)[: retention.best])
    keep.update(m.stem for m in healthy if retention.every and _unit(m) % retention.every == 0)
    return [manifest.stem for manifest in by_commit if manifest.stem not in keep]


def _by_score(manifests: Iterable[Manifest]) -> list[Manifest]:
    """Sort those that can be compared with the newest score, the best first."""
    scored = [m for m in manifests if m.score is not None and math.isfinite(m.score)]
    if not scored:
        return []
    metric, mode = scored[-1].metric, scored[-1].mode
    comparable = [m for m in scored if (m.metric, m.mode) == (metric, mode)]
    sign = -1 if mode == "max" else 1
    return sorted(comparable, key=lambda m: (sign * (m.score or 0.0), m.sequence))


def _unit(manifest: Manifest) -> int:
    by_update = manifest.plan.unit is TrainingUnit.ITERATION
    return int(manifest.counters["current_iteration" if by_update else "global_epoch"])
