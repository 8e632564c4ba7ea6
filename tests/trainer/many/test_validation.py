"""Validation, scores, early stops and hooks of several members."""

from __future__ import annotations

import pytest
import torch

import helios
from helios.functional.stacked import member_state
from tests import zoo
from tests.trainer.many.runs import data, fit, members
from tests.trainer.runs import Batches, Stopper, trainer


class Watched(zoo.Noisy):
    """Watches its accuracy; averages its parameters."""

    def setup(self, fast_init=False):
        super().setup()
        self.net[3].p = 0.0  # what members draw differs from what one alone draws
        # Adam makes steps of the rounding that is the gradient of a bias before a normalisation.
        self.optimizer = helios.optim.SGD(lr=0.1, momentum=0.9)
        self.monitor = helios.Monitor("accuracy", mode="max")
        self.average = helios.optim.average(decay=0.5)


def alone(seed, make=Watched, batches=None, **arguments):
    model = make("alone")
    model.prepare(seed)
    made = trainer(random_seed=3, **arguments)
    made.train_exceptions.append(Exception)
    assert made.fit(model, batches or data())
    return model, made.state


def test_each_member_has_its_metrics_and_its_best_score():
    models = members(Watched)
    state = fit(None, models, valid_frequency=1, steps=7).state
    assert state.validation_cycles == 7
    for seed, member in enumerate(models):
        expected, own = alone(seed, valid_frequency=1, steps=7)
        assert member.valid_metrics == pytest.approx(expected.valid_metrics, abs=1e-5)
        assert member.best_score == pytest.approx(expected.best_score, abs=1e-5)
        assert member_state(state, seed).carry.best == member.best_score
        assert own.carry.best == expected.best_score


def test_validation_changes_nothing_of_the_training():
    without = fit(None, members(), data(valid=False), steps=7).state
    state = fit(None, members(), data(), valid_frequency=1, steps=7).state
    for k in range(3):
        a, b = member_state(without, k).carry, member_state(state, k).carry
        assert helios.first_difference(a.params, b.params) is None
        assert helios.first_difference(a.buffers, b.buffers) is None


class Scripted(zoo.Line):
    """Its validation loss is given."""

    def __init__(self, name, scores):
        super().__init__(name)
        self.scores = scores

    def have_metrics_improved(self):
        cycle = self.trainer.state.validation_cycles - 1
        self.valid_metrics["loss"] = self.scores[cycle]
        return super().have_metrics_improved()


def test_the_run_stops_early_once_no_member_improves():
    # a is at its best in the first validation, b in the third; two more bring nothing.
    models = [Scripted("a", [1.0] + [2.0] * 9), Scripted("b", [3.0, 3.0, 2.0] + [2.0] * 7)]
    batches = Batches(zoo.regression(5), zoo.regression(1))
    state = fit(None, models, batches, valid_frequency=1, early_stop_cycles=2, steps=9).state
    assert state.validation_cycles == 5
    assert [model.best_score for model in models] == [1.0, 2.0]


def test_frozen_normalisation_stays_frozen_through_a_validation():
    class Frozen(zoo.Noisy):
        def on_training_start(self):
            self.net[1].eval()

    models = members(Frozen)
    state = fit(None, models, valid_frequency=1).state
    assert not models[0].net[1].training
    assert models[0].net[0].training
    assert torch.equal(state.carry.buffers["net.1.num_batches_tracked"], torch.zeros(3).long())


