"""Where and how a child is to be hit: at a random time, or at a place that it reaches."""

from __future__ import annotations

import random
import signal

import msgspec

POINTS = (
    "operation",
    "operation done",
    "removal",
    "removal done",
    "write",
    "write done",
    "validation",
    "validation batch",
    "validation done",
    "epoch end",
    "epoch end done",
    "worker start",
    "worker started",
    "workers started",
    "fetch",
    "step",
    "step done",
    "save",
    "save done",
    "finish",
)


class Aim(msgspec.Struct, frozen=True):
    """How a signal reaches a process.

    Args:
        point: one of `POINTS`, or "" for a time alone.
        count: at which time that the child comes there, from 1.
        delay: seconds from there, or from the start of the child; None if the child sends the
            signal itself, on the spot.
        number: the signal.
        group: whether the whole process group gets it.
    """

    point: str = ""
    count: int = 1
    delay: float | None = 0.0
    number: int = int(signal.SIGKILL)
    group: bool = False

    def __str__(self) -> str:
        name = signal.Signals(self.number).name + (" to the group" if self.group else "")
        when = "itself" if self.delay is None else f"after {self.delay * 1e3:.2f} ms"
        return f"{name} {f'at {self.point} {self.count}' if self.point else 'by time'}, {when}"


class Shape(msgspec.Struct, frozen=True):
    """What an uninterrupted run does, to aim by.

    Args:
        seconds: from its fork to its end.
        counts: how often it reaches each point.
    """

    seconds: float
    counts: dict[str, int]


_WEIGHTS = {
    "": 18,
    "operation": 12,
    "operation done": 12,
    "removal": 6,
    "removal done": 6,
    "write": 3,
    "write done": 3,
    "validation": 6,
    "validation batch": 5,
    "validation done": 4,
    "epoch end": 9,
    "epoch end done": 6,
    "worker start": 8,
    "worker started": 10,
    "workers started": 6,
    "fetch": 4,
    "step": 4,
    "step done": 2,
    "save": 4,
    "save done": 3,
    "finish": 1,
}
"""How often each point is aimed at, so that an hour hits each phase some thousand times."""


def draw_aim(
    chance: random.Random,
    shape: Shape,
    hits: int,
    number: int = int(signal.SIGKILL),
    points: tuple[str, ...] = ("", *POINTS),
) -> Aim:
    """Draw where the next of ``hits`` that are left hits a run.

    Args:
        chance: where to draw from.
        shape: the uninterrupted run; a leg shall get through about its share of it.
        hits: how many are left, this one included.
        number: the signal.
        points: those to choose from, "" for random times.
    """
    possible = [point for point in points if not point or shape.counts.get(point)]
    point = chance.choices(possible, [_WEIGHTS[name] for name in possible])[0]
    share = min(1.0, 2 / (hits + 1))
    group = chance.random() < 0.25
    if not point:
        return Aim(delay=chance.uniform(0, 1.1 * shape.seconds * share), number=number, group=group)
    reach = max(1, round(shape.counts[point] * share))
    delay = None if chance.random() < 0.5 else chance.expovariate(1) * 2e-3
    if delay is None and number != signal.SIGKILL:
        group = False  # workers obey their parent, and that is who would send it to them
    return Aim(point, chance.randint(1, reach), delay, number, group)
