"""Faults of the public library of this API that are not to be had here, one test for each."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

import helios
from helios.data import ResumableDistributedSampler, ResumableRandomSampler, from_datasets
from tests import zoo
from tests.trainer.runs import Batches, FailsAt, Stopper, names, params, run, same, trainer


class Sees(zoo.Line):
    """Keeps the first number of every sample that it trains on, and the epochs it is told."""

    def __init__(self, save_name="line"):
        super().__init__(save_name)
        self.seen, self.epochs = [], []

    def on_training_epoch_start(self, current_epoch):
        self.epochs.append(current_epoch)

    def loss(self, batch):
        if self.training:
            self.seen.append([round(float(v), 4) for v in batch[0][:, 0]])
        return super().loss(batch)


def numbered(**loading):
    x = torch.arange(10.0)[:, None] / 10 + torch.zeros(10, 3)
    return from_datasets(train=(x, x[:, :1]), batch_size=2, **loading)


def straight_and_resumed(root, at, steps, make=Sees, data=numbered, **arguments):
    whole = make()
    run(root / "a", whole, data(), steps=steps, **arguments)
    first, second = make(), make()
    run(root / "b", first, data(), steps=at, **arguments)
    run(root / "b", second, data(), steps=steps, **arguments)
    return whole, first, second


def test_a_mid_epoch_resume_goes_on_with_the_same_epoch(tmp_path):
    """Fault A1: the next epoch's batches, and hooks one epoch off."""
    whole, first, second = straight_and_resumed(tmp_path, at=3, steps=5)
    assert first.seen + second.seen == whole.seen
    assert second.epochs == [1]


def test_epochs_after_a_mid_epoch_resume_are_whole(tmp_path):
    """Fault A2: every later epoch was cut by the first one's start."""
    whole, first, second = straight_and_resumed(tmp_path, at=3, steps=15)
    assert first.seen + second.seen == whole.seen
    assert second.epochs == [1, 2, 3]


def test_a_checkpoint_at_the_last_batch_of_an_epoch_is_resumed(tmp_path):
    """Fault A3: an endless loop over empty epochs."""
    whole, first, second = straight_and_resumed(tmp_path, at=5, steps=10)
    assert first.seen + second.seen == whole.seen
    assert second.epochs == [2]


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_an_empty_loader_is_an_error_that_says_so(unit, capfd):
    """Fault A4: an endless loop, or success without a step."""
    assert not trainer(unit=unit).fit(zoo.Line(), _too_small())
    assert "0 batches" in capfd.readouterr().err


def _too_small():
    x = torch.zeros(3, 3)
    return from_datasets(train=(x, x[:, :1]), batch_size=8, drop_last=True)


@pytest.mark.parametrize(("unit", "steps"), [("iteration", 5), ("iteration", 7), ("epoch", 2)])
def test_a_finished_run_trains_nothing_more(tmp_path, unit, steps):
    """Fault A5: one more batch on every run of a finished run."""
    run(tmp_path, Sees(), numbered(), unit=unit, steps=steps)
    again, before = Sees(), names(tmp_path)
    run(tmp_path, again, numbered(), unit=unit, steps=steps)
    assert (again.seen, again.epochs, names(tmp_path)) == ([], [], before)


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_an_early_stopped_run_trains_nothing_more(tmp_path, unit):
    """Fault A5: one more batch or epoch on every run of an early-stopped run."""

    class Never(Sees):
        def have_metrics_improved(self):
            return False

    arguments = {"unit": unit, "steps": 20, "valid_frequency": 1, "early_stop_cycles": 2}
    run(tmp_path, Never(), Batches(zoo.regression(3), zoo.regression(1)), **arguments)
    again = Never()
    run(tmp_path, again, Batches(zoo.regression(3), zoo.regression(1)), **arguments)
    assert again.seen == []


