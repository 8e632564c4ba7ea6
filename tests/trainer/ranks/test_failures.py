"""R1, R2: a rank fails, anywhere and in any way, and the run ends everywhere and says why."""

from __future__ import annotations

import os
import random

import pytest

from tests.trainer.ranks.faulty import PLACES
from tests.trainer.ranks.table import KINDS, SLACK, TIMEOUT, Case, Row, cases, line, play

nightly = pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="waits for ranks that never come"
)

# What is found out at once is tested everywhere, what is waited for in some places.
QUICK = [
    *(case for case in cases() if case.kind == "raises"),
    Case("is_killed", "worker", 0),
    Case("is_killed", "data", 1),
    Case("is_killed", "name of a checkpoint", 0),
    Case("sleeps", "validation", 0),
    Case("spins", "state_dict of a plugin", 0),
    Case("spins", "step", 1),
    Case("calls_another_collective", "on_training_epoch_end", 1),
    Case("raises", "step", 2, ranks=4),
    Case("is_killed", "on_validation_end", 3, ranks=4),
    Case("sleeps", "on_training_batch_end", 2, ranks=4),
]
FOUR = [*cases(4, failing=(2,)), *(case for case in cases(4, failing=(0,)) if case.kind == "spins")]
SLOW = [case for case in [*cases(), *FOUR] if case not in QUICK]


def check(row: Row) -> None:
    case = row.case
    assert 0 not in row.statuses, row.output
    assert row.seconds <= TIMEOUT + SLACK, row.output
    told = {row.named[rank] for rank in case.survivors}
    # Of collectives that do not fit nobody can tell whose is wrong: all say the same, all is shown.
    expected = case.rank if case.kind != "calls_another_collective" else row.named[0]
    assert told == {expected}, row.output
    assert all(row.shown[rank] for rank in case.survivors), row.output
    assert row.logged == (1 if 0 in case.survivors else 0), row.output


@pytest.mark.parametrize("case", QUICK, ids=lambda case: "-".join(map(str, case)))
def test_a_failure_of_one_rank_ends_all_of_them_in_time_and_is_named(case):
    check(play(case))


@nightly
@pytest.mark.nightly
@pytest.mark.parametrize("case", SLOW, ids=lambda case: "-".join(map(str, case)))
def test_a_failure_of_one_rank_ends_all_of_them_in_time_and_is_named_everywhere(case):
    check(play(case))


def test_every_kind_is_tested_in_every_place_where_it_can_be():
    planned = {(case.kind, case.place) for case in [*QUICK, *SLOW]}
    everything = {(kind, place) for kind in KINDS for place in PLACES}
    assert everything - planned == {("calls_another_collective", "worker")}


@pytest.mark.parametrize("seed", range(10))
def test_a_rank_without_memory_ends_all_of_them_with_the_same_status(seed):
    drawn = random.Random(seed)
    places = ["data", "worker", "step", "validation", "on_training_batch_end"]
    case = Case("has_no_memory", drawn.choice(places), drawn.randrange(3), ranks=3)
    row = play(case, after=drawn.randrange(1, 8))
    assert row.statuses == [1, 1, 1], row.output
    assert row.named == [case.rank] * 3, row.output
    assert row.output.count("MemoryError: planned words") >= 3, row.output
    assert row.seconds <= TIMEOUT, row.output


def test_a_case_is_a_line_of_a_table():
    row = Row(Case("is_killed", "step", 1), [1, -9], 2.06, [1, None], [True, False], 1, "")
    assert line(row) == "| is killed | step | 1 | 2 | 1, -9 | 2.1 | 1, - |"
