"""The calendar of a run: a plan and a state in, events out, in order; nothing is done here.

`schedule` is a protocol machine without input or output. It yields what is to happen next and is
sent what came of it, and it never looks at a clock, a file or a tensor. Whoever interprets the
events applies the transitions of `helios.functional.state` to a state of their own; the calendar
applies the same ones to a copy of the counters, so both always agree.
"""

from __future__ import annotations

import enum
from collections.abc import Generator
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from helios.errors import DataError, ResumeError
from helios.functional.plan import Plan, closes_window
from helios.functional.state import (
    TrainingState,
    TrainingUnit,
    begin_batch,
    end_batch,
    end_epoch,
    end_validation,
    judge,
    start_epoch,
)

__all__ = [
    "Plan",
    "after",
    "closes_window",
    "is_due",
    "schedule",
    "Event",
    "EpochStart",
    "Peek",
    "Batch",
    "Validate",
    "EpochEnd",
    "Checkpoint",
    "Stop",
    "StopReason",
    "Outcome",
]


class StopReason(enum.StrEnum):
    """Why a run ends. Where several hold at once, the first in this order is given."""

    EARLY_STOP = "early_stop"
    REQUESTED = "requested"
    TOTAL_STEPS = "total_steps"


class EpochStart(msgspec.Struct, frozen=True, tag=True, gc=False):
    """An epoch begins, or is taken up.

    Args:
        epoch: its number, from 1.
        first_batch: micro-batches of it that are consumed already, 0 unless it is taken up.
    """

    epoch: int
    first_batch: int


