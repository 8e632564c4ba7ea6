"""T1: a run that is stopped and taken up again, in new processes, is the run that was not.

For both units, windows of 1 and 3, and 0 and 2 workers: for every micro-batch k of three epochs,
fit to k, then in a new process to the end. Then two stops in the second epoch: every pair of them
with 0 workers, three of the six pairs with 2.

The model has dropout, batch normalisation, clipping and an average of its parameters; the data is
shuffled and augmented by torch, ``random`` and numpy; hooks and a plugin draw from all three and
their draws are in the loss. Compared bit by bit: every value in the last checkpoint (parameters,
buffers, optimizer state, open window, counters, best score, generators), every checkpoint that
both runs wrote, and the events with their counters and their draws.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import msgspec
import pytest

import helios
from tests.exactness.runs import (
    BATCHES,
    MICRO_BATCHES,
    PLANS,
    Leg,
    contents_of,
    events_of,
    last_checkpoint,
    legs_of,
)
from tests.exactness.zygote import ROOT, Zygote

CONFIGURATIONS = [(*plan, workers) for plan in PLANS for workers in (0, 2)]
SECOND_EPOCH = range(BATCHES + 1, 2 * BATCHES + 1)


@pytest.fixture(scope="module")
def zygote():
    with Zygote() as running:
        yield running


@pytest.fixture(scope="module", params=CONFIGURATIONS, ids=lambda c: "-".join(map(str, c)))
def whole(request, zygote, tmp_path_factory):
    """The uninterrupted run."""
    unit, accumulation, workers = request.param
    folder = tmp_path_factory.mktemp("whole")
    run = Leg(str(folder), unit, accumulation, workers)
    zygote.run([[run]])
    return run


def interrupted(zygote, whole, folder, stops):
    """Run with each of some tuples of stops, and return the folders."""
    runs = [
        legs_of(msgspec.structs.replace(whole, folder=str(folder / "-".join(map(str, stop)))), stop)
        for stop in stops
    ]
    zygote.run(runs)
    return [legs[0].folder for legs in runs]


def assert_same(whole, folder):
    assert events_of(folder) == events_of(whole.folder), folder
    last = last_checkpoint(folder)
    assert last == last_checkpoint(whole.folder), folder
    expected, received = contents_of(whole.folder), contents_of(folder)
    for name in expected:
        # A stop in an open window is named after the update before it, and takes its place.
        if name == last or received[name]["training_state"]["window_iter"] == 0:
            assert helios.first_difference(received[name], expected[name]) is None, (folder, name)


def micro_batches(whole):
    return 11 if (whole.unit, whole.accumulation) == ("iteration", 1) else MICRO_BATCHES


def test_a_stop_after_any_micro_batch_changes_no_bit(whole, zygote, tmp_path):
    stops = [(k,) for k in range(1, micro_batches(whole) + 1)]
    for folder in interrupted(zygote, whole, tmp_path, stops):
        assert_same(whole, folder)


def test_two_stops_in_one_epoch_change_no_bit(whole, zygote, tmp_path):
    stops = list(itertools.combinations(SECOND_EPOCH, 2))
    for folder in interrupted(zygote, whole, tmp_path, stops if whole.workers == 0 else stops[1:4]):
        assert_same(whole, folder)


def test_a_new_process_for_every_micro_batch_changes_no_bit(whole, zygote, tmp_path):
    every = tuple(range(1, micro_batches(whole) + 1))
    (folder,) = interrupted(zygote, whole, tmp_path, [every])
    assert_same(whole, folder)


def test_the_number_of_workers_may_change_at_every_resume(whole, zygote, tmp_path):
    legs = [
        msgspec.structs.replace(leg, folder=str(tmp_path), workers=(0, 2, 1)[leg.number])
        for leg in legs_of(whole, (BATCHES + 1, 2 * BATCHES - 1))
    ]
    zygote.run([legs])
    assert_same(whole, tmp_path)


def test_a_fresh_interpreter_elsewhere_goes_on_with_the_same_bits(zygote, tmp_path):
    whole = Leg(str(tmp_path / "whole"), "iteration", 3, 0)
    first, second = legs_of(msgspec.structs.replace(whole, folder=str(tmp_path / "new")), (5,))
    zygote.run([[whole], [first]])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-m", "tests.exactness.runs", msgspec.json.encode(second).decode()],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "4711"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    assert_same(whole, first.folder)


def test_a_finished_run_is_left_as_it_is_by_another_process(whole, zygote):
    events, before = events_of(whole.folder), contents_of(whole.folder)
    zygote.run([[msgspec.structs.replace(whole, number=1)]])
    assert events_of(whole.folder) == events
    assert helios.first_difference(contents_of(whole.folder), before) is None


def test_the_comparison_sees_another_run(whole, zygote, tmp_path):
    # Another window is another run: were the comparison blind, it would be equal to this one.
    other = msgspec.structs.replace(
        whole, folder=str(tmp_path), accumulation=4 - whole.accumulation
    )
    zygote.run([[other]])
    with pytest.raises(AssertionError):
        assert_same(whole, tmp_path)
