import pytest

import helios

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("best", [None, 1.0, NAN, INF, -INF])
@pytest.mark.parametrize("score", [NAN, INF, -INF])
def test_a_score_that_is_not_finite_is_never_an_improvement(score, best, mode):
    assert not helios.Monitor("loss", mode).improves(score, best)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("best", [None, NAN, INF, -INF])
def test_the_first_finite_score_is_an_improvement(best, mode):
    assert helios.Monitor("loss", mode).improves(0.0, best)


def test_less_is_better_unless_more_is():
    assert helios.Monitor("loss").improves(0.5, 1.0)
    assert not helios.Monitor("loss").improves(1.5, 1.0)
    assert helios.Monitor("accuracy", "max").improves(1.5, 1.0)
    assert not helios.Monitor("accuracy", "max").improves(0.5, 1.0)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_tie_is_no_improvement(mode):
    assert not helios.Monitor("loss", mode).improves(1.0, 1.0)
