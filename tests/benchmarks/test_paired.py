import pytest

from benchmarks.paired import Spread, paired


def test_the_ratio_is_the_median_over_rounds_not_the_ratio_of_medians():
    baseline = [1.0, 10.0, 1.0]
    result = paired([2.0, 11.0, 2.0], baseline, steps=1)
    assert result.ratio.median == 2.0
    assert result.difference.median == 1e6


def test_a_slow_minute_slows_both_and_leaves_the_ratio():
    baseline = [1.0, 1.0, 7.0, 1.0, 3.0]
    result = paired([1.5 * s for s in baseline], baseline, steps=10)
    assert (result.ratio.low, result.ratio.median, result.ratio.high) == (1.5, 1.5, 1.5)


def test_a_difference_is_in_microseconds_an_update():
    result = paired([0.2, 0.2], [0.1, 0.1], steps=1000)
    assert result.difference.median == pytest.approx(100.0)
    assert result.microseconds.median == pytest.approx(200.0)


def test_the_quartiles_lie_within_the_values():
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)


def test_rounds_without_a_partner_are_refused():
    with pytest.raises(ValueError, match="received 2 rounds, and 1 of the baseline"):
        paired([1.0, 1.0], [1.0], steps=1)
    with pytest.raises(ValueError, match="received none"):
        paired([], [], steps=1)