class Peek(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A question: how many micro-batches are left in this epoch? Asked where only the loader knows.

    The answer is `Outcome.available`. Right after a resume it may be asked twice in a row.
    """


class Batch(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A micro-batch is due.

    Args:
        epoch: the epoch in progress, from 1.
        index: its place in the epoch, in micro-batches, from 0.
        iteration: ``global_iteration`` once its counters have advanced, in micro-batches, from 1.
        update: whether it closes its accumulation window, so that the optimizer steps.
        log: whether its metrics are to be logged.
    """

    epoch: int
    index: int
    iteration: int
    update: bool
    log: bool


class Validate(msgspec.Struct, frozen=True, tag=True, gc=False):
    """A validation is due.

    Args:
        cycle: validations done before it.
    """

    cycle: int


class EpochEnd(msgspec.Struct, frozen=True, tag=True, gc=False):
    """An epoch is over.

    Args:
        epoch: its number, from 1.
    """

    epoch: int


class Checkpoint(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The state is to be saved.

    Args:
        epoch: ``global_epoch``.
        iteration: ``current_iteration``, in updates.
        cadence: whether the plan's frequency asks for it; otherwise it is the last of a run that
            ends off its cadence.
    """

    epoch: int
    iteration: int
    cadence: bool


class Stop(msgspec.Struct, frozen=True, tag=True, gc=False):
    """The run is over; always the last event.

    Args:
        reason: why.
    """

    reason: StopReason


Event: TypeAlias = EpochStart | Peek | Batch | Validate | EpochEnd | Checkpoint | Stop
"""What `schedule` yields; ``msgspec.json`` writes and reads it."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What came of an event. Sending None, or calling ``next``, means ``Outcome()``.

    Args:
        improved: whether a validation improved the score; read after `Validate`.
        stop: whether the run is to stop. After a `Batch` it is left at once; otherwise what is due
            at this point is done first. After `EpochStart` and `Peek` a micro-batch may come first.
        available: micro-batches left in the epoch: 0 for none, 1 for exactly one, 2 for two or
            more; read after `Peek`.
    """

    improved: bool = True
    stop: bool = False
    available: int = 2


_GO_ON = Outcome()


def schedule(plan: Plan, state: TrainingState) -> Generator[Event, Outcome | None, TrainingState]:
    """Yield the events of a run that are left from ``state`` on.

    At every point the order is: micro-batch, validation, end of the epoch, checkpoint, stop.

    A state is taken up wherever it stands, in constant time. If the run was left right after a
    micro-batch, what was due there and could not be done (a validation, the end of the epoch, the
    checkpoint after them) comes first, after the `EpochStart` of the epoch in progress. A state
    that was resumed from is on disk, and is not saved again.

    Args:
        plan: when things happen.
        state: where the run stands; ``TrainingState()`` for a new one. Its carry is not looked at.

    Yields:
        Events, in order. Each is answered with an `Outcome`, or None for ``Outcome()``.

    Returns:
        The counters at the end, as a state without a carry.

    Raises:
        DataError: if an epoch turns out to have no micro-batches at all.
        ResumeError: if the epoch in progress is shorter than what was consumed of it.

    Law:
        ``property_tests/test_schedule_resume.py``: the events from any state of a run on are the
        tail of the run's events. ``property_tests/test_schedule_oracle.py``: they are those of a
        plain loop. ``test_schedule_counts.py``, ``test_schedule_windows.py``,
        ``test_schedule_early_stop.py`` and ``test_schedule_infinite.py`` beside them: how many,
        how windows lie, early stops are prefixes, and runs without an end are lazy.

    Example:
        >>> plan = Plan(total_steps=1, batches_per_epoch=2, chkpt_frequency=1)
        >>> for event in schedule(plan, TrainingState()):
        ...     print(event)
        EpochStart(epoch=1, first_batch=0)
        Batch(epoch=1, index=0, iteration=1, update=True, log=False)
        Batch(epoch=1, index=1, iteration=2, update=True, log=False)
        EpochEnd(epoch=1)
        Checkpoint(epoch=1, iteration=2, cadence=True)
        Stop(reason=<StopReason.TOTAL_STEPS: 'total_steps'>)
    """
    by_epoch, size = plan.unit is TrainingUnit.EPOCH, plan.batches_per_epoch
    state = saved = replace(state, carry=None)  # a state that was resumed from is on disk
    ended = 0 < state.dataset_iter == size
    owed = is_due(plan, state)  # what a stop right after a micro-batch left
    reason = None if owed else _reason_to_stop(plan, state, asked=False)
    if reason is None:
        _check_position(plan, state)
    opening, asked, cadence = True, False, False

    while reason is None:
        if opening or state.dataset_iter == 0:
            state = start_epoch(state)
            outcome = (yield EpochStart(state.global_epoch, state.dataset_iter)) or _GO_ON
            opening, asked = False, outcome.stop

        if not owed:
            if size is None:
                outcome = (yield Peek()) or _GO_ON
                left, asked = outcome.available, asked or outcome.stop
            else:
                left = size - state.dataset_iter
            ended = left <= 1
            if left > 0:
                update = closes_window(plan, state, ended)
                index, state = state.dataset_iter, begin_batch(state, update=update)
                log = update and _due(plan.print_frequency, state.current_iteration)
                batch = Batch(state.global_epoch, index, state.global_iteration, update, log)
                outcome = (yield batch) or _GO_ON
                state = end_batch(state)
                if asked or outcome.stop:
                    reason = StopReason.REQUESTED
                    cadence = not ended and _saves_at_once(plan, state)
                    break
            elif state.dataset_iter == 0:
                raise _empty(state.global_epoch)

        # What the frequencies count, and whether it has just advanced. Between windows, the last
        # micro-batch was an update.
        if by_epoch:
            point, count = ended, state.global_epoch
        else:
            point, count = state.window_iter == 0, state.current_iteration
        if not (point or ended):
            continue
        if by_epoch:
            state = end_epoch(state)
        if point and _due(plan.valid_frequency, count) and (by_epoch or state.running_iter > 0):
            outcome = (yield Validate(state.validation_cycles)) or _GO_ON
            state = judge(end_validation(state), improved=outcome.improved)
            asked = asked or outcome.stop
        if owed and size is None:  # a validation was; was the end of the epoch as well?
            outcome = (yield Peek()) or _GO_ON
            ended, asked = outcome.available == 0, asked or outcome.stop
        if ended:
            state = end_epoch(state)
            outcome = (yield EpochEnd(state.global_epoch)) or _GO_ON
            asked = asked or outcome.stop
        if point and _due(plan.chkpt_frequency, count):
            saved = state
            outcome = (
                yield Checkpoint(state.global_epoch, state.current_iteration, True)
            ) or _GO_ON
            asked = asked or outcome.stop
        reason = _reason_to_stop(plan, state, asked=asked)
        owed = False

    if cadence or (plan.save_final and saved is not state):
        yield Checkpoint(state.global_epoch, state.current_iteration, cadence)
    yield Stop(reason)
    return state


def after(
    plan: Plan, state: TrainingState, event: Event, *, improved: bool = True
) -> TrainingState:
    """Return a state once an event is done, as whoever interprets the events keeps it.

    Args:
        plan: the plan whose events they are.
        state: the state before the event.
        event: the event.
        improved: what a validation came to.

    Law:
        Over all events of a run it leads to what `schedule` returns
        (``property_tests/test_schedule_oracle.py``).

    Example:
        >>> after(Plan(), TrainingState(dataset_iter=3), EpochEnd(1)).dataset_iter
        0
    """
    if isinstance(event, EpochStart):
        return start_epoch(state)
    if isinstance(event, Batch):
        return end_batch(begin_batch(state, update=event.update))
    if isinstance(event, Validate):
        if plan.unit is TrainingUnit.EPOCH:
            state = end_epoch(state)
        return judge(end_validation(state), improved=improved)
    return end_epoch(state) if isinstance(event, EpochEnd) else state


def is_due(plan: Plan, state: TrainingState) -> bool:
    """Tell whether a validation or the end of an epoch is due at a state, as far as it is known.

    A run that was left right after a micro-batch has such a state. Where only the data tells that
    an epoch has ended, it is not known.
    """
    return 0 < state.dataset_iter == plan.batches_per_epoch or _owes_validation(plan, state)


def _due(frequency: int | None, count: int) -> bool:
    return frequency is not None and count % frequency == 0


def _owes_validation(plan: Plan, state: TrainingState) -> bool:
    """Tell whether a run was left after an update, before the validation that was due there.

    A validation sets ``running_iter`` to 0, so an update that was validated is not one.
    """
    return (
        plan.unit is TrainingUnit.ITERATION
        and state.dataset_iter > 0
        and state.window_iter == 0
        and state.running_iter > 0
        and _due(plan.valid_frequency, state.current_iteration)
    )


def _saves_at_once(plan: Plan, state: TrainingState) -> bool:
    """Tell whether a run left in mid-epoch is left at its checkpoint, with nothing due before it.

    The checkpoint is then done on the way out, and a resume does not come back to it.
    """
    return (
        plan.unit is TrainingUnit.ITERATION
        and state.window_iter == 0
        and _due(plan.chkpt_frequency, state.current_iteration)
        and not _owes_validation(plan, state)
    )


def _reason_to_stop(plan: Plan, state: TrainingState, *, asked: bool) -> StopReason | None:
    if plan.early_stop_cycles is not None and state.early_stop_count >= plan.early_stop_cycles:
        return StopReason.EARLY_STOP
    if asked:
        return StopReason.REQUESTED
    if plan.total_steps is None:
        return None
    if plan.unit is TrainingUnit.ITERATION:
        done = state.current_iteration
    else:
        done = state.global_epoch - (state.dataset_iter > 0)
    return StopReason.TOTAL_STEPS if done >= plan.total_steps else None


def _check_position(plan: Plan, state: TrainingState) -> None:
    size = plan.batches_per_epoch
    if size is not None and state.dataset_iter > size:
        raise ResumeError(
            f"the state stands after micro-batch {state.dataset_iter} of epoch "
            f"{state.global_epoch}, and an epoch now has {size} (batches_per_epoch={size}): the "
            "dataset, the batch size, drop_last or the number of ranks has changed. Resume with "
            "those of the run, or begin a new run under another name"
        )


def _empty(epoch: int) -> DataError:
    return DataError(
        f"epoch {epoch} has no micro-batches: the training loader is empty. Check the size of the "
        "dataset against batch_size and drop_last; an iterable dataset has to begin anew in every "
        "epoch"
    )
