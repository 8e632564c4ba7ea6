"""A model that trains by side effect under the trainer: its bits, its hooks, its losses."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import torch.nn.functional as F

import helios
from helios.errors import ResumeError
from helios.functional import rng
from tests import zoo
from tests.trainer.imperative import Whole, content, data, fit, network
from tests.trainer.runs import Batches, Stopper, names, run, same, trainer
from tests.trainer.test_order_of_events import HOOKS, counters
from tests.trainer.test_reporting import scalars

RULES = {
    "sgd": (
        lambda: helios.optim.SGD(lr=0.05, momentum=0.9),
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    ),
    "adamw": (
        lambda: helios.optim.AdamW(lr=1e-2, weight_decay=0.1),
        lambda params: torch.optim.AdamW(params, lr=1e-2, weight_decay=0.1),
    ),
}


class Pure(helios.Model):
    def __init__(self, rule):
        super().__init__("same")
        self.rule = rule

    def setup(self, fast_init=False):
        self.net = network()
        self.optimizer = RULES[self.rule][0]()

    def loss(self, batch):
        return F.mse_loss(self.net(batch[0]), batch[1])


class Imperative(helios.ImperativeModel):
    def __init__(self, rule="adamw"):
        super().__init__("same")
        self.rule = rule

    def setup(self, fast_init=False):
        self.net = network()
        self.optimizer = RULES[self.rule][1](self.net.parameters())

    def train_step(self, batch, state):
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        loss.backward()
        if state.window_iter == 0:
            if self.trainer.accumulation_steps > 1:
                for parameter in self.net.parameters():
                    parameter.grad.div_(self.trainer.accumulation_steps)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self._loss_items["loss"] = loss

    def valid_step(self, batch, step):
        return F.mse_loss(self.net(batch[0]), batch[1])

    def state_dict(self):
        return {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict, fast_init=False):
        self.net.load_state_dict(state_dict["net"])
        self.optimizer.load_state_dict(state_dict["optimizer"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("window", [1, 3])
def test_it_has_the_bits_of_a_model_with_a_loss(rule, window):
    pure, imperative = Pure(rule), Imperative(rule)
    for model in (pure, imperative):
        run(None, model, data(), steps=7, accumulation_steps=window, valid_frequency=2)
    assert same(dict(pure.net.state_dict()), dict(imperative.net.state_dict()))
    assert pure.valid_metrics == imperative.valid_metrics


def test_it_has_the_bits_of_a_loop_written_by_hand():
    model = Imperative()
    run(None, model, data(), steps=10, random_seed=7)
    with rng.keyed(rng.fold(7, "setup")):
        net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    for number, (x, y) in enumerate(zoo.regression(5) * 2, 1):
        torch.manual_seed(helios.train_key(7, number))
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        optimizer.step()
    assert same(dict(net.state_dict()), dict(model.net.state_dict()))


class Recorder(Imperative):
    """Writes down every hook, and the counters where they are given."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def train(self):  # as users override it, without a mode
        self.log.append("train")
        self.net.train()

    def eval(self):
        self.log.append("eval")
        self.net.eval()

    def on_training_batch_start(self, state):
        super().on_training_batch_start(state)
        self.log.append(f"batch_start {counters(state)}")

    def train_step(self, batch, state):
        assert self.trainer.state.dict() == state.dict()
        self.log.append(f"train_step {counters(state)}")
        super().train_step(batch, state)

    def on_training_batch_end(self, state, should_log=False):
        self.log.append(f"batch_end {counters(state)}{' log' if should_log else ''}")

    def valid_step(self, batch, step):
        assert not self.net.training
        assert not torch.is_grad_enabled()
        self.log.append(f"valid_step {step}")

    def have_metrics_improved(self):
        self.log.append("improved?")
        return True

    def append_metadata_to_chkpt_name(self, chkpt_name):
        self.log.append(f"save {chkpt_name.removeprefix('same_')}")
        return f"{chkpt_name}_loss_{self._running_losses.get('loss', 0.0):.1f}"


def _noted(hook):
    def method(self, *args):
        self.log.append(" ".join([hook.removeprefix("on_"), *map(str, args)]))

    return method


for _hook in HOOKS:
    setattr(Recorder, _hook, _noted(_hook))