class Recorder(zoo.Noisy):
    """Notes its hooks, and the weight that it holds in them."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def note(self, *what):
        self.calls.append((*what, self.net[0].weight.detach().clone()))

    def on_training_start(self):
        self.note("start")

    def on_training_epoch_start(self, current_epoch):
        self.note("epoch_start", current_epoch)

    def on_validation_start(self, validation_cycle):
        self.note("valid_start", validation_cycle)

    def on_validation_end(self, validation_cycle):
        assert self.valid_metrics
        self.note("valid_end", validation_cycle)

    def on_training_epoch_end(self, current_epoch):
        self.note("epoch_end", current_epoch)

    def on_training_end(self):
        self.note("end")


def test_hooks_around_epochs_and_validations_see_the_members_own_weights():
    models = members(Recorder)
    state = fit(None, models, unit="epoch", steps=1, valid_frequency=1).state
    names = ["start", "epoch_start", "valid_start", "valid_end", "epoch_end", "end"]
    for k, member in enumerate(models):
        assert [call[0] for call in member.calls] == names
        fresh = zoo.Noisy("fresh")
        fresh.prepare(k)
        assert torch.equal(member.calls[0][-1], fresh.net[0].weight)
        assert torch.equal(member.calls[-1][-1], state.carry.params["net.0.weight"][k])


def test_what_a_hook_writes_into_a_weight_counts():
    class Zeroing(zoo.Line):
        def on_training_start(self):
            with torch.no_grad():
                self.net.weight.zero_()

    zeroed = fit(None, members(Zeroing), Batches(zoo.regression(5)), steps=1).state
    for k in range(3):
        _, own = alone(k, Zeroing, Batches(zoo.regression(5)), steps=1)
        torch.testing.assert_close(
            zeroed.carry.params["net.weight"][k], own.carry.params["net.weight"]
        )


def test_afterwards_the_members_hold_their_weights():
    models = members()
    state = fit(None, models).state
    for k, member in enumerate(models):
        for name, parameter in member.named_parameters():
            assert torch.equal(parameter, state.carry.params[name][k])
            assert parameter.untyped_storage().nbytes() == parameter.nbytes
        for name, buffer in member.named_buffers():
            assert torch.equal(buffer, state.carry.buffers[name][k])


def test_a_plugin_sees_the_run_and_may_change_its_batches():
    class Shifted(helios.Plugin):
        def __init__(self):
            super().__init__("shifted", helios.plugins.UniquePluginOverrides(training_batch=True))

        def process_training_batch(self, batch, state):
            return batch[0] + 1, batch[1]

    batches = zoo.regression(5)
    shifted = Batches([(x + 1, y) for x, y in batches])
    made = fit(None, members(zoo.Line), Batches(batches), plugins=[Shifted()])
    expected = fit(None, members(zoo.Line), shifted).state
    assert helios.first_difference(made.state.carry, expected.carry) is None
    stopped = fit(None, members(), plugins=[Stopper(2)]).state
    assert stopped.global_iteration == 2


def test_seeds_are_those_of_the_trainer_and_the_ones_after_it():
    models = members(zoo.Line)
    made = trainer(random_seed=11, steps=1)
    assert helios.fit_many(made, models, Batches(zoo.regression(2)))
    _, own = alone(13, zoo.Line, Batches(zoo.regression(2)), steps=1)
    torch.testing.assert_close(models[2].net.weight.detach(), own.carry.params["net.weight"])


def test_members_draw_different_dropout_masks():
    # Equal seeds, so equal weights: only the masks tell the members apart.
    state = fit(None, members(), seeds=[5] * 3, steps=1).state
    first, second, third = state.carry.params["net.4.weight"]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_two_objectives():
    def make(name):
        return zoo.Game(name)

    batches = zoo.regression(5, dtype=torch.float64)
    state = fit(None, members(make), Batches(batches), accumulation_steps=2).state
    for k in range(3):
        _, own = alone(k, make, Batches(batches), accumulation_steps=2)
        for name, value in own.carry.params.items():
            expected = state.carry.params[name][k]
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_bfloat16():
    class Low(zoo.Line):
        def setup(self, fast_init=False):
            super().setup()
            self.precision = "bf16"

    state = fit(None, members(Low), Batches(zoo.regression(5)), steps=3).state
    for k in range(3):
        _, own = alone(k, Low, Batches(zoo.regression(5)), steps=3)
        for name, value in own.carry.params.items():
            torch.testing.assert_close(state.carry.params[name][k], value, rtol=1e-2, atol=1e-2)


def test_tied_weights_and_unused_ones():
    class Tied(zoo.Line):
        def setup(self, fast_init=False):
            self.one, self.two = torch.nn.Linear(3, 3).double(), torch.nn.Linear(3, 3).double()
            self.two.weight = self.one.weight
            self.unused = torch.nn.Linear(2, 2)
            self.optimizer = helios.optim.AdamW(lr=0.1, weight_decay=0.5)

        def loss(self, batch):
            return (self.two(self.one(batch[0])).sum(1, keepdim=True) - batch[1]).square().mean()

    batches = zoo.regression(5, dtype=torch.float64)
    state = fit(None, members(Tied), Batches(batches)).state
    assert len(state.carry.params) == 5
    for k in range(3):
        _, own = alone(k, Tied, Batches(batches))
        for name, value in own.carry.params.items():
            expected = state.carry.params[name][k]
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