def test_what_an_epoch_s_end_does_is_in_its_checkpoint(tmp_path):
    """Fault A6: saved before on_training_epoch_end, so that a schedule stepped there fell back."""

    class Decays(zoo.Line):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.register_buffer("rate", torch.ones(()))

        def on_training_epoch_start(self, current_epoch):
            rates.append(float(self.rate))

        def on_training_epoch_end(self, current_epoch):
            self.rate.div_(2)

    rates = []
    for steps in (2, 4):
        run(tmp_path, Decays(), unit="epoch", steps=steps, chkpt_frequency=1)
    assert rates == [1, 0.5, 0.25, 0.125]


def test_a_torch_schedule_stepped_at_an_epoch_s_end_is_resumed(tmp_path):
    """Fault A6, with the scheduler kept by a plugin."""

    class Schedule(helios.Plugin):
        def __init__(self):
            super().__init__("schedule")
            optimizer = torch.optim.SGD([torch.zeros((), requires_grad=True)], lr=1.0)
            self.rates = ExponentialLR(optimizer, 0.5)

        def on_training_epoch_start(self, current_epoch):
            seen.append(self.rates.get_last_lr()[0])

        def on_training_epoch_end(self, current_epoch):
            self.rates.optimizer.step()
            self.rates.step()

        def state_dict(self):
            return {"rate": self.rates.state_dict(), "rule": self.rates.optimizer.state_dict()}

        def load_state_dict(self, state_dict):
            self.rates.load_state_dict(state_dict["rate"])
            self.rates.optimizer.load_state_dict(state_dict["rule"])

    seen = []
    for steps in (2, 4):
        run(tmp_path, unit="epoch", steps=steps, plugins=[Schedule()])
    assert seen == [1, 0.5, 0.25, 0.125]


def test_a_stop_in_mid_epoch_is_not_a_complete_epoch(tmp_path):
    """Fault A7: the resume began the next epoch."""
    whole = Sees()
    run(tmp_path / "a", whole, numbered(), unit="epoch", steps=3)
    first, second = Sees(), Sees()
    run(tmp_path / "b", first, numbered(), unit="epoch", steps=3, plugins=[Stopper(8)])
    run(tmp_path / "b", second, numbered(), unit="epoch", steps=3)
    assert first.seen + second.seen == whole.seen
    assert second.epochs == [2, 3]


class Draws(zoo.Line):
    """Draws from all three global generators in its loss; numpy's and Python's are not keyed."""

    def __init__(self):
        super().__init__("draws")
        self.drawn = []

    def loss(self, batch):
        self.drawn.append((float(torch.rand(())), random.random(), float(np.random.rand())))
        return super().loss(batch)


def test_generators_are_exact_after_a_mid_epoch_resume(tmp_path):
    """Fault A8: the new iterator drew once more."""
    whole, first, second = straight_and_resumed(tmp_path, at=3, steps=8, make=Draws)
    assert first.drawn + second.drawn == whole.drawn


@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_is_exact_after_a_mid_epoch_resume(tmp_path, workers):
    """Fault A9: other random numbers in the workers."""

    class Keeps(zoo.Noisy):
        def loss(self, batch):
            seen.append(batch[0].clone())
            return super().loss(batch)

    def data():
        return from_datasets(train=zoo.Augmented(8), batch_size=2, num_workers=workers)

    seen = []
    run(tmp_path / "a", Keeps(), data(), steps=6)
    whole, seen = seen, []
    run(tmp_path / "b", Keeps(), data(), steps=3)
    run(tmp_path / "b", Keeps(), data(), steps=6)
    assert same(seen, whole)


KILLED = """
import os, signal, sys, pathlib, torch
torch.set_num_threads(1)
import helios
from tests import zoo
from tests.trainer.runs import Batches, trainer

save = torch.save
def half(content, file):
    if content["training_state"]["current_iteration"] == 4:
        file.write(b"PK")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, file)
torch.save = half
trainer(pathlib.Path(sys.argv[1]), chkpt_frequency=2).fit(zoo.Line(), Batches(zoo.regression(5)))
"""