def test_the_hooks_come_in_the_written_order(tmp_path):
    log = []
    batches = Batches(zoo.regression(2), zoo.regression(2))
    arguments = {"valid_frequency": 1, "chkpt_frequency": 1, "print_frequency": 1}
    run(tmp_path, Recorder(log), batches, steps=1, accumulation_steps=2, **arguments)
    assert log == [
        "train",
        "training_start",
        "training_epoch_start 1",
        "batch_start g1 u0 r0 e1 d0",
        "train_step g1 u0 r0 e1 d0",
        "batch_end g1 u0 r0 e1 d0",
        "batch_start g2 u1 r1 e1 d1",
        "train_step g2 u1 r1 e1 d1",
        "batch_end g2 u1 r1 e1 d1 log",
        "eval",
        "validation_start 0",
        "valid_step 0",
        "valid_step 1",
        "validation_end 0",
        "train",
        "improved?",
        "training_epoch_end 1",
        "save epoch_1_iter_1",
        "training_end",
    ]
    assert "same_epoch_1_iter_1_loss_0.0.pth" in names(tmp_path)


def test_its_losses_are_reported_as_training_metrics(tmp_path):
    def board(model, name):
        root = tmp_path / name
        arguments = {"print_frequency": 2, "enable_tensorboard": True, "run_path": root}
        run(None, model, data(), steps=5, **arguments)
        return scalars(root)["train/loss"]

    assert board(Imperative("sgd"), "imperative") == board(Pure("sgd"), "pure")


def test_a_loss_is_dropped_before_the_next_batch_even_if_a_hook_forgets_to():
    class Once(Imperative):
        def on_training_batch_start(self, state):
            pass

        def train_step(self, batch, state):
            assert not self._loss_items
            super().train_step(batch, state)
            if state.global_iteration == 1:
                self._loss_items["once"] = 1.0

    model = Once()
    run(None, model, data(), steps=3)
    assert model._running_losses["once"] == 1.0


def test_the_running_losses_are_summed_up_to_the_end_of_a_validation():
    seen = []

    class Summing(Imperative):
        def train_step(self, batch, state):
            super().train_step(batch, state)
            self._loss_items["count"] = torch.tensor(1.0)

        def on_validation_end(self, validation_cycle):
            seen.append((self._running_losses["count"], self.trainer.state.running_iter))

    run(None, Summing(), data(), steps=5, valid_frequency=2)
    assert seen == [(2.0, 2), (2.0, 2)]


def test_scores_stop_a_run_early_by_the_monitor():
    class Scored(Imperative):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.monitor = helios.Monitor("accuracy", mode="max")

        def on_validation_end(self, validation_cycle):
            self._val_scores["accuracy"] = torch.tensor([0.5, 0.7, 0.6, 0.6, 0.9][validation_cycle])
            self._val_scores["note"] = "no number"

    model = Scored()
    made = run(None, model, data(), steps=9, valid_frequency=1, early_stop_cycles=2)
    assert made.state.current_iteration == 4
    assert model.best_score == pytest.approx(0.7)
    assert model.metrics["note"] == "no number"


def test_without_a_monitor_every_validation_is_an_improvement():
    made = run(None, Imperative(), data(), steps=5, valid_frequency=1, early_stop_cycles=1)
    assert made.state.current_iteration == 5


def test_a_test_loads_the_last_checkpoint_with_fast_init(tmp_path):
    seen = []

    class Testing(Whole):
        def load_state_dict(self, state_dict, fast_init=False):
            seen.append(fast_init)
            super().load_state_dict(state_dict, fast_init)

        def test_step(self, batch, step):
            assert not self._net.training
            self._test_scores["error"] = F.mse_loss(self._net(batch[0]), batch[1]).item()

    assert fit(tmp_path, ("iteration", 1))
    model = Testing()
    assert trainer(tmp_path).test(model, data())
    assert seen == [True]
    assert model.test_metrics == {"error": model._test_scores["error"]}
    assert same(dict(model._net.state_dict()), content(tmp_path)["model"]["net"])


def test_without_a_checkpoint_a_test_loads_what_the_model_says():
    class Loading(Whole):
        def load_for_testing(self):
            torch.nn.init.zeros_(self._net[4].weight)

        def test_step(self, batch, step):
            return {"norm": float(self._net[4].weight.norm())}

    model = Loading()
    assert trainer().test(model, data())
    assert model.test_metrics == {"norm": 0.0}


def test_modes_that_the_model_has_set_come_back_after_a_validation():
    class Frozen(Imperative):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.teachers = [network().eval()]

        def train_step(self, batch, state):
            assert self.net.training
            assert not self.teachers[0].training
            super().train_step(batch, state)

        def valid_step(self, batch, step):
            assert not self.net.training
            assert not self.teachers[0].training

    run(None, Frozen(), data(), steps=3, valid_frequency=1)


