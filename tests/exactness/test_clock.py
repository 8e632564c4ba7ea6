"""W1: clocks may jump, in a run and between its processes; no bit of the state depends on them."""

from __future__ import annotations

import itertools
import math
import time
from types import SimpleNamespace

import pytest

import helios
from property_tests.fits import Data, Stopping, fit, last_content

ARGUMENTS = {
    "train_unit": "iteration",
    "total_steps": 9,
    "valid_frequency": 2,
    "chkpt_frequency": 2,
    "random_seed": 7,
}
JUMPS = {
    "back": [1000.0, -3600.0],
    "far ahead and back": [1e12, -1e12, 0.5],
    "to the start": [5.0, 1.0, -6.0],
    "nowhere": [0.0],
}


class Clock:
    """Goes by steps that come round again, from a start of its own."""

    def __init__(self, start, steps):
        self.now, self.steps = start, itertools.cycle(steps)

    def __call__(self):
        self.now += next(self.steps)
        return self.now


class Timed(Stopping):
    """Notes the average time of a micro-batch wherever a hook sees it."""

    def __init__(self, stop_at=None):
        super().__init__(stop_at=stop_at)
        self.times = []

    def on_training_batch_end(self, state, should_log=False):
        self.times.append(state.average_iter_time)


def with_clock(monkeypatch, clock):
    """Let the loop, and every time stamp, follow a clock."""
    monkeypatch.setattr(
        "helios.trainer.loop.time", SimpleNamespace(**{**vars(time), "perf_counter": clock})
    )
    monkeypatch.setattr(time, "time", clock)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    fit(Stopping(), Data(11, 3), chkpt_root=root, **ARGUMENTS)
    return last_content(root)


@pytest.fixture(params=JUMPS)
def jumped(request, tmp_path, monkeypatch):
    """The models of a run under a jumping clock, and of its resume long before."""
    models = Timed(stop_at=4), Timed()
    for model, start in zip(models, (1e6, 0.0), strict=True):
        with monkeypatch.context() as patch:
            with_clock(patch, Clock(start, JUMPS[request.param]))
            fit(model, Data(11, 3), chkpt_root=tmp_path, **ARGUMENTS)
    return models, last_content(tmp_path)


def test_no_bit_depends_on_the_clock(jumped, whole):
    assert helios.first_difference(jumped[1], whole) is None


def test_the_average_time_of_a_micro_batch_stays_a_time(jumped):
    times = [seconds for model in jumped[0] for seconds in model.times]
    assert len(times) == 9
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in times)
