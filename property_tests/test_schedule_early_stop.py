"""Law: a run stopped early is a prefix of the run that is not, and its closing events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from helios.functional.schedule import Checkpoint, Event, Stop, StopReason, Validate
from helios.testing.shell import Run, World, drive, written_and_read
from helios.testing.strategies import worlds

EARLY = Stop(StopReason.EARLY_STOP)


def before_closing(run: Run) -> list[Event]:
    events = run.events[:-1]
    if events and isinstance(events[-1], Checkpoint) and not events[-1].cadence:
        events.pop()
    return events


def validations(run: Run) -> int:
    return sum(isinstance(event, Validate) for event in run.events)


@given(worlds(early_stop=True))
def test_an_early_stop_is_a_prefix_of_the_whole_run(world: World) -> None:
    stopped = drive(world)
    whole = drive(world._replace(plan=replace(world.plan, early_stop_cycles=None)))
    prefix = before_closing(stopped)
    assert whole.events[: len(prefix)] == prefix
    if stopped.events[-1] != EARLY:
        assert stopped.events == whole.events


@given(worlds(early_stop=True, finite=False))
def test_it_comes_after_as_many_cycles_without_improvement_as_asked_for(world: World) -> None:
    patience = world.plan.early_stop_cycles
    assert patience is not None
    script = world.script.improved
    verdicts = [script[cycle % len(script)] for cycle in range(2 * len(script) + patience)]
    stops = [
        cycle
        for cycle in range(patience, len(verdicts) + 1)
        if not any(verdicts[cycle - patience : cycle])
    ]
    run = drive(world, limit=5_000 if stops else 300)
    if stops:
        assert run.events[-1] == EARLY
        assert validations(run) == stops[0]
    else:
        assert run.returned is None


@given(worlds(early_stop=True), st.integers(0, 60))
def test_patience_survives_a_resume(world: World, index: int) -> None:
    whole = drive(world)
    first = drive(world, stop_at=lambda i, event: i == index)
    rest = drive(world, written_and_read(first.rows[-1].state))
    assert rest.events[-1] == whole.events[-1]
    assert validations(first) + validations(rest) == validations(whole)
    assert rest.rows[-1].state.early_stop_count == whole.rows[-1].state.early_stop_count


@given(worlds(early_stop=True))
def test_a_run_stopped_early_trains_nothing_more(world: World) -> None:
    run = drive(world)
    if run.events[-1] == EARLY:
        assert drive(world, written_and_read(run.rows[-1].state)).events == [EARLY]
