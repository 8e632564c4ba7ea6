"""Signals to a process that waits for others: noted, told, and never lost."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from helios.trainer.ranks.forward import Forwarding

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has other signals")


@pytest.fixture
def calls():
    """The calls of a handler of the user's own, which is set for SIGTERM."""
    calls = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    yield calls
    signal.signal(signal.SIGTERM, before)


def ask(*numbers):
    with Forwarding() as signals:
        for number in numbers:
            os.kill(os.getpid(), number)
        return signals, signals.take()


def test_signals_are_noted_in_their_order_and_the_first_one_counts():
    signals, taken = ask(signal.SIGTERM, signal.SIGINT)
    assert taken == [signal.SIGTERM, signal.SIGINT]
    assert signals.received == signal.SIGTERM
    assert signals.take() == []


def test_to_suspend_is_not_to_stop():
    signals, taken = ask(signal.SIGTSTP)
    assert taken == [signal.SIGTSTP]
    assert signals.received is None


def test_sigusr1_is_noted_under_slurm(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert ask(signal.SIGUSR1)[0].received == signal.SIGUSR1


def test_a_signal_that_came_too_late_for_anybody_is_followed():
    signals, _ = ask(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        signals.leave()


def test_a_signal_that_somebody_was_told_is_left_to_them():
    signals, _ = ask(signal.SIGTERM)
    signals.told(signal.SIGTERM)
    assert signals.leave() is None


def test_a_handler_of_the_users_is_put_back_and_called_at_the_end(calls):
    signals, _ = ask(signal.SIGTERM)
    assert calls == []
    signals.call_user()
    assert calls == [signal.SIGTERM]
    os.kill(os.getpid(), signal.SIGTERM)
    assert calls == [signal.SIGTERM] * 2


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert ask(signal.SIGTERM)[1] == []
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_no_handler_is_set(calls):
    seen = []

    def enter():
        with Forwarding():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
