"""Validation and testing: exact means, no trace in the training, and which weights are used."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import helios
from helios import Monitor
from helios.errors import ModelError
from helios.trainer import find_last_checkpoint
from tests import zoo
from tests.trainer.runs import Batches, params, run, same, trainer


def ragged(*sizes):
    return [zoo.regression(1, size, seed=10 + index)[0] for index, size in enumerate(sizes)]


# Validation leaves no trace.

SETTINGS = [
    {"valid_frequency": 1},
    {"valid_frequency": 3},
    {"print_frequency": 1},
    {"print_frequency": 4, "valid_frequency": 2},
    {"enable_progress_bar": True, "print_frequency": 1},
    {"enable_tensorboard": True, "print_frequency": 2, "valid_frequency": 2},
    {"enable_file_logging": True, "print_frequency": 2, "valid_frequency": 2},
    {"chkpt_frequency": 1, "valid_frequency": 1},
    {"print_banner": True},
]


class Restless(zoo.Noisy):
    """Draws random numbers and changes buffers in its validation too."""

    def valid_step(self, batch, step):
        self.seen.add_(torch.rand(()))
        self.net.train()
        output = self.loss(batch)
        self.net.eval()
        return output

    def on_validation_start(self, validation_cycle):
        torch.rand(3)

    def on_validation_end(self, validation_cycle):
        torch.rand(3)


def everything(model, made):
    carry = made.state.carry
    return carry.params, carry.buffers, carry.opt_state, dict(model.state_dict())


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s))
def test_no_setting_that_only_looks_changes_a_bit(tmp_path, unit, settings):
    steps = 8 if unit == "iteration" else 2
    data = Batches(zoo.classes(5), zoo.classes(2, seed=1))
    plain = Restless()
    expected = everything(plain, run(model=plain, data=data, unit=unit, steps=steps))
    paths = {name: tmp_path / name for name in ("log_path", "run_path")}
    root = tmp_path / "c" if "chkpt_frequency" in settings else None
    model = Restless()
    made = run(root, model, data, unit=unit, steps=steps, **paths, **settings)
    assert same(everything(model, made), expected)


def test_validation_computes_no_gradients():
    class Looks(zoo.Line):
        def valid_step(self, batch, step):
            seen.append(torch.is_grad_enabled())
            return super().valid_step(batch, step)

    seen = []
    data = Batches(zoo.regression(2), zoo.regression(1))
    run(model=Looks(), data=data, steps=2, valid_frequency=2)
    assert seen == [False]


# Exact means.


def test_validation_metrics_are_means_over_all_samples():
    model = zoo.Line()
    batches = ragged(4, 4, 1)
    run(model=model, data=Batches(zoo.regression(2), batches), steps=2, valid_frequency=2)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = F.mse_loss(model.net(x).double(), y.double()).item()
    assert model.valid_metrics["loss"] == pytest.approx(expected, rel=1e-6)


def test_metrics_of_ragged_batches_are_exact_where_the_values_are():
    class Counts(zoo.Line):
        def valid_step(self, batch, step):
            return {"first": float(step == 0), "row": torch.full((len(batch[0]),), step)}

    model = Counts()
    run(
        model=model,
        data=Batches(zoo.regression(1), ragged(6, 2)),
        steps=1,
        valid_frequency=1,
    )
    assert model.valid_metrics == {"first": 0.75, "row": 0.25}


def test_weights_of_the_loss_count_in_validation():
    model = zoo.Weighted()
    data = Batches(zoo.batches_for(model, 2), zoo.batches_for(model, 3, seed=4))
    run(model=model, data=data, steps=2, valid_frequency=2)
    total = weight = 0.0
    for x, y, mask in data.loaders[1]:
        total += float(((model.net(x).detach() - y).square().squeeze(1) * mask).sum())
        weight += float(mask.sum())
    assert model.valid_metrics["loss"] == pytest.approx(total / weight, rel=1e-12)


def test_a_validation_step_may_return_nothing():
    class Silent(zoo.Line):
        def valid_step(self, batch, step):
            return None

    model = Silent()
    data = Batches(zoo.regression(2), zoo.regression(1))
    made = run(model=model, data=data, steps=2, valid_frequency=1)
    assert (model.valid_metrics, made.state.validation_cycles) == ({}, 2)


def test_without_a_validation_set_it_is_said_once():
    with pytest.warns(UserWarning, match="no validation set") as caught:
        made = run(steps=6, valid_frequency=1, early_stop_cycles=1)
    assert len(caught) == 1
    assert made.state.validation_cycles == 0


def test_an_empty_validation_set_is_an_error(capfd):
    assert not trainer(valid_frequency=1).fit(zoo.Line(), Batches(zoo.regression(2), []))
    assert "the loader has 0 batches" in capfd.readouterr().err


# The average.


class Averaged(zoo.Line):
    def __init__(self, evaluate=True, decay=0.5):
        super().__init__("line")
        self.rule = helios.optim.average(decay, evaluate=evaluate)
        self.seen = []

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.average = self.rule

    def valid_step(self, batch, step):
        self.seen.append(params(self))
        return super().valid_step(batch, step)


def test_validation_uses_the_average():
    model = Averaged()
    made = run(
        model=model, data=Batches(zoo.regression(5), zoo.regression(1)), steps=4, valid_frequency=4
    )
    assert same(model.seen[0], dict(made.state.carry.average))
    assert not same(model.seen[0], params(model))


def test_the_average_is_put_back_after_validation():
    plain, averaged = zoo.Line(), Averaged()
    data = Batches(zoo.regression(5), zoo.regression(1))
    run(model=plain, data=data, steps=6)
    run(model=averaged, data=data, steps=6, valid_frequency=1)
    assert same(params(averaged), params(plain))


def test_validation_leaves_the_average_alone_where_it_is_not_to_evaluate():
    model = Averaged(evaluate=False)
    data = Batches(zoo.regression(5), zoo.regression(1))
    run(model=model, data=data, steps=4, valid_frequency=4)
    assert same(model.seen[0], params(model))


def test_the_average_survives_a_resume(tmp_path):
    whole = run(tmp_path / "a", Averaged(), steps=7)
    run(tmp_path / "b", Averaged(), steps=3)
    resumed = run(tmp_path / "b", Averaged(), steps=7)
    assert same(whole.state.carry.average, resumed.state.carry.average)


# Testing.


def test_testing_loads_the_last_checkpoint(tmp_path, capsys):
    trained, fresh = zoo.Line(), zoo.Line()
    run(tmp_path, trained, steps=6, chkpt_frequency=2)
    assert trainer(tmp_path).test(fresh, Batches(test=zoo.regression(2)))
    assert same(params(fresh), params(trained))
    name = find_last_checkpoint(tmp_path / "line").name
    assert name in capsys.readouterr().out


class Loads(zoo.Line):
    def load_for_testing(self):
        torch.nn.init.ones_(self.net.weight)
        torch.nn.init.zeros_(self.net.bias)


def test_testing_calls_load_for_testing_without_a_checkpoint(tmp_path):
    model = Loads()
    assert trainer(tmp_path).test(
        model, Batches(test=[(torch.ones(2, 3), torch.full((2, 1), 3.0))])
    )
    assert model.test_metrics == {"loss": 0.0}


def test_a_checkpoint_comes_before_load_for_testing(tmp_path):
    run(tmp_path, Loads(), steps=2)
    model = Loads()
    assert trainer(tmp_path).test(model, Batches(test=zoo.regression(1)))
    assert not bool((model.net.weight == 1).all())


def test_testing_the_model_as_it_is_is_said(capsys):
    model = zoo.Line()
    assert trainer().test(model, Batches(test=zoo.regression(1)))
    assert "Testing the model as it is" in capsys.readouterr().out
    assert set(model.test_metrics) == {"loss"}


def test_testing_makes_no_checkpoint_folder(tmp_path):
    assert trainer(tmp_path / "c").test(zoo.Line(), Batches(test=zoo.regression(1)))
    assert not (tmp_path / "c").exists()


def test_testing_without_a_test_set_says_so(capsys):
    assert trainer().test(zoo.Line(), Batches())
    assert "There is no test set" in capsys.readouterr().out


def test_testing_needs_no_optimizer():
    class Bare(helios.Model):
        def setup(self, fast_init=False):
            assert fast_init
            self.net = torch.nn.Linear(3, 1)

        def loss(self, batch):
            return F.mse_loss(self.net(batch[0]), batch[1])

    assert trainer().test(Bare("bare"), Batches(test=zoo.regression(1)))


def test_testing_calls_its_hooks_in_order():
    class Hooks(zoo.Line):
        def on_testing_start(self):
            log.append("start")

        def on_testing_batch_start(self, step):
            log.append(f"batch_start {step}")

        def on_testing_batch_end(self, step):
            log.append(f"batch_end {step}")

        def on_testing_end(self):
            log.append("end")

    class Before(helios.Plugin):
        def on_testing_start(self):
            log.append("plugin start")

    log = []
    made = trainer(plugins=[Before("before")])
    assert made.test(Hooks(), Batches(test=zoo.regression(2)))
    assert log == [
        "plugin start",
        "start",
        "batch_start 0",
        "batch_end 0",
        "batch_start 1",
        "batch_end 1",
        "end",
    ]


def test_test_metrics_are_means_over_all_samples():
    class Rows(zoo.Line):
        def test_step(self, batch, step):
            return {"row": float(step)}

    model = Rows()
    assert trainer().test(model, Batches(test=ragged(3, 1)))
    assert model.test_metrics == {"row": 0.25}


# Early stopping.


class Scored(zoo.Line):
    """Has a validation metric that follows a list."""

    def __init__(self, scores, monitor=None):
        super().__init__("line")
        self.scores, self.watched = scores, monitor

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.monitor = self.watched

    def valid_step(self, batch, step):
        return {"score": self.scores[self.trainer.state.validation_cycles]}


def scored(scores, monitor, root=None, cycles=2, steps=8):
    model = Scored(scores, monitor)
    data = Batches(zoo.regression(5), zoo.regression(1))
    made = run(root, model, data, steps=steps, valid_frequency=1, early_stop_cycles=cycles)
    return model, made


@pytest.mark.parametrize(
    ("scores", "mode", "stopped_at", "best"),
    [
        ([3, 2, 1, 1, 1, 0, 0, 0], "min", 5, 1),
        ([1, 2, 3, 2, 2, 9, 9, 9], "max", 5, 3),
        ([1, 2, 3, 4, 5, 6, 7, 8], "max", 8, 8),
        ([2, 2, 2, 2, 2, 2, 2, 2], "min", 3, 2),
    ],
)
def test_a_monitor_stops_a_run_that_gets_no_better(scores, mode, stopped_at, best):
    model, made = scored(scores, Monitor("score", mode=mode))
    assert made.state.current_iteration == stopped_at
    assert (model.best_score, made.state.carry.best) == (best, best)


def test_a_nan_is_never_an_improvement():
    nan = math.nan
    model, made = scored([nan, nan, 1, 1, 1, 1, 1, 1], Monitor("score"))
    assert made.state.current_iteration == 2
    assert model.best_score is None


def test_a_nan_after_a_number_keeps_the_number():
    model, _ = scored([3, math.nan, 4, 1, 1, 1, 1, 1], Monitor("score"), cycles=3)
    assert model.best_score == 1


def test_the_best_score_survives_a_resume(tmp_path):
    scores = [5, 1, 4, 4, 4, 4, 4, 4]
    _, whole = scored(scores, Monitor("score"), tmp_path / "a")
    scored(scores, Monitor("score"), tmp_path / "b", steps=3)
    model, resumed = scored(scores, Monitor("score"), tmp_path / "b")
    assert resumed.state.current_iteration == whole.state.current_iteration == 4
    assert model.best_score == 1


def test_the_loss_is_watched_by_default():
    class Rises(zoo.Line):
        def valid_step(self, batch, step):
            return {"loss": float(self.trainer.state.validation_cycles)}

    data = Batches(zoo.regression(5), zoo.regression(1))
    made = run(model=Rises(), data=data, steps=9, valid_frequency=1, early_stop_cycles=2)
    assert made.state.current_iteration == 3


def test_without_a_loss_and_a_monitor_every_validation_is_better():
    _, made = scored([1, 1, 1, 1, 1, 1, 1, 1], None)
    assert (made.state.current_iteration, made.state.early_stop_count) == (8, 0)


def test_an_unknown_metric_lists_those_there_are():
    made = trainer(valid_frequency=1)
    made.train_exceptions.append(ModelError)
    model = Scored([1] * 9, Monitor("accuracy"))
    with pytest.raises(ModelError, match=r"'accuracy'.*\['score'\]"):
        made.fit(model, Batches(zoo.regression(2), zoo.regression(1)))
