"""Law: how often things happen is what arithmetic says."""

from __future__ import annotations

from hypothesis import given

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
from helios.functional.state import TrainingUnit
from helios.testing.shell import Run, World, drive
from helios.testing.strategies import worlds


def count(run: Run, kind: type[Event]) -> int:
    return sum(isinstance(event, kind) for event in run.events)


def times(frequency: int | None, total: int) -> int:
    return 0 if frequency is None else total // frequency


def cadence_checkpoints(run: Run) -> int:
    return sum(isinstance(event, Checkpoint) and event.cadence for event in run.events)


@given(worlds(unit=TrainingUnit.ITERATION, early_stop=False))
def test_a_run_in_updates_has_exact_counts(world: World) -> None:
    plan, run = world.plan, drive(world)
    total = plan.total_steps
    assert total is not None
    assert run.returned is not None
    assert run.returned.current_iteration == total
    assert count(run, Batch) == run.returned.global_iteration == total * plan.accumulation_steps
    assert count(run, Validate) == times(plan.valid_frequency, total)
    assert cadence_checkpoints(run) == times(plan.chkpt_frequency, total)
    if len(world.data.sizes) == 1:
        size = world.data.sizes[0]
        assert count(run, EpochEnd) == count(run, Batch) // size
        assert count(run, EpochStart) == -(-count(run, Batch) // size)


@given(worlds(unit=TrainingUnit.EPOCH, early_stop=False))
def test_a_run_in_epochs_has_exact_counts(world: World) -> None:
    plan, run = world.plan, drive(world)
    total = plan.total_steps
    assert total is not None
    assert run.returned is not None
    sizes = [world.data.size_of(epoch) for epoch in range(1, total + 1)]
    assert count(run, Batch) == run.returned.global_iteration == sum(sizes)
    assert run.returned.current_iteration == sum(-(-n // plan.accumulation_steps) for n in sizes)
    assert count(run, Validate) == times(plan.valid_frequency, total)
    assert cadence_checkpoints(run) == times(plan.chkpt_frequency, total)
    assert count(run, EpochStart) == count(run, EpochEnd) == run.returned.global_epoch == total


@given(worlds(stops=True))
def test_no_two_events_of_a_kind_fall_on_one_step(world: World) -> None:
    run = drive(world)
    for kind in (Validate, Checkpoint, EpochEnd, EpochStart, Batch):
        moments = [
            (row.state.global_iteration, row.state.global_epoch, row.state.dataset_iter)
            for row in run.rows
            if isinstance(row.event, kind)
        ]
        assert len(set(moments)) == len(moments)


@given(worlds(stops=True))
def test_the_last_state_is_saved_exactly_once(world: World) -> None:
    run = drive(world)
    last = [
        row.event
        for row in run.rows
        if isinstance(row.event, Checkpoint) and row.state == run.rows[-1].state
    ]
    assert len(last) <= 1
    if world.plan.save_final:
        assert last == [run.events[-2]]
    assert all(event.cadence for event in run.events[:-2] if isinstance(event, Checkpoint))


@given(worlds(early_stop=False))
def test_a_last_step_on_the_cadence_is_saved_by_the_cadence(world: World) -> None:
    plan, run = world.plan, drive(world)
    assert plan.total_steps is not None
    assert run.events[-1] == Stop(StopReason.TOTAL_STEPS)
    on_cadence = plan.chkpt_frequency is not None and plan.total_steps % plan.chkpt_frequency == 0
    final = [e for e in run.events if isinstance(e, Checkpoint) and not e.cadence]
    assert len(final) == (plan.save_final and not on_cadence)


@given(worlds(stops=True))
def test_logs_fall_on_updates_at_the_print_frequency_only(world: World) -> None:
    frequency = world.plan.print_frequency
    for event, state in drive(world).rows:
        if isinstance(event, Batch):
            due = frequency is not None and state.current_iteration % frequency == 0
            assert event.log == (event.update and due)
