from __future__ import annotations

import ast
import importlib
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from helios.errors import DataError, ResumeError
from helios.functional.schedule import (
    Batch,
    Checkpoint,
    EpochEnd,
    EpochStart,
    Event,
    Outcome,
    Peek,
    Plan,
    Stop,
    StopReason,
    Validate,
    schedule,
)
from helios.functional.state import TrainingState, TrainingUnit

EPOCH, ITERATION = TrainingUnit.EPOCH, TrainingUnit.ITERATION
TOTAL = Stop(StopReason.TOTAL_STEPS)
EARLY = Stop(StopReason.EARLY_STOP)
REQUESTED = Stop(StopReason.REQUESTED)

Answer = Callable[[Event], Outcome | None]


def run(
    plan: Plan,
    state: TrainingState | None = None,
    answer: Answer = lambda event: None,
    limit: int = 1000,
) -> tuple[list[Event], TrainingState | None]:
    """The events of a run, and what it returned, None if ``limit`` came first."""
    events: list[Event] = []
    calendar = schedule(plan, TrainingState() if state is None else state)
    outcome: Outcome | None = None
    while len(events) < limit:
        try:
            event = calendar.send(outcome)
        except StopIteration as over:
            return events, over.value
        events.append(event)
        outcome = answer(event)
    return events, None


def events_of(*arguments: Any, **named: Any) -> list[Event]:
    return run(*arguments, **named)[0]


def stopping_at(*where: Event) -> Answer:
    return lambda event: Outcome(stop=event in where)


def stopping_at_batch(iteration: int) -> Answer:
    return lambda event: Outcome(stop=isinstance(event, Batch) and event.iteration == iteration)


def loader_of(size: int) -> Answer:
    """Answers for a loader whose size is not known beforehand."""
    left = size

    def answer(event: Event) -> Outcome:
        nonlocal left
        if isinstance(event, EpochStart):
            left = size - event.first_batch
        elif isinstance(event, Batch):
            left -= 1
        return Outcome(available=min(left, 2))

    return answer


def batches(events: list[Event]) -> list[Batch]:
    return [event for event in events if isinstance(event, Batch)]


def kinds(events: list[Event]) -> str:
    """One letter an event; a batch that updates is in capitals, and a cadence checkpoint too."""
    return "".join(
        ("B" if event.update else "b")
        if isinstance(event, Batch)
        else ("C" if event.cadence else "c")
        if isinstance(event, Checkpoint)
        else {EpochStart: "(", EpochEnd: ")", Validate: "V", Stop: ".", Peek: "?"}[type(event)]
        for event in events
    )


# The examples of the semantics.


def test_windows_in_updates_run_on_across_epochs() -> None:
    plan = Plan(unit=ITERATION, total_steps=5, batches_per_epoch=10, accumulation_steps=4)
    updates = [event.iteration for event in batches(events_of(plan)) if event.update]
    assert updates == [4, 8, 12, 16, 20]


def test_windows_in_epochs_are_flushed_at_the_end() -> None:
    plan = Plan(unit=EPOCH, total_steps=2, batches_per_epoch=10, accumulation_steps=4)
    updates = [event.iteration for event in batches(events_of(plan)) if event.update]
    assert updates == [4, 8, 10, 14, 18, 20]


def test_an_update_that_ends_its_epoch_validates_then_ends_the_epoch_then_saves() -> None:
    plan = Plan(
        unit=ITERATION, total_steps=2, batches_per_epoch=2, valid_frequency=2, chkpt_frequency=2
    )
    assert kinds(events_of(plan)) == "(BBV)C."


def test_an_epoch_validates_ends_and_saves() -> None:
    plan = Plan(total_steps=2, batches_per_epoch=2, valid_frequency=1, chkpt_frequency=1)
    assert kinds(events_of(plan)) == "(BBV)C(BBV)C."


