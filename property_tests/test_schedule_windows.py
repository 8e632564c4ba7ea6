"""Law: accumulation windows partition the micro-batches, and their sizes are true."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from helios.functional.schedule import Batch
from helios.functional.state import TrainingUnit
from helios.testing.shell import Run, World, drive
from helios.testing.strategies import reachable, worlds


def windows(run: Run) -> tuple[list[list[Batch]], list[Batch]]:
    """The closed windows of a run, and what is in the open one."""
    closed: list[list[Batch]] = []
    opened: list[Batch] = []
    for event in run.events:
        if isinstance(event, Batch):
            opened.append(event)
            if event.update:
                closed.append(opened)
                opened = []
    return closed, opened


@given(worlds(stops=True))
def test_windows_partition_the_micro_batches(world: World) -> None:
    run = drive(world)
    closed, opened = windows(run)
    last = run.rows[-1].state
    assert sum(map(len, closed)) + len(opened) == last.global_iteration
    assert len(closed) == last.current_iteration
    assert len(opened) == last.window_iter


@given(worlds(unit=TrainingUnit.ITERATION, stops=True))
def test_windows_in_updates_are_whole(world: World) -> None:
    closed, opened = windows(drive(world))
    size = world.plan.accumulation_steps
    assert all(len(window) == size for window in closed)
    assert len(opened) < size


@given(worlds(unit=TrainingUnit.EPOCH, stops=True))
def test_windows_in_epochs_end_with_their_epoch(world: World) -> None:
    closed, opened = windows(drive(world))
    full = world.plan.accumulation_steps
    assert len({event.epoch for event in opened}) <= 1
    for window in closed:
        assert len({event.epoch for event in window}) == 1
        size = world.data.size_of(window[0].epoch)
        first, last = window[0].index, window[-1].index
        assert first % full == 0
        assert last == min(first + full, size) - 1
        assert len(window) == min(full, size - first)


@given(worlds())
def test_a_window_as_long_as_an_epoch_makes_one_update_an_epoch(world: World) -> None:
    plan = replace(world.plan, unit=TrainingUnit.EPOCH, accumulation_steps=max(world.data.sizes))
    closed, opened = windows(drive(world._replace(plan=plan)))
    assert [len(window) for window in closed] == [
        world.data.size_of(epoch + 1) for epoch in range(len(closed))
    ]
    assert not opened


@given(st.data())
def test_a_changed_window_is_whole_after_a_resume(data: st.DataObject) -> None:
    state = data.draw(reachable(data.draw(worlds(unit=TrainingUnit.ITERATION))))
    new = data.draw(worlds(unit=TrainingUnit.ITERATION, early_stop=False))
    assume(new.data.size_of(max(state.global_epoch, 1)) >= state.dataset_iter)
    closed, _ = windows(drive(new, state))
    size = new.plan.accumulation_steps
    expected = [max(size - state.window_iter, 1), *[size] * len(closed)]
    assert [len(window) for window in closed] == expected[: len(closed)]
