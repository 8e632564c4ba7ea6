"""Law: resuming at any point of a run gives the rest of the run; nothing is lost or doubled."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helios.errors import ResumeError
from helios.functional.schedule import (
    Batch,
    Checkpoint,
    EpochEnd,
    EpochStart,
    Event,
    Stop,
    StopReason,
    Validate,
)
from helios.functional.state import TrainingState, TrainingUnit
from helios.testing.shell import Row, Run, World, drive, without_peeks, written_and_read
from helios.testing.strategies import reachable, worlds


def happens(events: list[Event]) -> list[Event]:
    """What a run does, but for how it was cut: no peeks, epochs taken up, stops, final saves."""
    return [
        event
        for event in without_peeks(events)
        if not (isinstance(event, EpochStart) and event.first_batch > 0)
        and not (isinstance(event, Checkpoint) and not event.cadence)
        and not isinstance(event, Stop)
    ]


def stopped_at(world: World, index: int, run: Run | None = None) -> Run:
    """A run, or the rest of one, in which a stop is asked for at its ``index``-th event."""
    begin = None if run is None else written_and_read(run.rows[-1].state)
    return drive(world, begin, stop_at=lambda i, event: i == index)


def left_open(world: World, run: Run) -> bool:
    """Whether a run was stopped where it reached its total and, unseen, the end of an epoch.

    Where only the loader knows how long an epoch is, a run that is over is not made to read data
    to find out that its epoch is over too. The end of that epoch is done if the run ever goes on.
    """
    plan, state = world.plan, run.rows[-1].state
    if world.data.sized or plan.unit is TrainingUnit.EPOCH:
        return False
    valid = plan.valid_frequency
    validates = valid is not None and state.running_iter > 0
    validates = validates and state.current_iteration % (valid or 1) == 0
    at_the_end = state.dataset_iter == world.data.size_of(state.global_epoch)
    return state.current_iteration == plan.total_steps and at_the_end and not validates


def check(world: World, whole: Run, parts: list[Run]) -> None:
    together = [event for part in parts for event in happens(part.events)]
    if any(left_open(world, part) for part in parts[:-1]):
        rest = happens(whole.events)[len(together) :]
        assert together == happens(whole.events)[: len(together)]
        assert {type(event) for event in rest} <= {EpochEnd, Checkpoint}
        return
    assert together == happens(whole.events)
    assert parts[-1].returned == whole.returned
    assert parts[-1].events[-1] == whole.events[-1]


@given(worlds())
def test_resuming_at_every_point_gives_the_rest_of_the_run(world: World) -> None:
    whole = drive(world)
    for index in range(len(whole.rows) - 1):
        first = stopped_at(world, index)
        check(world, whole, [first, drive(world, written_and_read(first.rows[-1].state))])


@given(worlds(), st.integers(0, 60), st.integers(0, 60))
def test_resuming_twice_gives_the_rest_of_the_run(world: World, one: int, two: int) -> None:
    whole = drive(world)
    first = stopped_at(world, one)
    second = stopped_at(world, two, first)
    third = drive(world, written_and_read(second.rows[-1].state))
    check(world, whole, [first, second, third])


@given(worlds())
def test_a_run_that_stops_at_every_batch_gets_through(world: World) -> None:
    whole = drive(world)
    parts = [stopped_at(world, 0)]
    while parts[-1].events[-1] == Stop(StopReason.REQUESTED):
        state = written_and_read(parts[-1].rows[-1].state)
        parts.append(drive(world, state, stop_at=lambda index, event: True))
        assert len(parts) < 500
    check(world, whole, parts)


@given(worlds(stops=True))
def test_resuming_at_every_checkpoint_gives_what_comes_after_it(world: World) -> None:
    whole = drive(world)
    for index, row in enumerate(whole.rows):
        if isinstance(row.event, Checkpoint) and row.event.cadence:
            rest = drive(world, written_and_read(row.state))
            expected = happens(whole.events[index + 1 :])
            if whole.events[-1] == Stop(StopReason.REQUESTED):
                assert happens(rest.events)[: len(expected)] == expected
            else:
                assert happens(rest.events) == expected
                assert rest.returned == whole.returned


@given(worlds(), st.integers(0, 60))
def test_events_are_numbered_without_a_gap_across_a_resume(world: World, index: int) -> None:
    first = stopped_at(world, index)
    rest = drive(world, written_and_read(first.rows[-1].state))
    if left_open(world, first):
        return
    events = happens(first.events) + happens(rest.events)
    batches = [event.iteration for event in events if isinstance(event, Batch)]
    cycles = [event.cycle for event in events if isinstance(event, Validate)]
    starts = [event.epoch for event in events if isinstance(event, EpochStart)]
    ends = [event.epoch for event in events if isinstance(event, EpochEnd)]
    assert batches == list(range(1, len(batches) + 1))
    assert cycles == list(range(len(cycles)))
    assert starts == list(range(1, len(starts) + 1))
    assert ends == list(range(1, len(ends) + 1))


@given(worlds(), st.integers(0, 60))
def test_the_state_that_a_run_ends_with_is_on_disk(world: World, index: int) -> None:
    assume(world.plan.save_final)
    first = stopped_at(world, index)
    on_disk = _last_saved(first.rows)
    assert on_disk == first.rows[-1].state
    rest = drive(world, on_disk)
    assert (_last_saved(rest.rows) or on_disk) == rest.rows[-1].state


@given(worlds(), st.integers(0, 60))
def test_a_cadence_checkpoint_is_written_once_over_all_parts(world: World, index: int) -> None:
    first = stopped_at(world, index)
    rest = drive(world, written_and_read(first.rows[-1].state))
    saved = [
        row.state
        for row in first.rows + rest.rows
        if isinstance(row.event, Checkpoint) and row.event.cadence
    ]
    assert all(a != b for a, b in pairwise(saved))


@given(st.data())
def test_a_state_can_be_taken_up_under_any_other_plan(data: st.DataObject) -> None:
    old, new = data.draw(worlds()), data.draw(worlds())
    state = data.draw(reachable(old))
    if state.dataset_iter > new.data.size_of(max(state.global_epoch, 1)):
        if new.data.sized and not _over_before_it_begins(new, state):
            with pytest.raises(ResumeError):
                drive(new, state)
        return
    rest = drive(new, state)
    assert rest.returned is not None
    batches = [event for event in rest.events if isinstance(event, Batch)]
    first = state.global_iteration + 1
    assert [event.iteration for event in batches] == list(range(first, first + len(batches)))
    places = [(event.epoch, event.index) for event in batches]
    assert places == sorted(set(places))
    starts = [e for e in rest.events if isinstance(e, EpochStart)]
    assert all(event.first_batch == 0 for event in starts[1:])


def _over_before_it_begins(world: World, state: TrainingState) -> bool:
    """Whether nothing is left to do, so that it does not matter where the state stands."""
    try:
        return isinstance(drive(world, state, limit=1).events[0], Stop)
    except ResumeError:
        return False


def _last_saved(rows: list[Row]) -> TrainingState | None:
    saved = [row.state for row in rows if isinstance(row.event, Checkpoint)]
    return saved[-1] if saved else None
