"""Of all ranks of a run that failed, the one that is named is the one that the others died of."""

from __future__ import annotations

import signal

import pytest

from helios.errors import RankError
from helios.trainer.ranks.child import UNGUARDED
from helios.trainer.ranks.ends import End, raise_first


def returned(rank, seconds=0.0):
    return End(rank, seconds, 0, began=True, done=True)


def raised(rank, error, seconds=0.0, status=1, **given):
    text = f"Traceback of rank {rank}\n{type(error).__name__}: {error}\n"
    return End(rank, seconds, status, began=True, error=error, text=text, **given)


def died(rank, status, seconds=0.0, *, began=True, **given):
    return End(rank, seconds, status, began=began, **given)


def first(*ends):
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        raise_first(list(ends))
    return caught.value


def test_nothing_is_raised_if_all_returned():
    raise_first([returned(0), returned(1)])


def test_an_exception_goes_on_as_it_is_with_its_rank_and_its_traceback():
    error = ValueError("no")
    assert first(returned(0), raised(1, error)) is error
    assert error.__notes__ == ["This was raised on rank 1."]
    assert "rank 1:\nTraceback of rank 1\nValueError: no" in str(error.__cause__)


def test_of_two_exceptions_the_earlier_is_raised_and_the_later_is_noted():
    early, late = ValueError("early"), KeyError("late")
    assert first(raised(0, late, 2.0), raised(1, early, 1.0)) is early
    assert "Rank 0 failed as well: rank 0 raised KeyError: 'late'" in early.__notes__


def test_an_exception_that_cannot_be_rebuilt_is_a_rank_error_with_its_text():
    error = first(End(1, 0.0, 1, began=True, text="Traceback\nStrange: it\n"), returned(0))
    assert type(error) is RankError
    assert error.rank == 1
    assert "rank 1 raised Strange: it" in str(error)


def test_a_death_goes_before_what_others_say_of_it():
    error = first(raised(0, RankError("of another", rank=1), 1.0), died(1, -9, 2.0))
    assert error.rank == 1
    assert "killed by SIGKILL" in str(error)


def test_an_exception_goes_before_what_others_say_of_it():
    error = ValueError("no")
    assert first(raised(0, RankError("of another", rank=1), 1.0), raised(1, error, 2.0)) is error


def test_what_others_say_of_a_rank_goes_before_its_end_without_a_word():
    error = RankError("rank 1 has stalled", rank=1)
    assert first(raised(0, error, 2.0), died(1, 1, 1.0)) is error


def test_what_is_ended_by_force_is_never_the_first():
    error = RankError("rank 1 has stalled", rank=1)
    for forced in [
        died(1, -15, 1.0, forced=signal.SIGTERM),
        raised(1, SystemExit(143), 1.0, forced=signal.SIGTERM),
    ]:
        assert first(forced, raised(0, error, 2.0)) is error
    assert "Rank 1 did not end, and was ended by SIGTERM." in error.__notes__


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), SystemExit(0)])
def test_ranks_that_leave_are_followed(error):
    assert first(raised(0, error, status=130), returned(1)) is error
    assert error.__cause__ is None
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("code", [1, "text"])
def test_to_leave_with_a_status_of_failure_is_a_failure(code):
    error = SystemExit(code)
    assert not raised(0, error).is_stop
    assert first(raised(0, error, 2.0), raised(1, RankError("gone", rank=0), 1.0)) is error


def test_a_failure_goes_before_leaving():
    error = OSError("no space")
    assert first(raised(0, SystemExit(143), 1.0), raised(1, error, 2.0)) is error


def test_leaving_goes_before_what_others_say_of_it():
    error = SystemExit(143)
    assert first(raised(0, RankError("gone", rank=1), 1.0), raised(1, error, 2.0)) is error


def test_ranks_that_died_of_the_signal_to_stop_have_stopped():
    error = first(*(died(rank, -15, asked=signal.SIGTERM) for rank in range(2)))
    assert type(error) is SystemExit
    assert error.code == 143
    error = first(*(died(rank, -2, asked=signal.SIGINT) for rank in range(2)))
    assert type(error) is KeyboardInterrupt


def test_a_signal_that_nobody_asked_to_stop_by_is_a_failure():
    assert "rank 0 was killed by SIGTERM" in str(first(died(0, -15)))


@pytest.mark.parametrize("status", [0, 3])
def test_an_end_without_a_word_in_the_middle_of_work_is_a_failure(status):
    error = first(died(0, status), returned(1))
    assert f"rank 0 ended with status {status} in the middle of its work" in str(error)


def test_a_main_script_that_cannot_be_imported_is_told_apart():
    error = first(died(0, 1, began=False), died(1, 1, 1.0, began=False))
    assert "rank 0 ended with status 1 before its work began" in str(error)


def test_a_main_script_without_a_guard_is_named_once():
    error = first(*(died(rank, UNGUARDED, began=False) for rank in range(2)))
    assert "ranks: the main script starts ranks as it is imported" in str(error)
    assert not hasattr(error, "__notes__")
