import pytest
import torch

from benchmarks.turns import Cadence, Turns

CADENCE = Cadence(warmup=4, rounds=2, settle=1, steps=3, early=2)


class Log:
    """What the parent was told, and when; the clock is the number of updates done."""

    def __init__(self, ahead=0):
        self.done, self.told = 0, []
        self.turns = Turns(
            list("abc"), CADENCE, self.told.append, lambda: self.told.append("wait"), ahead,
            clock=lambda: self.done,
        )  # fmt: skip
        self.turns.parameters = lambda: [torch.tensor([float(self.done)])]


def told(per_turn=3):
    turn = {"seconds": per_turn}
    return [{"ready": 4}, "wait", turn, "wait", turn, "wait"]


def test_a_turn_is_timed_without_its_first_updates_and_without_the_waiting():
    log = Log()
    for _ in log.turns:
        log.done += 1
    assert log.told == told()
    assert log.turns.finished
    assert log.done == len(log.turns) == CADENCE.total


def test_a_loop_that_counts_by_itself_stops_at_the_same_places():
    log = Log()
    for batch in log.turns.as_list():
        assert batch == "abc"[log.done % 3]
        log.done += 1
        log.turns.reached(log.done)
    assert log.told == told()


def test_the_parameters_are_looked_at_after_the_updates_of_a_loop_that_fetches_ahead():
    log, fetched = Log(ahead=1), []
    for batch in log.turns:
        fetched.append(batch)
        if len(fetched) > 1:
            log.done += 1
    assert log.turns.early[0].item() == CADENCE.early


def test_a_loop_that_skips_a_stop_is_told_so():
    log = Log()
    with pytest.raises(RuntimeError, match="went past update 2, to 3"):
        log.turns.reached(3)


def test_a_loop_that_ends_early_is_not_finished():
    log = Log()
    for _ in zip(range(10), log.turns, strict=False):
        log.done += 1
    assert not log.turns.finished


def test_the_first_comparison_comes_before_the_first_turn():
    with pytest.raises(ValueError, match="expected 1 to 9"):
        Cadence(warmup=10, rounds=1, settle=0, steps=1)