def test_a_run_killed_in_a_save_resumes_from_the_checkpoint_before(tmp_path):
    """Fault A10: a truncated newest file, and no way to resume."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "b")],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    whole, resumed = zoo.Line(), zoo.Line()
    run(tmp_path / "a", whole, steps=6)
    run(tmp_path / "b", resumed, steps=6)
    assert same(params(whole), params(resumed))


@pytest.mark.parametrize(
    "name", ["epoch_net", "first_iter_100_m", "a_epoch_7_iter_9", "iter_3", "m_epoch"]
)
def test_a_save_name_may_hold_epoch_and_iter(tmp_path, name):
    """Fault A11: a ValueError, or the first file listed."""
    run(tmp_path, Sees(name), numbered(), steps=12, chkpt_frequency=2)
    again = Sees(name)
    assert run(tmp_path, again, numbered(), steps=13).state.current_iteration == 13
    assert len(again.seen) == 1


def test_the_last_checkpoint_does_not_depend_on_the_folder_s_order(tmp_path):
    """Fault A12: epoch 1 iteration 10, or epoch 2 iteration 5, as the folder lists them."""
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        folder = tmp_path / "".join(map(str, order))
        folder.mkdir()
        files = ["m_epoch_2_iter_5.pth", "m_epoch_1_iter_10.pth", "m_epoch_2_iter_4-loss_0.2.pth"]
        for index in order:
            (folder / files[index]).touch()
        assert helios.trainer.find_last_checkpoint(folder).name == "m_epoch_2_iter_5.pth"


def test_a_second_fit_of_one_trainer_goes_on_in_the_same_folder(tmp_path):
    """Fault A13: nested folders, and the progress ignored."""
    made = trainer(tmp_path, steps=6)
    failing = FailsAt("batch_start", at=4)
    assert not made.fit(failing, Batches(zoo.regression(5)))
    again = Sees()
    assert made.fit(again, Batches(zoo.regression(5)))
    assert len(again.seen) == 3
    assert {path.parent for path in tmp_path.rglob("*.pth")} == {tmp_path / "line"}


def test_fit_then_test_of_one_trainer_tests_what_was_trained(tmp_path):
    """Fault A13: the untrained weights were tested."""
    made = trainer(tmp_path)
    trained, fresh = zoo.Line(), zoo.Line()
    data = Batches(zoo.regression(5), None, zoo.regression(2, seed=3))
    assert made.fit(trained, data)
    assert made.test(trained, data)
    assert made.test(fresh, data)
    assert fresh.test_metrics == trained.test_metrics
    assert same(params(fresh), params(trained))


def test_metadata_of_its_own_overwrites_no_checkpoint(tmp_path):
    """Fault A14: one file, overwritten each time, and a resume from the start."""

    class Names(Sees):
        def append_metadata_to_chkpt_name(self, chkpt_name):
            return "accuracy_0.9"

    run(tmp_path, Names(), numbered(), steps=4, chkpt_frequency=2)
    assert names(tmp_path) == [
        "line_epoch_1_iter_2_accuracy_0.9.pth",
        "line_epoch_1_iter_4_accuracy_0.9.pth",
    ]
    again = Names()
    run(tmp_path, again, numbered(), steps=5)
    assert len(again.seen) == 1


def test_running_means_are_resumed(tmp_path):
    """Fault A15: running_iter was restored and the sums were not: a constant loss became 0.2."""

    class Constant(zoo.Line):
        def loss(self, batch):
            return super().loss(batch) * 0 + 1

    class Report(Constant):
        def on_training_batch_end(self, state, should_log=False):
            if state.current_iteration == 5:
                means.append(state.carry.metrics["loss"].compute())
                counts.append((state.running_iter, float(state.carry.metrics["loss"].weight)))

    means, counts = [], []
    run(tmp_path, Report(), steps=4)
    run(tmp_path, Report(), steps=5)
    assert means == [1.0]
    assert counts == [(5, 20.0)]


def test_what_cannot_be_loaded_is_not_saved(tmp_path, capfd):
    """Fault A16: a numpy scalar was saved, and failed only at the resume."""

    class Counts(helios.Plugin):
        def state_dict(self):
            return {"score": np.float64(0.5)}

    assert not trainer(tmp_path, plugins=[Counts("counts")]).fit(
        zoo.Line(), Batches(zoo.regression(5))
    )
    error = capfd.readouterr().err
    assert "checkpoint['plugins']['counts']['score']: received a float64" in error
    assert names(tmp_path) == []


def test_an_iteration_checkpoint_goes_on_in_the_epoch_unit(tmp_path):
    """Fault A17: the rest of the epoch was skipped, and later ones were cut."""
    whole, first, second = Sees(), Sees(), Sees()
    run(tmp_path / "a", whole, numbered(), unit="epoch", steps=3)
    run(tmp_path / "b", first, numbered(), unit="iteration", steps=3)
    run(tmp_path / "b", second, numbered(), unit="epoch", steps=3)
    assert first.seen + second.seen == whole.seen


@pytest.mark.parametrize("name", sorted(helios.plugins.plugin.RESERVED_IDS))
def test_a_plugin_may_not_take_a_reserved_id(name):
    """Fault A18: a plugin named "model" overwrote the model's state."""
    with pytest.raises(ValueError, match=f"received '{name}'"):
        helios.Plugin(name)


