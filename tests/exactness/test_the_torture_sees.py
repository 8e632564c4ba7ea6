"""The harness of the kills is not blind: what is put into helios to be found is found."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.torture.judging import events_differ
from tests.torture.sabotage import SABOTAGES
from tests.torture.server import Server

WHOLE = [f"event {number}" for number in range(6)]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="counts orphans as Linux does")


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running


@LINUX
@pytest.mark.parametrize("kind", SABOTAGES)
def test_a_fault_in_helios_is_found_and_named(server, kind):
    late = kind == "late"
    done = server.call(
        "tests.torture.trials:hit_runs",
        number=signal.SIGTERM if late else signal.SIGKILL,
        runs=5,
        seed=6,
        hits=[3],
        points=["step"] if late else ["operation", "step", "fetch", "save"],
        workers=0,
        at_once=True,
        sabotage=kind,
    )
    assert any(line.startswith(f"FAILURE ({kind})") for line in done["said"]), done["said"]


@pytest.mark.parametrize(
    "legs",
    [
        [WHOLE],
        [["start 0", *WHOLE, "end 5"], ["start 5", "end 5"]],
        [WHOLE[:3], WHOLE[1:]],
        [WHOLE[:3], [], WHOLE[3:]],
        [WHOLE[:4], ["epoch_start 1 drawn anew"], ["epoch_start 1 drawn anew", *WHOLE[2:]]],
    ],
)
def test_legs_that_repeat_parts_of_the_whole_run_are_it(legs):
    assert events_differ(legs, WHOLE) is None


@pytest.mark.parametrize(
    ("legs", "problem"),
    [
        ([WHOLE[:5]], "only 5 of 6"),
        ([WHOLE[:2], WHOLE[3:]], "those from 2 on are missing"),
        ([[*WHOLE[:2], *WHOLE[3:]]], "instead of 'event 2'"),
        ([[*WHOLE, "event 6"]], "after the end"),
        ([["event 9"]], "never did"),
        ([[*WHOLE[:3], WHOLE[2], *WHOLE[3:]]], "instead of 'event 3'"),
    ],
)
def test_legs_that_do_anything_else_are_not(legs, problem):
    assert problem in str(events_differ(legs, WHOLE))
