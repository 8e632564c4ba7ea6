"""Law: a run without an end is lazy, is a limit of finite runs, and has no far away."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from helios.functional.schedule import Batch, Checkpoint, EpochEnd, EpochStart, Event, Validate
from helios.functional.state import TrainingState, TrainingUnit
from helios.testing.shell import World, drive
from helios.testing.strategies import worlds


@given(worlds(finite=False, stops=True), st.integers(1, 150))
def test_every_prefix_is_that_of_a_longer_finite_run(world: World, length: int) -> None:
    endless = drive(world, limit=length)
    finite = replace(world.plan, total_steps=length + 1)
    assert drive(world._replace(plan=finite), limit=length) == endless


@given(worlds(finite=False), st.integers(1, 150))
def test_it_goes_on_until_something_stops_it(world: World, length: int) -> None:
    plan = replace(world.plan, early_stop_cycles=None)
    run = drive(world._replace(plan=plan), limit=length)
    assert len(run.rows) == length
    assert run.returned is None


@given(worlds(finite=False, early_stop=False), st.integers(1, 10**12), st.integers(1, 60))
def test_far_away_is_like_the_beginning(world: World, far: int, length: int) -> None:
    """Moved by common multiples of all periods, the calendar is the same, event for event."""
    plan = world.plan
    cadences = [plan.valid_frequency, plan.chkpt_frequency, plan.print_frequency]
    period = math.lcm(*[f for f in cadences if f is not None], len(world.data.sizes))
    updates, micro, epochs, cycles = (far * period * n for n in (1, 3, 5, 7))
    state = TrainingState(
        current_iteration=updates,
        global_iteration=micro,
        global_epoch=epochs,
        validation_cycles=cycles,
    )

    def moved(event: Event) -> Event:
        match event:
            case EpochStart() | EpochEnd():
                return replace(event, epoch=event.epoch + epochs)
            case Batch():
                iteration = event.iteration + micro
                return replace(event, epoch=event.epoch + epochs, iteration=iteration)
            case Validate():
                return replace(event, cycle=event.cycle + cycles)
            case Checkpoint():
                iteration = event.iteration + updates
                return replace(event, epoch=event.epoch + epochs, iteration=iteration)
            case _:
                return event

    here = [moved(event) for event in drive(world, limit=length).events]
    assert drive(world, state, limit=length).events == here


@given(worlds(finite=False, early_stop=False), st.integers(1, 10**12))
def test_a_far_position_in_an_epoch_is_taken_up_at_once(world: World, far: int) -> None:
    """The first micro-batch is at most a handful of events away, however far the run has come."""
    size = None if world.plan.batches_per_epoch is None else far + 1
    plan = replace(world.plan, batches_per_epoch=size)
    state = TrainingState(
        current_iteration=far,
        global_iteration=far,
        global_epoch=1,
        dataset_iter=far,
        running_iter=1,
    )
    long = world._replace(plan=plan, data=world.data._replace(sizes=(far + 1,)))
    events = drive(long, state, limit=8).events
    assert events[0] == EpochStart(1, far)
    batches = [event for event in events if isinstance(event, Batch)]
    assert batches[0].index == far
    assert plan.unit is TrainingUnit.ITERATION or events.index(batches[0]) <= 2
