"""A shell that does nothing but keep the counters: runs of a plan, without a model or data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from helios.functional.plan import Plan
from helios.functional.schedule import (
    Batch,
    Checkpoint,
    EpochEnd,
    EpochStart,
    Event,
    Outcome,
    Peek,
    Stop,
    StopReason,
    Validate,
    after,
    schedule,
)
from helios.functional.state import TrainingState

CARRY = "what only the shell holds"


class Script(NamedTuple):
    """What comes of events, as a function of the events alone.

    ``improved`` is read at ``Validate.cycle``, over and over; ``stops`` holds keys of events after
    which a stop is asked for.
    """

    improved: tuple[bool, ...] = (True,)
    stops: frozenset[tuple[str, int]] = frozenset()

    def answer(self, event: tuple[Any, ...]) -> tuple[bool, bool]:
        """Answer an event given as a tuple ``(name, *fields)`` with ``(improved, stop)``."""
        improved = event[0] != "Validate" or self.improved[event[1] % len(self.improved)]
        return improved, key(event) in self.stops


class Data(NamedTuple):
    """The micro-batches of each epoch, over and over; not known to the plan if ``sized`` is off."""

    sizes: tuple[int, ...]
    sized: bool

    def size_of(self, epoch: int) -> int:
        """Return the micro-batches of an epoch, which counts from 1."""
        return self.sizes[(epoch - 1) % len(self.sizes)]


class World(NamedTuple):
    """A plan, the data it runs over, and what comes of its events."""

    plan: Plan
    data: Data
    script: Script = Script()


class Row(NamedTuple):
    """An event, and the shell's state once it is done."""

    event: Event
    state: TrainingState


class Run(NamedTuple):
    """Events with the states they led to; ``returned`` is None where the run was not over."""

    rows: list[Row]
    returned: TrainingState | None

    @property
    def events(self) -> list[Event]:
        """Return the events alone."""
        return [row.event for row in self.rows]


def as_tuple(event: Event) -> tuple[Any, ...]:
    """Return an event as ``(name, *fields)``."""
    fields = msgspec.structs.astuple(event)
    return type(event).__name__, *(x.value if isinstance(x, StopReason) else x for x in fields)


def key(event: tuple[Any, ...]) -> tuple[str, int]:
    """Return what names an event in a run: its kind and the counter that tells it from others."""
    position = {"Batch": 3, "Checkpoint": 2}.get(event[0], 1)
    return event[0], event[position] if len(event) > position else 0


def drive(
    world: World,
    state: TrainingState | None = None,
    *,
    limit: int = 5_000,
    stop_at: Callable[[int, Event], bool] = lambda index, event: False,
) -> Run:
    """Run a plan as a shell does: answer its events, and keep a state of one's own.

    Args:
        world: the plan, the data and the script.
        state: where to begin, a new run by default.
        limit: how many events to take at most.
        stop_at: whether to ask for a stop at an event, given its index too.

    Raises:
        AssertionError: if the events do not agree with the counters.

    Example:
        >>> run = drive(World(Plan(total_steps=2, batches_per_epoch=3), Data((3,), sized=True)))
        >>> run.returned.current_iteration, [type(event).__name__ for event in run.events[:3]]
        (6, ['EpochStart', 'Batch', 'Batch'])
    """
    plan, data, script = world
    state = TrainingState() if state is None else state
    state = replace(state, carry=CARRY)
    events = schedule(plan, state)
    rows: list[Row] = []
    returned: TrainingState | None = None
    outcome: Outcome | None = None
    while len(rows) < limit:
        try:
            event = events.send(outcome)
        except StopIteration as over:
            returned = over.value
            break
        state = _apply(plan, state, event, script)
        rows.append(Row(event, state))
        improved, stop = script.answer(as_tuple(event))
        stop = stop or stop_at(len(rows) - 1, event)
        available = 2
        if isinstance(event, Peek):
            left = data.size_of(state.global_epoch) - state.dataset_iter
            assert left >= 0
            available = min(left, 2)
        outcome = Outcome(improved=improved, stop=stop, available=available)
        if outcome == Outcome():
            outcome = None
    if returned is not None:
        assert isinstance(rows[-1].event, Stop)
        assert returned == replace(state, carry=None)
    return Run(rows, returned)


def _apply(plan: Plan, state: TrainingState, event: Event, script: Script) -> TrainingState:
    """Apply an event to the shell's state, and compare its numbers with the counters."""
    if isinstance(event, EpochStart):
        assert event.first_batch == state.dataset_iter
    elif isinstance(event, Batch):
        assert event.index == state.dataset_iter
    elif isinstance(event, Validate):
        assert event.cycle == state.validation_cycles
    elif isinstance(event, EpochEnd):
        assert event.epoch == state.global_epoch
    elif isinstance(event, Checkpoint):
        assert (event.epoch, event.iteration) == (state.global_epoch, state.current_iteration)
    state = after(plan, state, event, improved=script.answer(as_tuple(event))[0])
    if isinstance(event, EpochStart):
        assert event.epoch == state.global_epoch
    elif isinstance(event, Batch):
        assert event.iteration == state.global_iteration
    return state


def written_and_read(state: TrainingState) -> TrainingState:
    """Return the counters of a state as they come back from a file."""
    counters = {name: getattr(state, name) for name in STORED}
    return TrainingState(**msgspec.json.decode(msgspec.json.encode(counters)))


STORED = [name for name in TrainingState.__struct_fields__ if name != "carry"]


def without_peeks(events: list[Event]) -> list[Event]:
    """Return what happens in a run, without the questions that are asked on the way."""
    return [event for event in events if not isinstance(event, Peek)]