def test_a_micro_batch_that_ends_the_epoch_but_not_the_window_only_ends_the_epoch() -> None:
    plan = Plan(
        unit=ITERATION,
        total_steps=1,
        batches_per_epoch=2,
        accumulation_steps=3,
        valid_frequency=1,
        chkpt_frequency=1,
    )
    assert kinds(events_of(plan)) == "(bb)(BVC."


@pytest.mark.parametrize("unit", TrainingUnit)
def test_a_window_longer_than_an_epoch_of_one_batch(unit: TrainingUnit) -> None:
    plan = Plan(unit=unit, total_steps=2, batches_per_epoch=1, accumulation_steps=2)
    expected = {EPOCH: "(B)(B).", ITERATION: "(b)(B)(b)(B)."}
    assert kinds(events_of(plan)) == expected[unit]


def test_logs_count_updates_in_epochs_too() -> None:
    plan = Plan(total_steps=2, batches_per_epoch=3, accumulation_steps=2, print_frequency=2)
    logged = [event.iteration for event in batches(events_of(plan)) if event.log]
    assert logged == [3, 6]


def test_a_validation_is_numbered_by_those_before_it() -> None:
    plan = Plan(total_steps=3, batches_per_epoch=1, valid_frequency=1)
    cycles = [event.cycle for event in events_of(plan) if isinstance(event, Validate)]
    assert cycles == [0, 1, 2]


def test_the_whole_of_a_small_run() -> None:
    plan = Plan(
        unit=ITERATION,
        total_steps=3,
        batches_per_epoch=2,
        valid_frequency=2,
        chkpt_frequency=2,
        print_frequency=1,
        save_final=True,
    )
    events, state = run(plan)
    assert events == [
        EpochStart(1, 0),
        Batch(1, 0, 1, True, True),
        Batch(1, 1, 2, True, True),
        Validate(0),
        EpochEnd(1),
        Checkpoint(1, 2, cadence=True),
        EpochStart(2, 0),
        Batch(2, 0, 3, True, True),
        Checkpoint(2, 3, cadence=False),
        TOTAL,
    ]
    assert state == TrainingState(
        current_iteration=3,
        global_iteration=3,
        global_epoch=2,
        validation_cycles=1,
        dataset_iter=1,
        running_iter=1,
    )


def test_next_answers_that_all_is_well() -> None:
    calendar = schedule(Plan(total_steps=1, batches_per_epoch=1), TrainingState())
    assert kinds(list(calendar)) == "(B)."


def test_the_carry_of_a_state_is_not_looked_at() -> None:
    plan = Plan(total_steps=1, batches_per_epoch=1)
    assert run(plan, TrainingState(carry=object())) == run(plan)


# Stops.


def test_a_stop_after_a_batch_leaves_at_once() -> None:
    plan = Plan(
        unit=ITERATION, total_steps=9, batches_per_epoch=2, valid_frequency=2, chkpt_frequency=2
    )
    assert kinds(events_of(plan, answer=stopping_at_batch(2))) == "(BB."


def test_a_stop_at_a_validation_is_taken_up_after_the_checkpoint() -> None:
    plan = Plan(
        unit=ITERATION, total_steps=9, batches_per_epoch=2, valid_frequency=2, chkpt_frequency=2
    )
    assert kinds(events_of(plan, answer=stopping_at(Validate(0)))) == "(BBV)C."


def test_a_stop_at_the_start_of_an_epoch_is_taken_up_after_a_batch() -> None:
    plan = Plan(total_steps=9, batches_per_epoch=2)
    assert kinds(events_of(plan, answer=stopping_at(EpochStart(2, 0)))) == "(BB)(B."


def test_a_stop_at_a_checkpoint_due_there_is_that_checkpoint() -> None:
    plan = Plan(unit=ITERATION, batches_per_epoch=9, chkpt_frequency=2, save_final=True)
    events, state = run(plan, answer=stopping_at_batch(4))
    assert kinds(events) == "(BBCBBC."
    assert kinds(events_of(plan, state, limit=5)) == "(BBCB"


