"""Comparing runs: the states after each update, and the first update that differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from helios.functional.schedule import Batch, Checkpoint, EpochEnd, Event, Peek, Validate
from helios.functional.state import TrainingState
from helios.functional.tree import digest


class Difference(msgspec.Struct, frozen=True):
    """The first update in which two runs differ.

    Args:
        update: the number of the update, which is ``current_iteration`` after it.
        recorded: the digest on record.
        received: the digest of the state compared with it.
    """

    update: int
    recorded: str
    received: str


def settled(
    run: Iterable[tuple[Event, TrainingState]], updates: int | None = None
) -> Iterator[TrainingState]:
    """Yield the state after each update, with all that follows from it.

    A validation, the end of an epoch and a checkpoint belong to the update before them, so that
    these are the states that checkpoints hold.

    Args:
        run: events, each with the state before it, in order.
        updates: how many states to yield, None for all.
    """
    belongs_to_update = (Validate, EpochEnd, Checkpoint, Peek)
    pending = False
    count = 0
    for event, state in run:
        if pending and not isinstance(event, belongs_to_update):
            yield state
            count += 1
            pending = False
            if count == updates:
                return
        if isinstance(event, Batch):
            pending = event.update


def verify(states: Iterable[TrainingState], recorded: Mapping[int, str]) -> Difference | None:
    """Compare states with recorded digests, and return the first that differs.

    Args:
        states: states in order, such as a replay yields.
        recorded: the digest of the state after an update, by the number of the update; updates
            that are not in it are passed over.

    Returns:
        The first difference, None if there is none.

    Example:
        >>> states = [TrainingState(current_iteration=1), TrainingState(current_iteration=2)]
        >>> recorded = {1: digest(states[0]), 2: "0" * 32}
        >>> verify(states, recorded).update
        2
    """
    for state in states:
        known = recorded.get(state.current_iteration)
        if known is not None and (now := digest(state)) != known:
            return Difference(state.current_iteration, known, now)
    return None


def first_difference_of(a: Mapping[int, str], b: Mapping[int, str]) -> int | None:
    """Return the first update whose digests differ between two runs, by bisection.

    Two runs that differ once differ ever after, so the updates that both recorded fall into an
    equal part and a differing one, and the border is found in logarithmic time.

    Args:
        a: the digests of one run, by update.
        b: the digests of the other.

    Returns:
        The number of the update, None if all that both recorded are equal.

    Example:
        >>> first_difference_of({1: "a", 2: "b", 3: "c"}, {1: "a", 2: "x", 3: "y"})
        2
    """
    common = sorted(a.keys() & b.keys())
    low, high = 0, len(common)
    while low < high:
        middle = (low + high) // 2
        if a[common[middle]] == b[common[middle]]:
            low = middle + 1
        else:
            high = middle
    return common[low] if low < len(common) else None
