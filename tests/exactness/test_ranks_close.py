"""Several ranks are one to rounding: parameters, averages, and all metrics that are shown.

The largest differences that were measured in float64 are 4.3e-16 for parameters, relative to the
largest entry of a tensor, and 5.5e-16 for metrics, relative to their value.
"""

from __future__ import annotations

import pytest

from tests.exactness import ranks

TOLERANCE = 5e-15
MODELS = {
    "a mean": {},
    "a weighted sum": {"loss": "weighted"},
    "two objectives": {"loss": "game"},
    "clipping and an average": {"clip": True, "average": True},
    "a weighted sum, clipping and an average": {"loss": "weighted", "clip": True, "average": True},
}
SIZES = {"ragged": (23, 5), "a last batch of one": (11, 5), "batches of two": (7, 2)}
CASES = [
    *((model, 3, "ragged") for model in MODELS),
    ("a mean", 1, "a last batch of one"),
    ("a weighted sum", 3, "a last batch of one"),
    ("a weighted sum", 1, "batches of two"),
]


WEIGHTED = 1


def specs(root):
    found = []
    for number, (model, window, size) in enumerate(CASES):
        samples, batch = SIZES[size]
        options = {
            "total_steps": 3,
            "accumulation_steps": window,
            "valid_frequency": 1,
            "print_frequency": 2,
            "enable_file_logging": True,
            "log_path": str(root / str(number)),
        }
        data = {"samples": samples, "batch": batch, "valid": 7}
        found.append({"model": MODELS[model], "data": data, "options": options})
    found[WEIGHTED]["test"] = True
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return ranks.run(specs(tmp_path_factory.mktemp("alone")), 1)


@pytest.fixture(scope="module", params=[2, 3, 4])
def several(request, tmp_path_factory):
    return ranks.run(specs(tmp_path_factory.mktemp("several")), request.param)


@pytest.mark.parametrize("case", range(len(CASES)), ids=[", ".join(map(str, c)) for c in CASES])
def test_parameters_and_metrics_are_those_of_one_rank(case, alone, several):
    one, first = alone[case][0], ranks.alike(several[case])
    assert ranks.furthest(first, one) < TOLERANCE
    assert [line[:2] for line in first["shown"]] == [line[:2] for line in one["shown"]]
    assert {line[1] for line in first["shown"]} == {"train", "valid"}
    for (*_, values), (*_, expected) in zip(first["shown"], one["shown"], strict=True):
        assert values == pytest.approx(expected, rel=TOLERANCE, abs=0)


def test_the_metrics_of_a_test_are_those_of_one_rank(alone, several):
    one, first = alone[WEIGHTED][0], ranks.alike(several[WEIGHTED])
    assert first["test"] == pytest.approx(one["test"], rel=TOLERANCE, abs=0)
    assert first["test"]


@pytest.mark.parametrize("loss", ["mean", "weighted"])
@pytest.mark.parametrize("world", [2, 3])
def test_a_window_that_one_rank_has_begun_is_ended_by_several(loss, world, tmp_path):
    spec = {
        "model": {"loss": loss},
        "data": {"samples": 22, "batch": 4},
        "options": {"accumulation_steps": 3},
    }
    [whole] = ranks.run([spec], 1)
    spec["options"] = {**spec["options"], "chkpt_root": str(tmp_path)}
    [begun] = ranks.run([{**spec, "stop": {"stop": 2, "when": "once"}}], 1)
    assert begun[0]["counters"]["global_iteration"] == 2
    [ended] = ranks.run([spec], world)
    assert ranks.furthest(ranks.alike(ended), whole[0]) < TOLERANCE


def test_the_metrics_of_a_resumed_run_are_those_of_one_rank(tmp_path):
    spec = {
        "data": {"samples": 22, "batch": 4, "valid": 5},
        "options": {
            "print_frequency": 3,
            "valid_frequency": 1,
            "enable_file_logging": True,
            "log_path": str(tmp_path / "log"),
        },
    }
    [[whole]] = ranks.run([spec], 1)
    spec["options"] = {**spec["options"], "chkpt_root": str(tmp_path / "chkpt")}
    shown = []
    for world, stop in ((3, 4), (2, 5), (1, 8), (4, None)):
        [leg] = ranks.run([{**spec, "stop": {"stop": stop}}], world)
        shown += leg[0]["shown"]
    assert [line[:2] for line in shown] == [line[:2] for line in whole["shown"]]
    for (*_, values), (*_, expected) in zip(shown, whole["shown"], strict=True):
        assert values == pytest.approx(expected, rel=TOLERANCE, abs=0)