def test_a_checkpoint_due_at_a_stop_is_written_without_save_final_too() -> None:
    plan = Plan(unit=ITERATION, batches_per_epoch=9, chkpt_frequency=2)
    assert kinds(events_of(plan, answer=stopping_at_batch(2))) == "(BBC."


def test_a_checkpoint_due_at_a_stop_waits_for_the_validation_before_it() -> None:
    plan = Plan(
        unit=ITERATION, batches_per_epoch=9, chkpt_frequency=2, valid_frequency=2, save_final=True
    )
    events, state = run(plan, answer=stopping_at_batch(2))
    assert kinds(events) == "(BBc."
    assert kinds(events_of(plan, state, limit=4)) == "(VCB"


def test_a_checkpoint_due_at_a_stop_waits_for_the_end_of_the_epoch_before_it() -> None:
    plan = Plan(unit=ITERATION, batches_per_epoch=2, chkpt_frequency=2, save_final=True)
    events, state = run(plan, answer=stopping_at_batch(2))
    assert kinds(events) == "(BBc."
    assert kinds(events_of(plan, state, limit=5)) == "()C(B"


@pytest.mark.parametrize("unit", TrainingUnit)
def test_the_last_state_is_saved_once_where_the_last_step_is_on_the_cadence(
    unit: TrainingUnit,
) -> None:
    plan = Plan(unit=unit, total_steps=2, batches_per_epoch=1, chkpt_frequency=2, save_final=True)
    assert kinds(events_of(plan)) == "(B)(B)C."


def test_without_save_final_nothing_is_saved_off_the_cadence() -> None:
    plan = Plan(total_steps=3, batches_per_epoch=1, chkpt_frequency=2)
    assert kinds(events_of(plan)) == "(B)(B)C(B)."


def never_better(event: Event) -> Outcome:
    return Outcome(improved=False)


def test_early_stop_comes_before_a_total_at_the_same_step() -> None:
    plan = Plan(total_steps=2, batches_per_epoch=1, valid_frequency=1, early_stop_cycles=2)
    assert events_of(plan, answer=never_better)[-1] == EARLY


def test_early_stop_comes_before_a_request_at_the_same_step() -> None:
    plan = Plan(total_steps=2, batches_per_epoch=1, valid_frequency=1, early_stop_cycles=1)
    answer = lambda event: Outcome(improved=False, stop=isinstance(event, EpochEnd))  # noqa: E731
    assert events_of(plan, answer=answer)[-1] == EARLY


def test_a_request_comes_before_a_total_at_the_same_step() -> None:
    plan = Plan(total_steps=1, batches_per_epoch=1)
    events, state = run(plan, answer=stopping_at(EpochEnd(1)))
    assert events[-1] == REQUESTED
    assert events_of(plan, state) == [TOTAL]


def test_improvement_begins_the_count_anew() -> None:
    plan = Plan(batches_per_epoch=1, valid_frequency=1, early_stop_cycles=2)
    answer = lambda event: Outcome(improved=event == Validate(1))  # noqa: E731
    events = events_of(plan, answer=answer)
    assert [event.cycle for event in events if isinstance(event, Validate)] == [0, 1, 2, 3]


# Resuming.


def test_an_epoch_in_progress_is_taken_up_under_its_own_number() -> None:
    plan = Plan(unit=ITERATION, total_steps=9, batches_per_epoch=5, save_final=True)
    _, state = run(plan, answer=stopping_at_batch(3))
    assert events_of(plan, state)[:2] == [EpochStart(1, 3), Batch(1, 3, 4, True, False)]


def test_the_epochs_after_a_resumed_one_are_whole() -> None:
    plan = Plan(total_steps=3, batches_per_epoch=5)
    _, state = run(plan, answer=stopping_at_batch(3))
    places = [(event.epoch, event.index) for event in batches(events_of(plan, state))]
    assert places == [(1, 3), (1, 4), *itertools.product((2, 3), range(5))]


