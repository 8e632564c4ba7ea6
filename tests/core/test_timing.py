import statistics

import pytest

from helios.core.utils import AverageTimer


def test_the_average_of_nothing_is_zero():
    assert AverageTimer().average == 0.0


def test_a_window_that_is_not_full_averages_what_there_is():
    timer = AverageTimer(window=10)
    timer.add(1.0)
    timer.add(2.0)
    assert timer.average == 1.5


def test_the_window_slides_by_one_at_every_step():
    timer, durations = AverageTimer(window=4), [float(n * n % 7) for n in range(30)]
    for count, seconds in enumerate(durations, start=1):
        timer.add(seconds)
        assert timer.average == statistics.fmean(durations[max(0, count - 4) : count])


def test_one_huge_duration_leaves_no_rounding_error_behind():
    timer = AverageTimer(window=3)
    for seconds in (1e18, 0.1, 0.1, 0.1, 0.1, 0.1):
        timer.add(seconds)
    assert timer.average == pytest.approx(0.1, rel=1e-15)


def test_a_window_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="window: received 0"):
        AverageTimer(window=0)
