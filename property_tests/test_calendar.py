"""Law: a calendar read without a run is that of `schedule`, and its totals are its counts."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.functional.calendar import Batches, entries, last_entries, totals
from helios.functional.schedule import (
    Batch,
    Checkpoint,
    EpochStart,
    Event,
    Peek,
    Plan,
    Validate,
    schedule,
)
from helios.functional.state import TrainingState, TrainingUnit

counts = st.none() | st.integers(1, 12)


@st.composite
def plans(draw: st.DrawFn, total: st.SearchStrategy[int | None]) -> Plan:
    """Plans whose events can be known: an epoch has a length, unless updates are counted."""
    unit = draw(st.sampled_from(TrainingUnit))
    sizes = st.integers(1, 12) if unit is TrainingUnit.EPOCH else counts
    return Plan(
        unit=unit,
        total_steps=draw(total),
        batches_per_epoch=draw(sizes),
        accumulation_steps=draw(st.integers(1, 5)),
        valid_frequency=draw(counts),
        chkpt_frequency=draw(counts),
        print_frequency=draw(counts),
        save_final=draw(st.booleans()),
    )


def one_by_one(plan: Plan, limit: int | None = None) -> list[Event]:
    events = (e for e in schedule(plan, TrainingState()) if not isinstance(e, Peek))
    return list(islice(events, limit))


def compressed(events: list[Event]) -> list[Event | Batches]:
    """Put batches that follow each other into one, by looking at every one of them."""
    found: list[Event | Batches] = []
    for event in events:
        if not isinstance(event, Batch):
            found.append(event)
            continue
        last = found[-1]
        if isinstance(last, Batches):
            found.pop()
            first, updates, logs = last.first, last.updates or 0, last.logs or 0
        else:
            first, updates, logs = event.index + 1, 0, 0
        updates, logs = updates + event.update, logs + event.log
        found.append(Batches(event.epoch, first, event.index + 1, updates, logs))
    return found


@given(plans(st.integers(1, 60)))
def test_the_calendar_is_that_of_the_schedule(plan: Plan) -> None:
    events = one_by_one(plan)
    assert [entry.event for entry in entries(plan)] == compressed(events)


@given(plans(st.integers(1, 60)))
def test_every_line_knows_the_updates_done(plan: Plan) -> None:
    done = 0
    for entry in entries(plan):
        if isinstance(entry.event, Batches):
            assert entry.event.updates is not None
            done += entry.event.updates
        assert entry.update == done


@given(plans(st.integers(1, 300)), st.integers(1, 8))
def test_the_last_lines_are_the_last_of_all(plan: Plan, count: int) -> None:
    assert last_entries(plan, count) == list(entries(plan))[-count:]


@given(plans(st.integers(1, 60)))
def test_the_totals_are_counts_of_events(plan: Plan) -> None:
    events, found = one_by_one(plan), totals(plan)
    batches = [e for e in events if isinstance(e, Batch)]
    assert found.micro_batches == len(batches)
    assert found.updates == sum(e.update for e in batches)
    assert found.logs == sum(e.log for e in batches)
    assert found.validations == sum(isinstance(e, Validate) for e in events)
    assert found.checkpoints == sum(isinstance(e, Checkpoint) for e in events)
    if plan.batches_per_epoch is not None:
        assert found.epochs == sum(isinstance(e, EpochStart) for e in events)


@given(plans(st.none()))
def test_a_run_without_an_end_begins_as_the_schedule_does(plan: Plan) -> None:
    lazily = [entry.event for entry in islice(entries(plan), 20)]
    expected = compressed(one_by_one(plan, 2000))
    if isinstance(lazily[-1], Batches) and lazily[-1].last is None:
        # Nothing but batches from here on.
        assert len(expected) == len(lazily)
        assert lazily[:-1] == expected[:-1]
    else:
        assert lazily == expected[:20]


@pytest.mark.parametrize("unit", TrainingUnit)
def test_a_trillion_steps_cost_no_more_than_a_few(unit: TrainingUnit) -> None:
    plan = Plan(unit, 10**12, 10**6, 8, 1000, 5000, 10, save_final=True)
    assert len(last_entries(plan, 20)) == 20
    assert len(list(islice(entries(plan), 20))) == 20
    assert totals(plan).validations == 10**9


def test_a_trillion_epochs_within_a_window_cost_no_more_than_a_few() -> None:
    plan = Plan(TrainingUnit.ITERATION, 10**12, 1, 10**12)
    assert len(last_entries(plan, 20)) == 20
    assert len(list(islice(entries(plan), 20))) == 20
    assert totals(plan).epochs == 10**24
