"""S1 and S2: a run that is asked to stop saves within a micro-batch, and goes on with every bit."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.torture.server import Server

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts orphans as Linux does")

POINTS = ["", "fetch", "step", "validation", "validation batch", "epoch end", "save", "operation"]


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running


@pytest.fixture(scope="module", params=[signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def asked(request, server):
    name = "tests.torture.trials:hit_runs"
    return server.call(name, number=request.param, runs=24, seed=5, hits=[3], points=POINTS)


def test_a_run_that_is_asked_to_stop_ends_with_the_status_of_the_signal_and_goes_on(asked):
    assert asked["said"] == []
    assert asked["finished"] == 24
    assert asked["hits"] >= 36


def test_the_signal_comes_in_many_places_and_to_groups_too(asked):
    assert len(asked["places"]) >= 4
    assert asked["groups"] > 0


def test_a_run_that_is_asked_to_stop_ends_its_workers(asked):
    assert asked["leaked"] == 0


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_step_under_way_is_done_and_saved(server, number, group):
    name = "tests.torture.trials:asked_by"
    done = server.call(name, number=number, group=group, variables={})
    assert done == {"status": 128 + number, "arrived": 3, "problems": []}


def test_under_slurm_sigusr1_asks_to_stop(server):
    name = "tests.torture.trials:asked_by"
    done = server.call(name, number=signal.SIGUSR1, group=False, variables={"SLURM_JOB_ID": "1"})
    assert done == {"status": 128 + signal.SIGUSR1, "arrived": 3, "problems": []}


def test_elsewhere_sigusr1_ends_the_process_and_the_run_goes_on(server):
    name = "tests.torture.trials:asked_by"
    done = server.call(name, number=signal.SIGUSR1, group=False, variables={})
    assert done == {"status": -signal.SIGUSR1, "arrived": -1, "problems": []}


@pytest.mark.parametrize("write", [2, 40])
@pytest.mark.parametrize("in_background", [False, True])
def test_a_second_sigint_ends_a_run_at_once_whose_save_hangs(server, in_background, write):
    name = "tests.torture.trials:second_interrupt"
    done = server.call(name, in_background=in_background, write=write)
    assert done["status"] == -signal.SIGINT
    assert done["seconds"] < 2
    assert done["problems"] == []
