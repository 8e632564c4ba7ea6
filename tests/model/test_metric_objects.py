"""Objects of torchmetrics in a model, against torchmetrics run by hand on the whole set."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import nn
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy, MulticlassF1Score

import helios
import helios.testing
from helios.errors import ModelError
from helios.model.metric_objects import computed, metrics_of, separated, unseen
from tests import zoo
from tests.trainer.ranks import world
from tests.trainer.runs import Batches, run

TRAIN, VALID = zoo.classes(4), zoo.classes(5, size=3, seed=7)


class Measured(helios.Model):
    def setup(self, fast_init=False):
        self.net = nn.Linear(3, 2)
        self.optimizer = helios.optim.SGD(lr=0.1)
        self.auroc = BinaryAUROC()
        self.several = torchmetrics.MetricCollection(
            {"accuracy": MulticlassAccuracy(2), "f1": MulticlassF1Score(2)}, prefix="val_"
        )

    def loss(self, batch):
        x, y = batch
        logits = self.net(x)
        loss = F.cross_entropy(logits, y)
        if self.training:
            return loss
        self.auroc.update(logits.softmax(1)[:, 1], y)
        self.several.update(logits, y)
        return loss, {"auroc": self.auroc, "several": self.several}


class Plain(Measured):
    def loss(self, batch):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


def by_hand(model):
    x, y = (torch.cat(column) for column in zip(*VALID, strict=True))
    with torch.no_grad():
        logits = model.net(x)
    return {
        "auroc": BinaryAUROC()(logits.softmax(1)[:, 1], y).item(),
        "val_accuracy": MulticlassAccuracy(2)(logits, y).item(),
        "val_f1": MulticlassF1Score(2)(logits, y).item(),
    }


def test_a_validation_is_over_the_whole_set_bit_for_bit():
    model = Measured("m")
    run(None, model, Batches(TRAIN, VALID), steps=4, valid_frequency=4)
    found = {name: value for name, value in model.valid_metrics.items() if name != "loss"}
    assert found == by_hand(model)


def test_every_validation_begins_anew():
    model = Measured("m")
    seen = []
    model.on_validation_end = lambda cycle: seen.append(dict(model.valid_metrics))
    run(None, model, Batches(TRAIN, VALID), steps=6, valid_frequency=2)
    assert len(seen) == 3
    assert seen[-1]["auroc"] == by_hand(model)["auroc"]
    assert not model.auroc.preds  # nothing is held after it


def test_a_test_is_over_the_whole_set_too():
    model = Measured("m")
    trainer = run(None, model, Batches(TRAIN, None, VALID), steps=2)
    assert trainer.test(model, Batches(TRAIN, None, VALID))
    assert model.test_metrics["auroc"] == by_hand(model)["auroc"]


def test_the_training_has_the_bits_of_one_without_them():
    one, other = (
        run(None, kind("m"), Batches(TRAIN, VALID), steps=6, valid_frequency=2).state
        for kind in (Measured, Plain)
    )
    assert helios.digest(one) == helios.digest(other)


def test_a_monitor_reads_them():
    class Watched(Measured):
        def setup(self, fast_init=False):
            super().setup()
            self.monitor = helios.Monitor("auroc", mode="max")

    trainer = run(None, Watched("m"), Batches(TRAIN, VALID), steps=2, valid_frequency=2)
    assert trainer.state.carry.best == by_hand(trainer.model)["auroc"]


def test_the_laws_hold():
    x, y = (torch.cat(column) for column in zip(*TRAIN, strict=True))
    data = helios.data.from_datasets(train=(x, y), batch_size=4)
    helios.testing.check_laws(lambda: Measured("m"), data, workers=(0,))


def test_in_training_they_are_refused_with_advice():
    class Wrong(Plain):
        def loss(self, batch):
            return super().loss(batch), {"auroc": self.auroc}

    model = Wrong("m")
    with pytest.raises(TypeError, match=r"no part of the training state.*self\.training is true"):
        helios.make_step(model)(helios.init_state(model), TRAIN[0])


def test_one_outside_of_the_model_is_refused():
    with pytest.raises(ModelError, match=r"'auroc': the BinaryAUROC is not in the model"):
        computed({"auroc": BinaryAUROC()}, nn.Linear(1, 1))


def test_one_that_computes_no_number_is_refused():
    model = nn.Module()
    model.each = MulticlassAccuracy(2, average=None)
    model.each.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ModelError, match=r"computes a tensor of shape \[2\]; expected one number"):
        computed({"each": model.each}, model)


def test_two_values_of_one_name_are_refused():
    model = nn.Module()
    model.a = torchmetrics.MetricCollection({"x": MulticlassAccuracy(2)})
    model.b = MulticlassAccuracy(2)
    for metric in (model.a, model.b):
        metric.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
    with pytest.raises(ModelError, match="there is a 'x' already"):
        computed({"a": model.a, "x": model.b}, model)


def test_a_piece_that_does_not_count_leaves_no_trace():
    model = Measured("m")
    model.prepare()
    model.eval()
    with torch.no_grad():
        with unseen(model):  # the very first update forms the groups of a collection
            model.loss(VALID[0])
        for batch in VALID:
            model.loss(batch)
            with unseen(model):
                model.loss(VALID[0])
        assert computed({"a": model.auroc, "s": model.several}, model).keys()
        found = computed({"auroc": model.auroc, "several": model.several}, model)
    assert found == by_hand(model)


def test_the_outermost_objects_are_found_once():
    model = Measured("m")
    model.prepare()
    model.again = model.auroc
    assert metrics_of(model) == [model.auroc, model.several]


def test_outputs_without_objects_are_handed_on_as_they_are():
    for output in (None, torch.ones(()), {"a": 1.0}, helios.Loss(torch.ones(()))):
        assert separated(output)[0] is output


def test_helios_does_not_import_torchmetrics():
    code = "import sys, helios; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def on_this_world(reduction, size):
    torch.set_num_threads(1)
    x, y = (torch.cat(column) for column in zip(*VALID, strict=True))
    data = helios.data.from_datasets(train=(x, y), valid=(x, y), batch_size=size)
    trainer = helios.Trainer(
        train_unit="iteration",
        total_steps=2,
        valid_frequency=2,
        use_cpu=True,
        print_banner=False,
        reduction=reduction,
    )
    trainer.train_exceptions.append(ModelError)
    model = Measured("m")
    assert trainer.fit(model, data)
    return [dict(model.valid_metrics), by_hand(model)]


@pytest.mark.parametrize("reduction", ["mean", "canonical"])
def test_ranks_measure_the_whole_set(reduction):
    # The last batch of 15 samples has 3: pieces without a sample are there for their shape alone.
    for outcome in world.run(on_this_world, ranks=2, args=(reduction, 6)):
        assert outcome.status == 0, outcome.output
        found, expected = outcome.value
        assert {n: v for n, v in found.items() if n != "loss"} == expected


def test_a_rank_without_a_sample_is_an_error_that_says_so():
    # Of 8 pieces of 2 samples, the first rank has the two that are not empty.
    for outcome in world.run(on_this_world, ranks=2, args=("canonical", 2)):
        assert outcome.status != 0
        assert "a rank had no sample of the evaluation" in outcome.output