def test_a_resume_under_another_run_name_is_said(tmp_path, capsys):
    """Fault A19: it went on silently. It goes on, since the model is the same, and says so."""
    run(tmp_path, run_name="one", steps=4)
    made = run(tmp_path, run_name="two", steps=5)
    assert made.state.current_iteration == 5
    assert "Resuming training from checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", [ResumableDistributedSampler, ResumableRandomSampler])
def test_a_sampler_made_without_a_batch_size_resumes_by_batches(tmp_path, sampler):
    """Fault A20: it went to a sample instead of a batch."""

    class Data(helios.DataModule):
        def setup(self):
            x = torch.arange(12.0)[:, None] + torch.zeros(12, 3)
            dataset = torch.utils.data.TensorDataset(x, x[:, :1])
            if sampler is ResumableDistributedSampler:
                chosen = sampler(dataset, num_replicas=1, rank=0)
            else:
                chosen = sampler(dataset)
            self._train_dataset = self._create_dataset(
                dataset, {"batch_size": 4, "sampler": chosen}
            )

    whole, first, second = straight_and_resumed(tmp_path, at=1, steps=4, data=Data)
    assert first.seen + second.seen == whole.seen


# B: logging.


def log_lines(folder):
    return [line for path in folder.rglob("*.log") for line in path.read_text().splitlines()]


def test_log_lines_are_not_doubled_by_earlier_fits(tmp_path, capfd):
    """Fault B: handlers were never removed, so lines and errors came several times."""
    for number in range(3):
        run(
            run_name=f"r{number}",
            steps=2,
            enable_file_logging=True,
            log_path=tmp_path,
            print_frequency=1,
        )
    lines = log_lines(tmp_path)
    assert len([line for line in lines if "update 1:" in line]) == 3
    made = trainer(steps=2, enable_file_logging=True, log_path=tmp_path)
    assert not made.fit(FailsAt("loss", 1), Batches(zoo.regression(2)))
    assert capfd.readouterr().err.count("PlannedError: boom") == 1


def test_a_run_leaves_no_handler_behind(tmp_path):
    """Fault B: handlers were never removed."""
    before = list(logging.getLogger("helios").handlers)
    run(steps=1, enable_file_logging=True, log_path=tmp_path)
    assert logging.getLogger("helios").handlers == before


def test_a_log_path_alone_writes_no_log(tmp_path):
    """Fault B: a log file was written though file logging was off."""
    run(steps=1, log_path=tmp_path, run_path=tmp_path)
    assert names(tmp_path) == []


def test_file_logging_turned_on_at_a_resume_writes_a_log(tmp_path):
    """Fault B: there was no log file."""
    run(tmp_path / "c", steps=2)
    logs = tmp_path / "logs"
    run(tmp_path / "c", steps=3, enable_file_logging=True, log_path=logs, print_frequency=1)
    assert any("update 3:" in line for line in log_lines(logs))


def test_tensorboard_turned_on_at_a_resume_is_written(tmp_path):
    """Fault B: the first save failed."""
    run(tmp_path / "c", steps=2)
    run(tmp_path / "c", steps=4, enable_tensorboard=True, run_path=tmp_path / "runs")
    assert names(tmp_path / "runs")


