"""Running the fold forward from any state, and comparing runs by the states after each update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from helios.functional.schedule import (
    Batch,
    Checkpoint,
    EpochEnd,
    EpochStart,
    Event,
    Outcome,
    Peek,
    Plan,
    Validate,
    schedule,
)
from helios.functional.state import (
    TrainingState,
    TrainingUnit,
    end_epoch,
    end_validation,
    judge,
    report,
    score,
    start_epoch,
)
from helios.functional.step import Step
from helios.functional.tree import digest

Judge = Callable[[TrainingState], tuple[bool, float | None]]
"""Validates a state: whether its score improved, and the best score after it."""


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


def replay(
    step: Step,
    plan: Plan,
    state: TrainingState,
    batches: Callable[[int, int], Iterable[Any]],
    *,
    validate: Judge | None = None,
    updates: int | None = None,
) -> Iterator[TrainingState]:
    """Run the fold forward from a state, and yield the state after each update.

    This is the pure core of a run: the step and the calendar, without hooks, files or devices.
    `helios.replay` runs a checkpoint of a trainer, hooks and validations included.

    Args:
        step: what a micro-batch does, made for ``plan``.
        plan: when things happen; its number of batches per epoch must be known.
        state: where to begin, such as `TrainingState.from_bytes` gives.
        batches: ``(epoch, start) -> micro-batches`` of an epoch, counted from 0, without the first
            ``start`` ones; `helios.data.EpochSource.open` is such a function.
        validate: validates a state; returns whether its score improved, and the best score after
            it, None if there is none. Needed if the plan validates.
        updates: how many states to yield; None for all up to the plan's end.

    Yields:
        The state after an update, with the validation and the epoch's end that belong to it. None
        is consumed by the next.

    Raises:
        ValueError: if the size of an epoch is unknown, or ``validate`` is missing.

    Law:
        The states have the bits of the trainer's, wall clock aside
        (``property_tests/test_fit.py``).
    """
    if plan.batches_per_epoch is None:
        raise ValueError("plan: received batches_per_epoch=None; expected the size of an epoch")
    if plan.valid_frequency is not None and validate is None:
        raise ValueError(
            f"validate: received None, and the plan validates (valid_frequency="
            f"{plan.valid_frequency}); give a function from a state to (improved, best)"
        )
    return settled(_run(step, plan, state, batches, validate), updates)


def _run(
    step: Step,
    plan: Plan,
    state: TrainingState,
    batches: Callable[[int, int], Iterable[Any]],
    validate: Judge | None,
) -> Iterator[tuple[Event, TrainingState]]:
    """Yield every event of a plan with the state before it."""
    events = schedule(plan, state)
    outcome: Outcome | None = None
    epoch: Iterator[Any] = iter(())
    while True:
        try:
            event = events.send(outcome)
        except StopIteration:
            return
        yield event, state
        outcome = None
        if isinstance(event, EpochStart):
            state = start_epoch(state)
            epoch = iter(batches(event.epoch - 1, event.first_batch))
        elif isinstance(event, Batch):
            state = step(state, next(epoch))
            if event.log:
                state = report(state)
        elif isinstance(event, (Validate, EpochEnd)):
            if plan.print_frequency is None:
                state = report(state)
            if plan.unit is TrainingUnit.EPOCH or isinstance(event, EpochEnd):
                state = end_epoch(state)
            if isinstance(event, Validate) and validate is not None:
                improved, best = validate(state)
                outcome = Outcome(improved=improved)
                state = judge(score(end_validation(state), best), improved=improved)


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
