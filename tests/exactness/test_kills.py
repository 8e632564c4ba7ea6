"""C2 and D1: SIGKILL at any time loses nothing that was acknowledged, and changes no bit.

The same trials run for an hour behind ``make torture``. A failure prints the order that gives it.
"""

from __future__ import annotations

import signal
import sys

import pytest

from tests.torture.aims import POINTS
from tests.torture.server import Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts orphans as Linux does")


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running


def hit(server, **arguments):
    return server.call("tests.torture.trials:hit_runs", number=signal.SIGKILL, **arguments)


def test_300_kills_in_a_loop_of_saves_lose_nothing(server):
    done = server.call("tests.torture.trials:save_loop", kills=300, seed=1)
    assert done["kills"] == 300
    assert done["saves"] > 100


@pytest.fixture(scope="module")
def killed(server):
    return hit(server, runs=36, seed=3, hits=[1, 3, 10], points=["", *POINTS])


def test_fits_that_are_killed_1_3_and_10_times_end_with_the_bits_of_those_that_are_not(killed):
    assert killed["said"] == []
    assert killed["finished"] == 36
    assert killed["hits"] >= 90


def test_the_kills_hit_many_places(killed):
    assert len(killed["places"]) >= 6


def test_a_killed_fit_leaves_no_worker_behind(killed):
    assert killed["leaked"] == 0


def test_a_fit_that_is_killed_while_its_workers_start_leaves_none_behind(server):
    points = ["worker started", "workers started"]
    done = hit(server, runs=4, seed=4, hits=[2], points=points, workers=2, at_once=True)
    assert done["hits"] == 8
    assert done["leaked"] == 0
    assert done["said"] == []
