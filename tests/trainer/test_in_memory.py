"""A run that is interrupted and gone on with in one process, with no folder of checkpoints."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import helios
from helios.errors import ResumeError
from tests import zoo
from tests.trainer.runs import Batches, PlannedError, Stopper, params, run, same, trainer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it has other signals")


class Interrupted(zoo.Noisy):
    """Raises SIGINT once, at a place."""

    def __init__(self, place, at=3):
        super().__init__("noisy")
        self.place, self.at, self.armed = place, at, True

    def reach(self, place):
        if self.armed and place == self.place and self.trainer.state.global_iteration >= self.at:
            self.armed = False
            signal.raise_signal(signal.SIGINT)

    def loss(self, batch):
        self.reach("loss" if self.training else "valid_step")
        noise = random.random() + float(np.random.rand())
        loss, metrics = super().loss(batch)
        return loss * (1 + noise), metrics

    def on_training_batch_end(self, state, should_log=False):
        random.random()
        self.reach("batch_end")

    def on_training_epoch_end(self, current_epoch):
        self.reach("epoch_end")


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def digest(made):
    """The bits of a run; wall clock is not in it."""
    return helios.digest(made.state)


def data():
    return Batches(zoo.classes(5), zoo.classes(2, seed=1))


OPTIONS = {"unit": "epoch", "steps": 3, "valid_frequency": 1, "accumulation_steps": 2}


@pytest.mark.parametrize("place", ["loss", "batch_end", "valid_step", "epoch_end"])
@pytest.mark.parametrize("at", [1, 3, 8])
def test_interrupted_and_gone_on_with_is_uninterrupted(notebook, place, at):
    whole = run(model=Interrupted("nowhere"), data=data(), **OPTIONS)
    made = trainer(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        made.fit(Interrupted(place, at), data())
    assert made.resume()
    assert digest(made) == digest(whole)


def test_what_is_drawn_and_trained_in_between_is_of_no_account(notebook):
    whole = run(model=Interrupted("nowhere"), data=data(), **OPTIONS)
    made = trainer(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        made.fit(Interrupted("batch_end"), data())
    random.random(), np.random.rand(), torch.rand(3)
    run(model=zoo.Line())
    assert made.resume()
    assert digest(made) == digest(whole)


def test_the_state_can_be_looked_at_and_the_model_called_in_between(notebook):
    model, made = Interrupted("valid_step"), trainer(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        made.fit(model, data())
    assert made.state.global_iteration == 5
    assert model.training
    assert same(made.state.carry.params, params(model))
    assert model.net(torch.zeros(2, 3)).shape == (2, 2)


def test_it_says_how_to_go_on(notebook, capsys):
    made = trainer(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        made.fit(Interrupted("batch_end"), data())
    assert "trainer.resume() goes on from there" in capsys.readouterr().out


def test_a_class_that_is_defined_anew_goes_on(notebook):
    made = trainer(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        made.fit(Interrupted("batch_end"), data())

    class Interrupted2(Interrupted):
        pass

    model = Interrupted2("nowhere")
    assert made.resume(model, data())
    assert made.model is model
    assert digest(made) == digest(run(model=Interrupted("nowhere"), data=data(), **OPTIONS))


def test_another_network_is_refused(notebook, capsys):
    made = trainer(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        made.fit(Interrupted("batch_end"), data())
    made.train_exceptions.append(ResumeError)
    with pytest.raises(ResumeError):
        made.resume(zoo.Line(), Batches(zoo.regression(5)))


def test_a_failure_is_gone_on_from(capsys):
    class Fails(zoo.Noisy):
        armed = True

        def on_training_batch_start(self, state):
            random.random()
            if self.armed and state.global_iteration == 4:
                raise PlannedError("boom")

    whole, model = Fails(), Fails()
    whole.armed = False
    made, other = trainer(**OPTIONS), trainer(**OPTIONS)
    assert other.fit(whole, data())
    assert not made.fit(model, data())
    model.armed = False
    assert made.resume()
    assert digest(made) == digest(other)


def test_a_finished_run_goes_on_if_it_is_to_be_longer():
    made = run(model=zoo.Noisy(), data=data(), unit="epoch", steps=2)
    made.total_steps = 3
    assert made.resume()
    assert digest(made) == digest(run(model=zoo.Noisy(), data=data(), unit="epoch", steps=3))


def test_a_finished_run_trains_nothing_more(capsys):
    made = run(model=zoo.Noisy(), data=data(), unit="epoch", steps=2)
    before = made.state.global_iteration
    assert made.resume()
    assert made.state.global_iteration == before
    assert "Nothing is left to train" in capsys.readouterr().out


def test_a_plugin_goes_on_with_its_state():
    class Counts(Stopper):
        def __init__(self, batches):
            super().__init__(batches)
            self.seen = 0

        def on_training_epoch_start(self, current_epoch):
            self.seen += 1

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state_dict):
            self.seen = state_dict["seen"]

    plugin = Counts(4)
    made = trainer(plugins=[plugin], unit="epoch", steps=2)
    assert made.fit(zoo.Noisy(), data())
    plugin.seen, plugin.batches = 100, math.inf
    assert made.resume()
    assert plugin.seen == 3  # the first epoch was begun, taken up again, and followed by another


def test_an_iterable_dataset_goes_on_where_it_was():
    class Stream(torch.utils.data.IterableDataset):
        def __init__(self):
            self.position = 0

        def __iter__(self):
            rows = [pair for batch in zoo.classes(5) for pair in zip(*batch, strict=True)]
            while self.position < len(rows):
                self.position += 1
                yield rows[self.position - 1]
            self.position = 0

    def stream():
        return helios.data.from_datasets(train=Stream(), batch_size=4)

    whole = run(model=zoo.Noisy(), data=stream(), unit="epoch", steps=2)
    stopper = Stopper(3)
    made = trainer(plugins=[stopper], unit="epoch", steps=2)
    assert made.fit(zoo.Noisy(), stream())
    stopper.batches = math.inf
    assert made.resume(datamodule=stream())
    assert digest(made) == digest(whole)


def test_fit_begins_a_new_run():
    made = run(model=zoo.Noisy(), data=data(), steps=3)
    assert made.fit(zoo.Noisy(), data())
    assert made.state.current_iteration == 3


def test_with_checkpoints_it_goes_on_from_the_last_one(tmp_path):
    stopper = Stopper(3)
    made = run(tmp_path, zoo.Noisy(), data(), plugins=[stopper], **OPTIONS)
    stopper.batches = math.inf
    assert made.resume()
    assert digest(made) == digest(run(model=zoo.Noisy(), data=data(), **OPTIONS))


def test_before_a_fit_there_is_nothing_to_go_on_from():
    with pytest.raises(ResumeError, match="has not run a fit"):
        trainer().resume()


def test_in_the_middle_of_a_step_there_is_nothing_to_go_on_from(capsys):
    class Fails(zoo.Line):
        def loss(self, batch):
            raise PlannedError("boom")

    made = trainer()
    assert not made.fit(Fails(), Batches(zoo.regression(5)))
    with pytest.raises(ResumeError, match="in the middle of a micro-batch"):
        made.resume()


SESSION = """
import signal, torch, helios
from tests import zoo
from tests.trainer.runs import Batches
class Line(zoo.Line):
    def on_training_batch_end(self, state, should_log=False):
        if state.global_iteration == 3:
            signal.raise_signal(signal.SIGINT)