def test_what_could_not_be_loaded_again_is_named_by_its_path(tmp_path, capsys):
    class Odd(Imperative):
        def state_dict(self):
            return {"optimizer": [{"scores": torch.Size([1])}]}

    assert not trainer(tmp_path).fit(Odd(), data())
    assert "state_dict()['optimizer'][0]['scores']: received a Size" in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run(tmp_path, Imperative(), data(), steps=1)

    class Wider(Imperative):
        def setup(self, fast_init=False):
            super().setup(fast_init)
            self.net = torch.nn.Linear(3, 2)

    made = trainer(tmp_path)
    made.train_exceptions.append(ResumeError)
    with pytest.raises(ResumeError, match="does not fit this model"):
        made.fit(Wider(), data())


def test_a_checkpoint_of_a_model_with_a_loss_is_refused(tmp_path):
    run(tmp_path, Pure("sgd"), data(), steps=1)
    made = trainer(tmp_path)
    made.train_exceptions.append(ResumeError)
    with pytest.raises(ResumeError, match="another kind of model"):
        made.fit(Imperative("sgd"), data())


def test_a_finished_run_is_left_as_it_is(tmp_path):
    for _ in range(2):
        made = run(tmp_path, Imperative(), data(), steps=3)
        assert made.state.global_iteration == 3
    assert [name for name in names(tmp_path) if name.endswith(".pth")] == [
        "same_epoch_1_iter_3.pth"
    ]


def test_a_checkpoint_with_a_parameter_that_is_nan_is_not_finite(tmp_path):
    class Broken(Imperative):
        def on_training_epoch_end(self, current_epoch):
            torch.nn.init.constant_(self.net[0].bias, float("nan"))

    run(tmp_path, Broken(), data(), unit="epoch", steps=1)
    (manifest,) = (tmp_path / "same").glob("*.json")
    assert '"finite": false' in manifest.read_text() or '"finite":false' in manifest.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compile": "aot_eager"}, "torch.compile on a network"),
        ({"non_finite": "skip"}, "non_finite='skip'"),
        ({"reduction": "canonical"}, "reduction='canonical'"),
    ],
    ids=["compile", "skip", "canonical"],
)
def test_what_cannot_be_had_is_an_error_that_says_what_to_do(arguments, message):
    made = trainer(**arguments)
    made.train_exceptions.append(helios.errors.ModelError)
    with pytest.raises(helios.errors.ModelError, match=message):
        made.fit(Imperative(), data())


def test_a_run_with_checkpoints_and_nothing_to_save_is_refused(tmp_path):
    class Forgetful(helios.ImperativeModel):
        def setup(self, fast_init=False):
            pass

        def train_step(self, batch, state):
            pass

    run(None, Forgetful("forgetful"), data(), steps=1)
    made = trainer(tmp_path)
    made.train_exceptions.append(helios.errors.ModelError)
    with pytest.raises(helios.errors.ModelError, match="Override state_dict"):
        made.fit(Forgetful("forgetful"), data())


def test_several_at_once_are_refused():
    made = trainer(steps=1)
    made.train_exceptions.append(helios.errors.ModelError)
    models = [Imperative(), Imperative()]
    models[1].save_name = "other"
    with pytest.raises(helios.errors.ModelError, match="is trained alone"):
        helios.fit_many(made, models, data())


def test_the_banner_counts_its_parameters(capsys):
    made = trainer(steps=1, print_banner=True)
    assert made.fit(Imperative(), data())
    expected = sum(p.numel() for p in network().parameters())
    assert f"{expected} parameters, {expected} of them trained" in capsys.readouterr().out


def test_a_signal_in_a_validation_loses_nothing(tmp_path):
    class Signalled(Whole):
        def valid_step(self, batch, step):
            super().valid_step(batch, step)
            if self.armed:
                os.kill(os.getpid(), signal.SIGTERM)

    plan = ("iteration", 1)
    assert fit(tmp_path / "whole", plan)
    model = Signalled()
    model.armed = True
    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", plan, model)
    assert content(tmp_path / "cut")["training_state"]["current_iteration"] == 2
    assert fit(tmp_path / "cut", plan)
    assert same(content(tmp_path / "cut"), content(tmp_path / "whole"))


def test_a_stop_in_an_open_window_is_one_there(tmp_path):
    made = run(tmp_path, Imperative(), data(), accumulation_steps=3, plugins=[Stopper(4)])
    assert made.state.window_iter == 1


def test_a_fit_without_files_is_gone_on_with_in_memory():
    def net_after(*steps):
        model = Whole()
        made = trainer(steps=steps[0], random_seed=3)
        assert made.fit(model, data())
        for more in steps[1:]:
            made.total_steps = more
            assert made.resume()
        return dict(model._net.state_dict())

    assert same(net_after(4, 6, 8), net_after(8))