def test_testing_makes_the_log_folder_it_needs(tmp_path):
    """Fault B: test() failed for want of a folder, and without chkpt_root it logged nothing."""
    made = trainer(enable_file_logging=True, log_path=tmp_path / "new" / "logs")
    assert made.test(zoo.Line(), Batches(test=zoo.regression(2)))
    assert any("test: loss" in line for line in log_lines(tmp_path))


# C: the API.


def test_an_error_in_prepare_data_is_shown(capfd):
    """Fault C: fit returned False without a word."""

    class Data(Batches):
        def prepare_data(self):
            raise OSError("no network")

    assert not trainer().fit(zoo.Line(), Data(zoo.regression(1)))
    assert "OSError: no network" in capfd.readouterr().err


def test_an_error_in_validation_leaves_the_model_in_training_mode():
    """Fault C: the model stayed in evaluation mode."""
    model = FailsAt("valid_step", 1)
    data = Batches(zoo.regression(2), zoo.regression(1))
    assert not trainer(valid_frequency=1).fit(model, data)
    assert model.training
    assert model.net.training


class Claims(helios.Plugin):
    def __init__(self, name):
        super().__init__(name, helios.plugins.UniquePluginOverrides(training_batch=True))

    def process_training_batch(self, batch, state):
        return batch


def test_two_plugins_with_one_claim_are_refused():
    """Fault C: the second was silently ignored."""
    with pytest.raises(ValueError, match="'a' and 'b' both claim 'training_batch'"):
        trainer(plugins=[Claims("a"), Claims("b")])


def test_two_plugins_with_one_claim_are_refused_however_they_came(capfd):
    """Fault C, for a plugin that registers itself later."""
    made = trainer(plugins=[Claims("a")])
    Claims("b")._register_in_trainer(made)
    assert not made.fit(zoo.Line(), Batches(zoo.regression(1)))
    assert "both claim 'training_batch'" in capfd.readouterr().err


@pytest.mark.parametrize("place", [None, "loss", "valid_step", "epoch_start"])
def test_teardown_runs_once_in_every_case(place):
    """Fault C: teardown ran after a success only, or never."""
    data = Batches(zoo.regression(2), zoo.regression(1))
    trainer(steps=3, valid_frequency=1).fit(FailsAt(place, 1), data)
    assert data.torn_down == 1


def test_states_kept_by_hooks_stay_as_they_were():
    """Fault C: states kept at steps 1, 2 and 3 all read 3."""

    class Keeps(zoo.Line):
        def on_training_batch_end(self, state, should_log=False):
            kept.append(state)

    kept = []
    run(model=Keeps(), steps=3)
    assert [state.current_iteration for state in kept] == [1, 2, 3]


def test_nothing_to_train_is_an_error():
    """Fault C: total_steps=0, the default, trained one batch."""
    with pytest.raises(ValueError, match="total_steps: received 0"):
        helios.Trainer(use_cpu=True).fit(zoo.Line(), Batches(zoo.regression(1)))


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_an_infinite_run_goes_on_until_it_is_stopped(unit):
    """The seed allows total_steps=inf."""
    made = run(unit=unit, steps=float("inf"), plugins=[Stopper(7)])
    assert made.state.global_iteration == 7


def test_the_seed_governs_the_order_of_the_samples():
    """Fault C: Trainer(random_seed=1) and (random_seed=2) had the same order."""
    orders = []
    for seed in (1, 2, 1):
        model = Sees()
        run(model=model, data=numbered(), steps=5, random_seed=seed)
        orders.append(model.seen)
    assert orders[0] == orders[2] != orders[1]


def test_a_namedtuple_batch_is_moved_and_trained_on():
    """Fault C: moving it to the device raised a TypeError."""
    from collections import namedtuple

    Pair = namedtuple("Pair", "x y")

    class Named(zoo.Line):
        def loss(self, batch):
            return torch.nn.functional.mse_loss(self.net(batch.x), batch.y)

    run(model=Named(), data=Batches([Pair(x, y) for x, y in zoo.regression(2)]), steps=2)
