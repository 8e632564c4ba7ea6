"""What stands before a run: the model, the batch, the calendar, and what of it never happens."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import helios
from helios.functional.calendar import never
from helios.functional.plan import Plan
from helios.functional.state import TrainingUnit
from helios.trainer.banner import banner, describe_batch, describe_events, describe_plan
from tests import zoo
from tests.trainer.runs import Batches, run

CPU = torch.device("cpu")


class Frozen(zoo.Line):
    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.first = nn.Linear(1000, 250, bias=False).requires_grad_(False)


def text(model, plan=None, **more):
    model.prepare(0)
    return banner(model, plan or Plan(total_steps=3, batches_per_epoch=5), CPU, **more)


def test_parameters_are_counted_trained_and_frozen():
    assert "250,004 parameters, 4 of them trained, 250,000 frozen, 1.00 MB" in text(Frozen())


def test_the_optimizer_and_its_first_rate_are_named():
    assert "Optimizer: SGD, learning rate 0.1\n" in text(zoo.Line())


def test_a_rate_that_changes_is_the_first_one():
    rate = helios.optim.rates.warmup_cosine(peak=0.5, warmup=2, total=9)
    model = zoo.Line(optimizer=lambda: helios.optim.SGD(lr=rate))
    assert f"Optimizer: SGD, learning rate {rate(0):g} at first\n" in text(model)


def test_each_of_several_optimizers_is_named():
    shown = text(zoo.Game("game"))
    assert "Optimizer of first: Adam, learning rate 0.01\n" in shown
    assert "Optimizer of second: SGD, learning rate 0.02\n" in shown


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("fp32", "Precision: float32\n"),
        ("bf16", "Precision: bfloat16 where autocast allows it\n"),
        ("fp16", "Precision: float16 where autocast allows it, loss scale 65536 at first\n"),
    ],
)
def test_the_precision_is_named(precision, said):
    model = zoo.Line()
    model.precision = precision
    assert said in text(model)


def test_the_effective_batch_is_told_where_the_loader_tells_its_own(capsys):
    x, y = torch.randn(20, 3), torch.randn(20, 1)
    data = helios.data.from_datasets(train=(x, y), batch_size=4)
    run(None, zoo.Line(), data, accumulation_steps=3, print_banner=True)
    assert "Batch: 3 micro-batches of 4 samples make an update of 12" in capsys.readouterr().out


def test_a_loader_that_does_not_tell_has_no_line(capsys):
    run(None, zoo.Line(), Batches(zoo.regression(5)), print_banner=True)
    assert "Batch:" not in capsys.readouterr().out


def test_one_micro_batch_an_update_is_said_shortly():
    assert describe_batch(Plan(), 32) == "Batch: 32 samples make an update"


def test_the_length_is_told_in_all_units():
    plan = Plan(total_steps=20, batches_per_epoch=99, accumulation_steps=4)
    assert describe_plan(plan) == "Plan: 20 epochs of 99 micro-batches, 25 updates each, 500 in all"
    assert describe_plan(Plan()) == "Plan: no end"
    by_update = Plan(unit=TrainingUnit.ITERATION, total_steps=7, batches_per_epoch=1)
    assert describe_plan(by_update) == "Plan: 7 updates, epochs of 1 micro-batch"


def test_what_happens_is_counted():
    plan = Plan(
        total_steps=10,
        batches_per_epoch=30,
        valid_frequency=2,
        chkpt_frequency=4,
        print_frequency=50,
        early_stop_cycles=3,
        save_final=True,
    )
    assert describe_events(plan) == [
        "validation every 2 epochs: 5",
        "checkpoint every 4 epochs: 3",
        "log every 50 updates: 6",
        "early stop after 3 validations in a row without improvement",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"valid_frequency": 5},
        {"chkpt_frequency": 5},
        {"print_frequency": 100},
        {"valid_frequency": 1, "early_stop_cycles": 3},
        {"accumulation_steps": 9},
    ],
    ids=str,
)
def test_what_never_happens_is_a_warning_in_the_words_of_helios_plan(arguments):
    plan = Plan(total_steps=3, batches_per_epoch=5, **arguments)
    assert f"warning: {never(plan)[0]}" in text(zoo.Line(), plan)


def test_a_sound_plan_has_no_warning():
    plan = Plan(total_steps=3, batches_per_epoch=5, valid_frequency=1, print_frequency=1)
    assert "warning" not in text(zoo.Line(), plan)


def test_a_model_with_a_step_of_its_own_names_no_optimizer():
    class Own(zoo.Line):
        def step(self, state, batch):
            return state

        def init_carry(self):
            return {}

    assert "Optimizer" not in text(Own())
