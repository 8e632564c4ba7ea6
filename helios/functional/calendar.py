"""The calendar of a run that nobody runs: its events with runs of batches in one, and its totals.

`helios.functional.schedule.schedule` takes up any state in constant time. So batches after which
nothing comes but a batch are passed over by arithmetic, and a plan of a billion updates costs what
its validations, checkpoints and epochs do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice

import msgspec
from msgspec.structs import replace

from helios.functional.schedule import Batch, Event, Peek, Plan, after, schedule
from helios.functional.state import TrainingState, TrainingUnit


class Batches(msgspec.Struct, frozen=True, tag=True):
    """Micro-batches of one epoch, one after the other.

    Args:
        epoch: the epoch, from 1.
        first: the place of the first in the epoch, from 1.
        last: the place of the last; None if it is not known, or there is none.
        updates: windows that they close; None as before.
        logs: logs that fall due in them; None as before.
    """

    epoch: int
    first: int
    last: int | None
    updates: int | None
    logs: int | None


class Entry(msgspec.Struct, frozen=True):
    """A line of the calendar.

    Args:
        event: what happens.
        update: updates done when it has happened; None if that is not known.
    """

    event: Event | Batches
    update: int | None


class Totals(msgspec.Struct, frozen=True):
    """How often things happen in a run; None where the plan does not say.

    Args:
        epochs: epochs begun.
        updates: updates.
        micro_batches: micro-batches.
        validations: validations.
        checkpoints: checkpoints, the last one of the run included.
        logs: logs.
    """

    epochs: int | None
    updates: int | None
    micro_batches: int | None
    validations: int | None
    checkpoints: int | None
    logs: int | None


def entries(plan: Plan, state: TrainingState | None = None) -> Iterator[Entry]:
    """Yield the calendar of a run in which every validation improves the score; lazily.

    Args:
        plan: the plan. In EPOCH without ``batches_per_epoch``, the numbers of batches are None.
        state: (optional) where to begin; a new run without it.

    Law:
        With its runs of batches written out, it is what `schedule` yields
        (``property_tests/test_calendar.py``).

    Example:
        >>> plan = Plan(unit=TrainingUnit.ITERATION, total_steps=10**9)
        >>> [type(entry.event).__name__ for entry in entries(plan)]
        ['EpochStart', 'Batches', 'Stop']
    """
    unknown = _length_is_unknown(plan)
    if unknown:  # one batch stands for all of an epoch
        plan = replace(plan, batches_per_epoch=1)
    state = TrainingState() if state is None else state
    events, began = schedule(plan, state), None
    while (event := next(events, None)) is not None:
        if isinstance(event, Peek):
            continue
        if not isinstance(event, Batch):
            if began is not None:
                yield _run(plan, began, state, unknown=unknown)
                began = None
            state = after(plan, state, event)
            yield Entry(event, None if unknown else state.current_iteration)
            continue
        began = state if began is None else began
        state = after(plan, state, event)
        quiet = _quiet(plan, state)
        if quiet is None:
            yield _run(plan, began, state, unknown=True)
            return
        if quiet:
            state = _ahead(plan, state, quiet)
            events = schedule(plan, state)
            next(events)  # takes up the epoch


def last_entries(plan: Plan, count: int) -> list[Entry]:
    """Return the last lines of the calendar of a plan with ``total_steps``.

    Args:
        plan: the plan.
        count: how many.

    Law:
        They are the last of all (``property_tests/test_calendar.py``), in a time that does not
        depend on the length of the run.

    Example:
        >>> plan = Plan(unit=TrainingUnit.ITERATION, total_steps=10**12, valid_frequency=10)
        >>> [entry.update for entry in last_entries(plan, 3)]
        [1000000000000, 1000000000000, 1000000000000]
    """
    assert plan.total_steps is not None
    # More lines than asked for, since the first run of batches may be cut.
    lines = count + 2
    if plan.unit is TrainingUnit.EPOCH:
        state = _after_epochs(plan, max(0, plan.total_steps - lines))
    else:
        window = plan.accumulation_steps
        steps = (plan.total_steps, plan.valid_frequency, plan.chkpt_frequency)
        known = [step * window for step in steps if step is not None]
        spacing = min(known if plan.batches_per_epoch is None else [*known, plan.batches_per_epoch])
        state = _after_batches(plan, max(0, plan.total_steps * window - lines * spacing))
    return list(deque(entries(plan, state), maxlen=count))


def ends_of(plan: Plan, count: int) -> tuple[list[Entry], list[Entry]]:
    """Return the first and the last lines of a calendar; all are among the first if they are few.

    Args:
        plan: the plan.
        count: how many of each.
    """
    head = list(islice(entries(plan), 2 * count + 1))
    if len(head) <= 2 * count:
        return head, []
    return head[:count], [] if plan.total_steps is None else last_entries(plan, count)


def totals(plan: Plan) -> Totals:
    """Return how often things happen in a run that ends by its ``total_steps``.

    Law:
        It is what counting the events of `schedule` gives (``property_tests/test_calendar.py``).

    Example:
        >>> totals(Plan(total_steps=3, batches_per_epoch=10, valid_frequency=2)).validations
        1
    """
    steps = plan.total_steps
    if steps is None:
        none = None if plan.valid_frequency is not None else 0
        saves = None if plan.chkpt_frequency is not None or plan.save_final else 0
        logs = None if plan.print_frequency is not None else 0
        return Totals(None, None, None, none, saves, logs)
    if plan.unit is TrainingUnit.EPOCH:
        end = _after_epochs(plan, steps)
    else:
        end = _after_batches(plan, steps * plan.accumulation_steps)
    unknown = _length_is_unknown(plan)
    epochs: int | None = end.global_epoch
    if plan.unit is TrainingUnit.ITERATION and plan.batches_per_epoch is None:
        epochs = None
    saves = _times(plan.chkpt_frequency, steps)
    if plan.save_final and (plan.chkpt_frequency is None or steps % plan.chkpt_frequency):
        saves += 1
    logs = _times(plan.print_frequency, end.current_iteration)
    return Totals(
        epochs=epochs,
        updates=None if unknown else end.current_iteration,
        micro_batches=None if unknown else end.global_iteration,
        validations=end.validation_cycles,
        checkpoints=saves,
        logs=None if unknown and plan.print_frequency is not None else logs,
    )


def never(plan: Plan) -> list[str]:
    """Return what a plan asks for and never gets, a sentence each.

    Example:
        >>> never(Plan(total_steps=3, valid_frequency=5))
        ['valid_frequency=5: no validation ever happens, since the run ends after 3 epochs']
    """
    found, sums = [], totals(plan)
    name = "updates" if plan.unit is TrainingUnit.ITERATION else "epochs"
    ends = f"since the run ends after {plan.total_steps} {name}"
    if plan.valid_frequency is not None and sums.validations == 0:
        found.append(f"valid_frequency={plan.valid_frequency}: no validation ever happens, {ends}")
    total, saving = plan.total_steps, plan.chkpt_frequency
    if total is not None and saving is not None and saving > total:
        found.append(
            f"chkpt_frequency={plan.chkpt_frequency}: no checkpoint is ever saved by it, {ends}"
        )
    if plan.print_frequency is not None and sums.logs == 0:
        found.append(
            f"print_frequency={plan.print_frequency}: nothing is ever logged, since the run ends "
            f"after {sums.updates} updates"
        )
    cycles = plan.early_stop_cycles
    if cycles is not None and sums.validations is not None and cycles >= sums.validations:
        found.append(
            f"early_stop_cycles={cycles}: no run is ever stopped early, since it has "
            f"{sums.validations} validations"
        )
    size = plan.batches_per_epoch
    if plan.unit is TrainingUnit.EPOCH and size is not None and plan.accumulation_steps > size:
        found.append(
            f"accumulation_steps={plan.accumulation_steps}: no window is ever full, since an epoch "
            f"has {size} micro-batches and closes the window at its end"
        )
    return found


def _length_is_unknown(plan: Plan) -> bool:
    return plan.unit is TrainingUnit.EPOCH and plan.batches_per_epoch is None


def _times(frequency: int | None, steps: int) -> int:
    return 0 if frequency is None else steps // frequency


def _run(plan: Plan, began: TrainingState, state: TrainingState, *, unknown: bool) -> Entry:
    first = began.dataset_iter + 1
    if unknown:
        return Entry(Batches(state.global_epoch, first, None, None, None), None)
    before, after = began.current_iteration, state.current_iteration
    logs = 0
    if plan.print_frequency is not None:
        logs = after // plan.print_frequency - before // plan.print_frequency
    return Entry(
        Batches(state.global_epoch, first, state.dataset_iter, after - before, logs), after
    )


def _quiet(plan: Plan, state: TrainingState) -> int | None:
    """Return how many batches come before the one after which something else happens.

    Args:
        plan: the plan.
        state: the state right after a batch.

    Returns:
        None if there is no such batch.
    """
    distances = []
    if plan.batches_per_epoch is not None:
        distances.append(plan.batches_per_epoch - state.dataset_iter)
    if plan.unit is TrainingUnit.ITERATION:
        window, done = plan.accumulation_steps, state.current_iteration
        for step in (plan.valid_frequency, plan.chkpt_frequency, plan.total_steps):
            if step is not None:
                due = done % step == 0 and done > 0 and state.window_iter == 0
                updates = step - done % step
                distances.append(0 if due else updates * window - state.window_iter)
    return max(0, min(distances) - 1) if distances else None


def _ahead(plan: Plan, state: TrainingState, batches: int) -> TrainingState:
    """Return the state after some more batches, of which none ends an epoch."""
    updates, window = divmod(state.window_iter + batches, plan.accumulation_steps)
    return replace(
        state,
        current_iteration=state.current_iteration + updates,
        running_iter=state.running_iter + updates,
        global_iteration=state.global_iteration + batches,
        dataset_iter=state.dataset_iter + batches,
        window_iter=window,
    )


def _after_epochs(plan: Plan, epochs: int) -> TrainingState:
    """Return the state of a run in epochs once all that is due after some of them is done."""
    size = 1 if plan.batches_per_epoch is None else plan.batches_per_epoch
    updates = -(-size // plan.accumulation_steps)
    cycles, rest = _validated(plan, epochs)
    return TrainingState(
        current_iteration=epochs * updates,
        global_iteration=epochs * size,
        global_epoch=epochs,
        validation_cycles=cycles,
        running_iter=rest * updates,
    )


def _after_batches(plan: Plan, batches: int) -> TrainingState:
    """Return the state of a run in updates once all that is due after some batches is done."""
    updates, window = divmod(batches, plan.accumulation_steps)
    epoch, position = 0, batches
    if plan.batches_per_epoch is not None:
        epoch, position = divmod(batches, plan.batches_per_epoch)
    cycles, rest = _validated(plan, updates)
    return TrainingState(
        current_iteration=updates,
        global_iteration=batches,
        global_epoch=epoch + (position > 0),
        validation_cycles=cycles,
        dataset_iter=position,
        running_iter=rest,
        window_iter=window,
    )


def _validated(plan: Plan, steps: int) -> tuple[int, int]:
    """Return the validations done after some steps, and the steps since the last one."""
    return (0, steps) if plan.valid_frequency is None else divmod(steps, plan.valid_frequency)