torch.set_num_threads(1)
data = Batches(zoo.regression(5))
trainer = helios.Trainer("", "iteration", 6, use_cpu=True, print_banner=False)
trainer.fit(Line("line"), data)
print("left at", trainer.state.global_iteration)
class Line(zoo.Line):
    pass

print("went on", trainer.resume(Line("line"), data), trainer.state.global_iteration)
other = helios.Trainer("", "iteration", 6, use_cpu=True, print_banner=False)
print("whole", other.fit(Line("line"), data))
print("equal", helios.digest(other.state) == helios.digest(trainer.state))
"""


def test_a_real_prompt_lives_on_and_goes_on():
    command = [sys.executable, "-i", "-q"]
    done = subprocess.run(command, input=SESSION, text=True, capture_output=True, check=False)
    assert "KeyboardInterrupt" in done.stderr
    for line in ("left at 3", "went on True 6", "equal True"):
        assert line in done.stdout, done.stdout + done.stderr


def test_after_a_network_that_does_not_fit_the_right_one_still_goes_on(notebook, capsys):
    made = trainer(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        made.fit(Interrupted("batch_end"), data())
    assert not made.resume(zoo.Line(), Batches(zoo.regression(5)))
    assert made.resume(Interrupted("nowhere"), data())
    assert digest(made) == digest(run(model=Interrupted("nowhere"), data=data(), **OPTIONS))


def test_a_fit_that_ends_calls_no_hook_of_checkpoints():
    class Named(zoo.Line):
        def append_metadata_to_chkpt_name(self, chkpt_name):
            raise PlannedError("there is no checkpoint")

    made = run(model=Named())
    assert made.resume()


def test_a_fit_after_an_interrupted_one_says_that_it_begins_a_new_run(notebook, capsys):
    made = trainer(**OPTIONS)
    with pytest.raises(KeyboardInterrupt):
        made.fit(Interrupted("batch_end"), data())
    assert made.fit(Interrupted("nowhere"), data())
    out = capsys.readouterr().out
    assert "The last one was left at epoch 1, update 1, micro-batch 3" in out
    assert out.count("begins a new run") == 1


def test_the_first_fit_says_nothing_of_the_kind(capsys):
    made = run()
    assert made.fit(zoo.Line(), Batches(zoo.regression(5)))
    assert "begins a new run" not in capsys.readouterr().out