@pytest.mark.parametrize("unit", TrainingUnit)
def test_a_checkpoint_at_the_end_of_an_epoch_goes_on_with_the_next(unit: TrainingUnit) -> None:
    frequency = {EPOCH: 1, ITERATION: 5}[unit]
    plan = Plan(unit=unit, batches_per_epoch=5, chkpt_frequency=frequency)
    events, state = run(plan, answer=stopping_at(Checkpoint(1, 5, cadence=True)))
    assert kinds(events) == "(BBBBB)C."
    assert events_of(plan, state, limit=2) == [EpochStart(2, 0), Batch(2, 0, 6, True, False)]


def test_a_stop_in_the_middle_of_an_epoch_is_not_its_end() -> None:
    plan = Plan(total_steps=3, batches_per_epoch=5, chkpt_frequency=1, save_final=True)
    events, state = run(plan, answer=stopping_at_batch(8))
    assert events[-2:] == [Checkpoint(2, 8, cadence=False), REQUESTED]
    assert state is not None
    assert (state.global_epoch, state.dataset_iter) == (2, 3)
    assert kinds(events_of(plan, state)) == "(BB)C(BBBBB)C."


def test_a_stop_at_the_last_batch_of_an_epoch_leaves_its_end_to_the_resumed_run() -> None:
    plan = Plan(total_steps=2, batches_per_epoch=2, valid_frequency=1, chkpt_frequency=1)
    _, state = run(plan, answer=stopping_at_batch(2))
    events = events_of(plan, state)
    assert events[0] == EpochStart(1, 2)
    assert kinds(events) == "(V)C(BBV)C."


def test_a_run_left_at_its_total_with_something_due_does_that_first() -> None:
    plan = Plan(unit=ITERATION, total_steps=2, batches_per_epoch=2, valid_frequency=1)
    events, state = run(plan, answer=stopping_at_batch(2))
    assert kinds(events) == "(BVB."
    assert kinds(events_of(plan, state)) == "(V)."


@pytest.mark.parametrize("unit", TrainingUnit)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_finished_run_trains_nothing_more(unit: TrainingUnit, size: int) -> None:
    plan = Plan(
        unit=unit, total_steps=4, batches_per_epoch=size, chkpt_frequency=1, save_final=True
    )
    _, state = run(plan)
    again, same = run(plan, state)
    assert again == [TOTAL]
    assert same == state


@pytest.mark.parametrize("unit", TrainingUnit)
def test_a_run_stopped_early_trains_nothing_more(unit: TrainingUnit) -> None:
    plan = Plan(
        unit=unit, batches_per_epoch=3, valid_frequency=1, early_stop_cycles=2, save_final=True
    )
    _, state = run(plan, answer=never_better)
    assert events_of(plan, state) == [EARLY]


def test_a_finished_run_over_data_of_unknown_size_reads_nothing() -> None:
    plan = Plan(unit=ITERATION, total_steps=2)
    _, state = run(plan, answer=loader_of(5))
    assert events_of(plan, state) == [TOTAL]


@pytest.mark.parametrize("unit", TrainingUnit)
def test_raising_the_total_goes_on(unit: TrainingUnit) -> None:
    plan = Plan(unit=unit, total_steps=2, batches_per_epoch=1)
    _, state = run(plan)
    assert kinds(events_of(replace(plan, total_steps=3), state)) == "(B)."


def test_raising_the_patience_goes_on() -> None:
    plan = Plan(batches_per_epoch=1, valid_frequency=1, early_stop_cycles=1)
    _, state = run(plan, answer=never_better)
    longer = replace(plan, early_stop_cycles=2)
    assert kinds(events_of(longer, state, never_better)) == "(BV)."


def test_lowering_the_total_in_mid_epoch_ends_the_run_at_once() -> None:
    _, state = run(Plan(batches_per_epoch=3), answer=stopping_at_batch(8))
    assert events_of(Plan(total_steps=2, batches_per_epoch=3), state) == [TOTAL]
    assert kinds(events_of(Plan(total_steps=3, batches_per_epoch=3), state)) == "(B)."


