import datetime

import pytest

import helios
from helios.plugins import TimeLimit
from tests.trainer.runs import run

SHORT = 1e-9


def test_a_run_stops_at_the_first_update_after_the_limit(tmp_path):
    assert run(tmp_path, plugins=[TimeLimit(SHORT)]).state.current_iteration == 1


def test_no_window_is_left_open(tmp_path):
    state = run(tmp_path, accumulation_steps=3, plugins=[TimeLimit(SHORT)]).state
    assert (state.window_iter, state.global_iteration) == (0, 3)


def test_the_state_is_saved_and_the_next_process_has_a_limit_of_its_own(tmp_path):
    for expected in (1, 2, 3):
        made = run(tmp_path, plugins=[TimeLimit(SHORT)])
        assert made.state.current_iteration == expected


def test_a_run_whose_time_is_up_trains_nothing_more(tmp_path):
    first = run(tmp_path, plugins=[TimeLimit(SHORT, "run")]).state
    assert run(tmp_path, plugins=[TimeLimit(SHORT, "run")]).state == first


def test_with_a_higher_limit_it_goes_on(tmp_path):
    run(tmp_path, plugins=[TimeLimit(SHORT, "run")])
    limit = TimeLimit(1000, "run")
    assert run(tmp_path, plugins=[limit]).state.current_iteration == 6
    assert limit.elapsed > 0


def test_stopping_by_time_changes_no_bit(tmp_path):
    whole = run(tmp_path / "whole").state
    for _ in range(8):  # two of them do what was due after the fifth update, and the last nothing
        cut = run(tmp_path / "cut", plugins=[TimeLimit(SHORT)]).state
    assert helios.digest(cut) == helios.digest(whole)


@pytest.mark.parametrize("limit", ["0:01:30", 90, 90.0, datetime.timedelta(seconds=90)])
def test_a_limit_is_said_in_several_ways(limit):
    assert TimeLimit(limit).limit == 90.0


@pytest.mark.parametrize("limit", ["90", "1:99:00", 0, -1, float("nan"), float("inf")])
def test_another_limit_is_an_error(limit):
    with pytest.raises(ValueError, match="limit: received"):
        TimeLimit(limit)


@pytest.mark.parametrize("limit", [None, True, [1]])
def test_something_else_is_a_type_error(limit):
    with pytest.raises(TypeError, match="limit: received a"):
        TimeLimit(limit)


def test_another_scope_is_an_error():
    with pytest.raises(ValueError, match="counts: received 'day'"):
        TimeLimit(1, "day")
