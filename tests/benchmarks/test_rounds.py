from pathlib import Path

import pytest

from benchmarks.contestants import BASELINE, CONTESTANTS, Contestant
from benchmarks.rounds import again, beside, order, take_turns
from benchmarks.turns import Cadence

CADENCE = Cadence(warmup=12, rounds=3, settle=1, steps=2)


@pytest.mark.parametrize("number", range(7))
def test_everyone_comes_once_in_a_round_and_none_is_far_from_a_baseline(number):
    baselines, others = list("ABC"), [str(i) for i in range(11)]
    names = order(baselines, others, number)
    assert sorted(names) == sorted(baselines + others)
    places = [i for i, name in enumerate(names) if name in baselines]
    assert places[0] == 0
    assert max(b - a for a, b in zip(places, [*places[1:], len(names)], strict=True)) <= 5


def test_the_order_rotates():
    firsts = {order(["A"], list("xyz"), number)[1] for number in range(3)}
    assert firsts == set("xyz")


def test_a_drift_of_the_machine_is_taken_out():
    # Each turn is slower than the one before; x takes twice what the baseline would.
    names = [name for number in range(4) for name in order(["A", "B"], list("xyz"), number)]
    turns = [(n, (1 + 0.1 * i) * (2 if n == "x" else 1)) for i, n in enumerate(names)]
    inner = [
        (s, b)
        for (s, b) in zip(
            [s for n, s in turns if n == "x"], beside(turns, "x", ["A", "B"]), strict=True
        )
    ][:-1]  # after the last baseline there is none to interpolate to
    assert [s / b for s, b in inner] == pytest.approx([2.0] * len(inner))


def test_a_baseline_is_not_compared_with_itself():
    turns = [("A", 1.0), ("B", 5.0), ("A", 2.0)]
    assert beside(turns, "B", ["A", "B"]) == [1.5]
    assert beside(turns, "A", ["A", "B"]) == [5.0, 5.0]


def test_one_that_dies_is_left_out_and_the_others_go_on(tmp_path):
    # A job that its process cannot read: it ends with a traceback, on its own terminal.
    unknown = Contestant("unknown", "nobody", "nobody")
    runs = take_turns(
        [CONTESTANTS[BASELINE], unknown], "mlp", False, CADENCE, tmp_path / "runs",
        tmp_path / "compiled", lambda message: None, copies=2,
    )  # fmt: skip
    assert "KeyError: 'unknown'" in runs["unknown"].failure
    for name in (BASELINE, again(1)):
        assert runs[name].failure is None
        assert len(runs[name].seconds) == len(runs[name].beside) == CADENCE.rounds
        assert (Path(runs[name].folder) / "parameters.npz").exists()