def test_an_epoch_begun_in_updates_is_finished_in_epochs() -> None:
    in_updates = Plan(unit=ITERATION, batches_per_epoch=10, chkpt_frequency=3)
    _, state = run(in_updates, answer=stopping_at_batch(3))
    in_epochs = Plan(unit=EPOCH, total_steps=3, batches_per_epoch=10)
    places = [(event.epoch, event.index) for event in batches(events_of(in_epochs, state))]
    expected = [(1, index) for index in range(3, 10)]
    assert places == [*expected, *itertools.product((2, 3), range(10))]


def test_an_epoch_begun_in_epochs_is_finished_in_updates() -> None:
    _, state = run(Plan(batches_per_epoch=4), answer=stopping_at_batch(3))
    plan = Plan(unit=ITERATION, total_steps=6, batches_per_epoch=4)
    assert kinds(events_of(plan, state)) == "(B)(BB."


def test_a_window_in_progress_goes_on() -> None:
    plan = Plan(unit=ITERATION, total_steps=2, batches_per_epoch=9, accumulation_steps=3)
    _, state = run(plan, answer=stopping_at_batch(2))
    assert kinds(events_of(plan, state)) == "(BbbB."


def test_a_window_in_progress_goes_on_under_another_size() -> None:
    plan = Plan(unit=ITERATION, total_steps=2, batches_per_epoch=9, accumulation_steps=3)
    _, state = run(plan, answer=stopping_at_batch(2))
    assert kinds(events_of(replace(plan, accumulation_steps=4), state)) == "(bBbbbB."
    assert kinds(events_of(replace(plan, accumulation_steps=2), state)) == "(BbB."


def test_a_new_valid_frequency_does_not_validate_in_the_middle_of_a_window() -> None:
    plan = Plan(unit=ITERATION, total_steps=4, batches_per_epoch=9, accumulation_steps=2)
    _, state = run(plan, answer=stopping_at_batch(5))
    assert kinds(events_of(replace(plan, valid_frequency=2), state)) == "(BbBV."


def test_a_position_beyond_the_epoch_is_refused() -> None:
    state = TrainingState(global_epoch=2, global_iteration=16, dataset_iter=6)
    message = r"after micro-batch 6 of epoch 2, and an epoch now has 5.*Resume with those of the"
    with pytest.raises(ResumeError, match=message):
        events_of(Plan(batches_per_epoch=5), state)


def test_a_finished_run_is_finished_whatever_its_data_is_now() -> None:
    _, state = run(Plan(unit=ITERATION, total_steps=7, batches_per_epoch=9))
    assert events_of(Plan(unit=ITERATION, total_steps=7, batches_per_epoch=5), state) == [TOTAL]


# Data whose size only the loader knows.


def test_each_batch_is_peeked_for() -> None:
    assert kinds(events_of(Plan(total_steps=1), answer=loader_of(3))) == "(?B?B?B)."


def test_the_last_batch_of_an_epoch_closes_its_window() -> None:
    plan = Plan(total_steps=1, accumulation_steps=2)
    assert kinds(events_of(plan, answer=loader_of(3))) == "(?b?B?B)."


@pytest.mark.parametrize("unit", TrainingUnit)
@pytest.mark.parametrize("epoch", [1, 2])
def test_an_empty_loader_is_an_error(unit: TrainingUnit, epoch: int) -> None:
    empty = Outcome(available=0)
    full = Outcome(available=1)
    epochs = itertools.count(1)
    answer = lambda event: (  # noqa: E731
        (empty if next(epochs) == epoch else full) if isinstance(event, Peek) else None
    )
    with pytest.raises(DataError, match=f"epoch {epoch} has no micro-batches: .* is empty"):
        run(Plan(unit=unit, total_steps=9), answer=answer)


