"""T3: with ``reduction="canonical"`` a run has the same bits on any number of ranks.

Compared are parameters, buffers, optimizer state, the average, the best score, every hook with its
counters and draws, every value of every validation and of the test, and where the run stops early.
"""

from __future__ import annotations

import random

import pytest

from tests.exactness import ranks

DATA = {"samples": 56, "batch": 20, "valid": 45}  # the last batches are smaller
OPTIONS = {"reduction": "canonical", "accumulation_steps": 2, "valid_frequency": 1}
WHOLE = {"dropout": True, "norm": True, "average": True, "clip": True, "draws": True}
CASES = {
    "a mean": {"model": WHOLE},
    "a weighted sum": {"model": {**WHOLE, "loss": "weighted"}},
    "float32": {"model": {**WHOLE, "double": False}},
    "bfloat16": {"model": {**WHOLE, "double": False, "precision": "bf16", "loss": "weighted"}},
    "two objectives": {"model": {"loss": "game", "dropout": True, "norm": True, "draws": True}},
    "padding": {"data": {"samples": 11, "batch": 4, "valid": 11}, "model": {"dropout": True}},
    "a plugin that draws": {"model": WHOLE, "noise": "torch"},
    "a stream": {"data": {**DATA, "kind": "resumable"}, "model": WHOLE},
    "windows of 1": {"model": WHOLE, "options": {**OPTIONS, "accumulation_steps": 1}},
}


def spec(name):
    return {"data": DATA, "options": OPTIONS, "test": name == "a mean", **CASES[name]}


@pytest.fixture(scope="module")
def alone():
    return dict(zip(CASES, ranks.run([spec(name) for name in CASES], 1), strict=True))


@pytest.fixture(scope="module", params=[2, 4])
def several(request):
    return dict(zip(CASES, ranks.run([spec(name) for name in CASES], request.param), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_the_bits_are_those_of_one_rank(case, alone, several):
    [one] = alone[case]
    ranks.assert_same(ranks.alike(several[case]), one)
    assert ranks.micro_batches(several[case]) == ranks.micro_batches([one])


def test_twelve_pieces_have_the_same_bits_on_1_3_and_6_ranks():
    twelve = {**spec("a mean"), "data": {"samples": 56, "batch": 28, "valid": 5}}
    twelve["options"] = {**OPTIONS, "pieces": 12}
    [[one]] = ranks.run([twelve], 1)
    for world in (3, 6):
        ranks.assert_same(ranks.alike(ranks.run([twelve], world)[0]), one)


EARLY = {
    "data": DATA,
    "model": {**WHOLE, "monitor": "loss", "lr": 0.2},
    "options": {**OPTIONS, "total_steps": 6, "early_stop_cycles": 2},
}
"""Stops early; the validations before have improved, and have not."""

MICRO_BATCHES = 15  # that the run has, once it has stopped


@pytest.fixture(scope="module")
def whole():
    [[one]] = ranks.run([EARLY], 1)
    return one


def relayed(trial, root):
    """Run with stops and numbers of ranks that are drawn; return the last leg, and all hooks."""
    draw = random.Random(trial)
    options = {**EARLY["options"], "chkpt_root": str(root)}
    stops = sorted(draw.sample(range(1, MICRO_BATCHES), draw.randint(1, 3)))
    legs = []
    for stop in (*stops, None):
        asked = {"stop": stop, "when": "once"}
        world = draw.choice([1, 2, 4])
        [leg] = ranks.run([{**EARLY, "options": options, "stop": asked}], world)
        legs.append(ranks.alike(leg, "hooks", "bits", "counters", "best"))
    return legs


def check_relay(trial, root, whole):
    legs = relayed(trial, root)
    assert legs[-1]["bits"] == whole["bits"]
    assert legs[-1]["best"] == whole["best"]
    assert legs[-1]["counters"] == whole["counters"]
    hooks = [hook for leg in legs for hook in leg["hooks"]]
    for name in ("batch_end", "metrics", "improved"):
        assert ranks.called(hooks, name) == ranks.called(whole["hooks"], name)


def test_the_run_of_the_relays_improves_and_then_stops_early(whole):
    improved = [hook[1] for hook in ranks.called(whole["hooks"], "improved")]
    assert True in improved
    assert improved[-2:] == [False, False]
    assert whole["counters"]["global_iteration"] == MICRO_BATCHES


@pytest.mark.parametrize("trial", range(10))
def test_a_run_that_changes_its_ranks_has_the_bits_of_one_that_does_not(trial, tmp_path, whole):
    check_relay(trial, tmp_path, whole)


@pytest.mark.nightly
@pytest.mark.parametrize("trial", range(10, 110))
def test_a_hundred_more_have_them(trial, tmp_path, whole):
    check_relay(trial, tmp_path, whole)
