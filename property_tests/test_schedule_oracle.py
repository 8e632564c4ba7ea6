"""Law: the calendar is that of a plain loop, event by event and counter by counter."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from helios.functional.plan import Plan
from helios.functional.schedule import Peek
from helios.functional.state import TrainingState, TrainingUnit
from helios.testing.shell import Run, World, as_tuple, drive
from helios.testing.strategies import worlds
from property_tests import oracle

COUNTED = (
    "current_iteration",
    "global_iteration",
    "global_epoch",
    "validation_cycles",
    "dataset_iter",
    "early_stop_count",
    "running_iter",
    "window_iter",
)


def counters(state: TrainingState) -> dict[str, int]:
    return {name: getattr(state, name) for name in COUNTED}


def expected(world: World, limit: int) -> list[oracle.Row]:
    plan: Plan = world.plan
    return oracle.run(
        unit="iteration" if plan.unit is TrainingUnit.ITERATION else "epoch",
        total=plan.total_steps,
        size_of=world.data.size_of,
        accumulation=plan.accumulation_steps,
        valid=plan.valid_frequency,
        chkpt=plan.chkpt_frequency,
        log=plan.print_frequency,
        patience=plan.early_stop_cycles,
        save_final=plan.save_final,
        answer=world.script.answer,
        limit=limit,
    )


def rows(run: Run) -> list[tuple[tuple[Any, ...], dict[str, int]]]:
    return [
        (as_tuple(row.event), counters(row.state))
        for row in run.rows
        if not isinstance(row.event, Peek)
    ]


@given(worlds(stops=True))
def test_a_run_is_that_of_a_plain_loop(world: World) -> None:
    assert rows(drive(world)) == expected(world, limit=5_000)


@given(worlds(finite=False, stops=True), st.integers(1, 120))
def test_a_run_without_an_end_is_that_of_a_plain_loop(world: World, limit: int) -> None:
    received = rows(drive(world, limit=limit))
    assert received == expected(world, limit=len(received))


@given(worlds(stops=True))
def test_unknown_sizes_are_asked_for_before_every_batch_and_nowhere_else(world: World) -> None:
    events = drive(world).events
    for event, following in pairwise(events):
        asked = isinstance(event, Peek)
        assert asked == (as_tuple(following)[0] == "Batch" and not world.data.sized)


@given(worlds(stops=True))
def test_a_run_that_is_over_only_says_so_when_it_is_run_again(world: World) -> None:
    over = drive(world)
    assert over.returned is not None
    reason = as_tuple(over.events[-1])[1]
    if reason != "requested":
        again = drive(world, over.returned)
        assert again.events == over.events[-1:]
        assert again.returned == over.returned