@pytest.mark.parametrize("unit", TrainingUnit)
def test_an_epoch_that_turns_out_to_be_over_is_ended(unit: TrainingUnit) -> None:
    plan = Plan(unit=unit, total_steps=4, valid_frequency=3, chkpt_frequency=1)
    state = TrainingState(
        current_iteration=2, global_iteration=2, global_epoch=3, dataset_iter=2, running_iter=2
    )
    events = events_of(plan, state, loader_of(2))
    expected = {EPOCH: "(?V)C(?B?B)C.", ITERATION: "(?)C(?BVC?B)C."}
    assert kinds(events) == expected[unit]


def test_a_validation_is_made_up_for_before_the_loader_is_asked() -> None:
    plan = Plan(unit=ITERATION, total_steps=4, valid_frequency=2, chkpt_frequency=2)
    left_at_the_second = TrainingState(
        current_iteration=2, global_iteration=2, global_epoch=1, dataset_iter=2, running_iter=2
    )
    assert kinds(events_of(plan, left_at_the_second, loader_of(2))) == "(V?)C(?B?BV)C."
    assert kinds(events_of(plan, left_at_the_second, loader_of(3))) == "(V?C?B)(?BVC."


def test_a_validation_that_was_done_is_not_repeated_at_the_end_of_the_epoch() -> None:
    plan = Plan(unit=ITERATION, total_steps=3, valid_frequency=2)
    validated = TrainingState(
        current_iteration=2,
        global_iteration=2,
        global_epoch=1,
        dataset_iter=2,
        validation_cycles=1,
    )
    assert kinds(events_of(plan, validated, loader_of(2))) == "(?)(?B."


def test_an_end_that_a_finished_run_did_not_see_is_made_up_for_when_it_goes_on() -> None:
    plan = Plan(unit=ITERATION, total_steps=2)
    answer = loader_of(2)
    stopped = lambda event: replace(  # noqa: E731
        answer(event) or Outcome(), stop=isinstance(event, Batch) and event.iteration == 2
    )
    _, state = run(plan, answer=stopped)
    assert events_of(plan, state) == [TOTAL]
    more = replace(plan, total_steps=3)
    assert kinds(events_of(more, state, loader_of(2))) == "(?)(?B."


# Runs without an end.


def test_a_run_without_an_end_goes_on() -> None:
    events, state = run(Plan(batches_per_epoch=2), limit=10_000)
    assert len(events) == 10_000
    assert state is None


def test_a_far_position_is_taken_up_in_two_events() -> None:
    far = 10**12
    state = TrainingState(
        current_iteration=far, global_iteration=far, global_epoch=1, dataset_iter=far
    )
    plan = Plan(unit=ITERATION, batches_per_epoch=2 * far)
    assert events_of(plan, state, limit=2) == [
        EpochStart(1, far),
        Batch(1, far, far + 1, True, False),
    ]


# Events as values.


def test_events_are_written_and_read() -> None:
    plan = Plan(
        total_steps=2, valid_frequency=1, chkpt_frequency=1, print_frequency=1, save_final=True
    )
    events = events_of(plan, answer=loader_of(2))
    written = msgspec.json.encode(events)
    assert msgspec.json.decode(written, type=list[Event]) == events


def test_events_are_frozen() -> None:
    with pytest.raises(AttributeError):
        EpochEnd(1).epoch = 2  # type: ignore[misc]


def test_reasons_are_strings() -> None:
    assert [reason.value for reason in StopReason] == ["early_stop", "requested", "total_steps"]


@pytest.mark.parametrize("name", ["helios.functional.schedule", "helios.functional.plan"])
def test_the_calendar_imports_nothing_that_could_look_outside(name: str) -> None:
    tree = ast.parse(inspect.getsource(importlib.import_module(name)))
    imported = {
        node.module if isinstance(node, ast.ImportFrom) else name.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported <= {
        "__future__",
        "enum",
        "typing",
        "collections.abc",
        "msgspec",
        "msgspec.structs",
        "helios.errors",
        "helios.functional.plan",
        "helios.functional.state",
    }
