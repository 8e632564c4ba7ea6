"""Turns: batches that stop a training loop from within, whoever has written it.

A contestant's loop runs once, from the first update to the last, in a process of its own. Between
two turns it stands still: the batches do not come until the parent says so. What is timed is a
fixed number of whole updates, from one batch to another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

Send = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Cadence:
    """How the updates of a run are divided.

    Args:
        warmup: updates before the first turn.
        rounds: turns.
        settle: updates at the start of a turn that are not timed: other processes had the caches.
        steps: updates of a turn that are timed.
        early: after how many updates the parameters are compared for the first time.
    """

    warmup: int
    rounds: int
    settle: int
    steps: int
    early: int = 10

    def __post_init__(self) -> None:
        """Check that the parameters can be compared before the first turn."""
        if not 0 < self.early < self.warmup:
            raise ValueError(f"early: received {self.early}; expected 1 to {self.warmup - 1}")

    @property
    def total(self) -> int:
        """Updates of the whole run; two more than are timed, for those that look ahead."""
        return self.warmup + self.rounds * (self.settle + self.steps) + 2

    def as_dict(self) -> dict[str, int]:
        """Return the numbers by name."""
        return asdict(self)


class Turns:
    """The batches of a run, and the clock.

    Args:
        pool: the batches, gone through again and again.
        cadence: how the updates are divided.
        send: sends a message to the parent.
        wait: returns when the parent says so.
        ahead: how many batches the contestant's loop fetches before it uses them.
        clock: seconds.

    Attributes:
        parameters: set by the contestant: returns the parameters as they are now.
        early: the parameters after ``cadence.early`` updates.

    Example:
        >>> cadence = Cadence(warmup=2, rounds=1, settle=0, steps=3, early=1)
        >>> turns = Turns(["a", "b"], cadence, print, lambda: None, clock=lambda: 0)
        >>> turns.parameters = lambda: [torch.ones(1)]
        >>> "".join(turns)
        {'ready': 0}
        {'seconds': 0}
        'abababa'
    """

    def __init__(
        self,
        pool: list[Any],
        cadence: Cadence,
        send: Send,
        wait: Callable[[], None],
        ahead: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.cadence = cadence
        self.parameters: Callable[[], list[torch.Tensor]] | None = None
        self.early: list[torch.Tensor] = []
        self._pool = pool
        self._send, self._wait, self._clock = send, wait, clock
        self._started = self._begun = clock()
        self._stops = self._plan(ahead)
        self._next, self._act = next(self._stops)

    def __len__(self) -> int:
        return self.cadence.total

    def __iter__(self) -> Iterator[Any]:
        pool, size = self._pool, len(self._pool)
        for done in range(self.cadence.total):
            if done >= self._next:
                self.reached(done)
            yield pool[done % size]

    def as_list(self) -> list[Any]:
        """Return the batches without the stops, for a loop that calls `reached` by itself."""
        return [self._pool[i % len(self._pool)] for i in range(self.cadence.total)]

    def reached(self, done: int) -> None:
        """Do what is to be done after ``done`` updates, if anything is.

        Args:
            done: updates whose batches have been fetched, and used but for those fetched ahead.
        """
        while done >= self._next:
            if done > self._next:
                raise RuntimeError(f"the loop went past update {self._next}, to {done}")
            self._act()
            self._next, self._act = next(self._stops)

    @property
    def finished(self) -> bool:
        """Whether all turns were taken."""
        return self._next > self.cadence.total

    def _plan(self, ahead: int) -> Iterator[tuple[int, Callable[[], None]]]:
        cadence = self.cadence
        yield cadence.early + ahead, self._look
        at = cadence.warmup
        yield at, self._ready
        for _ in range(cadence.rounds):
            yield at + cadence.settle, self._start
            at += cadence.settle + cadence.steps
            yield at, self._stop
        yield cadence.total + 1, lambda: None

    def _look(self) -> None:
        if self.parameters is None:
            raise RuntimeError("the contestant did not say where its parameters are")
        self.early = [p.clone() for p in self.parameters()]

    def _ready(self) -> None:
        self._send({"ready": self._clock() - self._started})
        self._wait()

    def _start(self) -> None:
        self._begun = self._clock()

    def _stop(self) -> None:
        self._send({"seconds": self._clock() - self._begun})
        self._wait()  # after the last turn as well: others may have theirs before them
