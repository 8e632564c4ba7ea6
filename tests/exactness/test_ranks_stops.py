"""A stop that one rank asks for stops all of them, at the same update, one later at most."""

from __future__ import annotations

import pytest

from tests.exactness import ranks


def stopped(world, stop, when, asks, reduction="mean", window=2):
    """Return the update and the micro-batch that all ranks stop at."""
    spec = {
        "data": {"samples": 32, "batch": 8},
        "options": {"reduction": reduction, "accumulation_steps": window},
        "stop": {"stop": stop, "when": when, "asks": asks},
    }
    counters = ranks.alike(ranks.run([spec], world)[0])["counters"]
    return counters["current_iteration"], counters["global_iteration"]


@pytest.mark.parametrize("reduction", ["mean", "canonical"])
@pytest.mark.parametrize(("world", "asks"), [(2, [0]), (2, [1]), (4, [2]), (2, [0, 1])])
def test_a_stop_after_an_update_is_heard_at_that_update(world, asks, reduction):
    assert stopped(world, 2, "update", asks, reduction) == (2, 4)


@pytest.mark.parametrize("reduction", ["mean", "canonical"])
def test_a_stop_asked_for_once_within_a_window_is_heard_at_its_end(reduction):
    assert stopped(2, 3, "once", [1], reduction) == (2, 4)


def test_a_stop_asked_for_once_at_the_end_of_an_update_is_heard_there():
    assert stopped(3, 4, "once", [1]) == (2, 4)


@pytest.mark.parametrize("reduction", ["mean", "canonical"])
def test_a_stop_that_a_hook_at_the_end_of_an_update_asks_for_is_heard_one_later(reduction):
    assert stopped(2, 1, "late", [1], reduction) == (2, 4)


def test_a_stop_that_is_asked_for_late_is_heard_at_the_end_of_an_epoch():
    assert stopped(2, 2, "late", [1]) == (2, 4)
    assert stopped(2, 4, "late", [1]) == (4, 8)


def test_without_anyone_who_asks_a_run_goes_on_to_its_end():
    assert stopped(2, 2, "update", []) == (4, 8)
