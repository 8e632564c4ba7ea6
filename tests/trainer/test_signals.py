"""The handlers of a fit: set in the main thread, put back whatever happens, and polite."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from helios.trainer import find_last_checkpoint
from tests import zoo
from tests.trainer.runs import Batches, PlannedError, trainer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has other signals")

NUMBERS = [signal.SIGINT, signal.SIGTERM]


class Asked(zoo.Line):
    """Sends this process signals in the third micro-batch, and notes the handlers there."""

    def __init__(self, *numbers, error=None):
        super().__init__("line")
        self.numbers, self.error = numbers, error
        self.handlers = {}
        self.batches = 0

    def on_training_batch_end(self, state, should_log=False):
        self.batches = state.global_iteration
        self.handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        if state.global_iteration == 3:
            for number in self.numbers:
                os.kill(os.getpid(), number)
            if self.error is not None:
                raise self.error


def fit(root, model, **arguments):
    return trainer(root, **arguments).fit(model, Batches(zoo.regression(5)))


@pytest.fixture(autouse=True)
def handlers():
    """What was set before a test, which a test may change."""
    before = {number: signal.getsignal(number) for number in [*NUMBERS, signal.SIGUSR1]}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def present():
    return {number: signal.getsignal(number) for number in NUMBERS}


def test_a_fit_with_checkpoints_handles_sigint_and_sigterm(tmp_path):
    before, model = present(), Asked()
    assert fit(tmp_path, model)
    assert all(model.handlers[number] != before[number] for number in NUMBERS)


def test_a_fit_without_checkpoints_handles_nothing():
    before, model = present(), Asked()
    assert fit(None, model)
    assert {number: model.handlers[number] for number in NUMBERS} == before


@pytest.mark.parametrize("error", [None, PlannedError("boom"), KeyboardInterrupt()])
def test_handlers_are_put_back_after_a_fit_however_it_ends(tmp_path, error, capfd):
    before = present()
    try:
        assert fit(tmp_path, Asked(error=error)) == (error is None)
    except KeyboardInterrupt:
        assert isinstance(error, KeyboardInterrupt)
    assert present() == before


@pytest.mark.parametrize(
    ("number", "ending"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_handlers_are_put_back_after_a_signal(tmp_path, number, ending):
    before = present()
    with pytest.raises(ending):
        fit(tmp_path, Asked(number))
    assert present() == before


def test_sigterm_exits_with_status_143_after_the_micro_batch_is_saved(tmp_path):
    model = Asked(signal.SIGTERM)
    with pytest.raises(SystemExit) as leaving:
        fit(tmp_path, model)
    assert leaving.value.code == 143
    assert model.batches == 3
    assert find_last_checkpoint(tmp_path / "line").name == "line_epoch_1_iter_3.pth"


def test_the_data_is_torn_down_before_the_process_leaves(tmp_path):
    data = Batches(zoo.regression(5))
    with pytest.raises(SystemExit):
        trainer(tmp_path).fit(Asked(signal.SIGTERM), data)
    assert data.torn_down == 1


def test_a_signal_in_the_last_micro_batch_is_answered_too(tmp_path):
    model = Asked(signal.SIGTERM)
    with pytest.raises(SystemExit):
        fit(tmp_path, model, steps=3)
    assert fit(tmp_path, Asked(), steps=3)


def test_the_first_of_two_signals_decides(tmp_path):
    with pytest.raises(SystemExit) as leaving:
        fit(tmp_path, Asked(signal.SIGTERM, signal.SIGINT))
    assert leaving.value.code == 143


def test_a_second_sigterm_changes_nothing(tmp_path):
    with pytest.raises(SystemExit) as leaving:
        fit(tmp_path, Asked(signal.SIGTERM, signal.SIGTERM))
    assert leaving.value.code == 143


def test_under_slurm_sigusr1_exits_with_status_138(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with pytest.raises(SystemExit) as leaving:
        fit(tmp_path, Asked(signal.SIGUSR1))
    assert leaving.value.code == 138


def test_outside_of_slurm_sigusr1_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    before, model = signal.getsignal(signal.SIGUSR1), Asked()
    assert fit(tmp_path, model)
    assert model.handlers[signal.SIGUSR1] == before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_was_ignored_is_still_ignored(tmp_path, number):
    signal.signal(number, signal.SIG_IGN)
    model = Asked(number)
    assert fit(tmp_path, model)
    assert model.batches == 6
    assert signal.getsignal(number) == signal.SIG_IGN


def test_a_handler_of_the_user_s_own_is_called_once_everything_is_saved(tmp_path):
    calls = []

    def mine(number, frame):
        calls.append((number, find_last_checkpoint(tmp_path / "line").name))

    signal.signal(signal.SIGTERM, mine)
    with pytest.raises(SystemExit):
        fit(tmp_path, Asked(signal.SIGTERM))
    assert calls == [(signal.SIGTERM, "line_epoch_1_iter_3.pth")]
    assert signal.getsignal(signal.SIGTERM) is mine


def test_a_handler_of_the_user_s_own_may_leave_in_its_own_way(tmp_path):
    def mine(number, frame):
        raise PlannedError("mine")

    signal.signal(signal.SIGTERM, mine)
    made = trainer(tmp_path)
    made.train_exceptions.append(PlannedError)
    with pytest.raises(PlannedError, match="mine"):
        made.fit(Asked(signal.SIGTERM), Batches(zoo.regression(5)))


def test_a_fit_in_a_thread_works_and_handles_nothing(tmp_path):
    before, model, results = present(), Asked(), []
    thread = threading.Thread(target=lambda: results.append(fit(tmp_path, model)))
    thread.start()
    thread.join()
    assert results == [True]
    assert {number: model.handlers[number] for number in NUMBERS} == before


def test_a_second_fit_after_a_signal_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, Asked(signal.SIGINT))
    model = Asked()
    assert fit(tmp_path, model)
    assert model.batches == 6
