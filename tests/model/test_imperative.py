"""What a model that trains by side effect is, without a trainer."""

from __future__ import annotations

import copy
import pickle
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import helios
from helios.errors import ModelError
from helios.functional.state import begin_batch
from helios.model.plain import as_plain
from helios.model.trained import gradients, put_gradients, trained


class Tiny(helios.ImperativeModel):
    def setup(self, fast_init=False):
        self.net = nn.Linear(2, 1)
        self.loss = nn.MSELoss()  # shadows a method of helios.Model
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)

    def train_step(self, batch, state):
        self._loss_items["loss"] = self.loss(self.net(batch), torch.zeros(len(batch), 1))


def test_networks_are_plain_attributes():
    model = Tiny("tiny")
    model.prepare()
    assert isinstance(vars(model)["net"], nn.Linear)
    assert not list(model.parameters())
    assert len(model.own_parameters()) == 2


def test_a_module_may_be_assigned_before_the_base_is_initialised():
    class Early(Tiny):
        def __init__(self, name):
            self.early = nn.Linear(1, 1)
            super().__init__(name)

    assert [p.shape for p in Early("early").own_parameters()] == [(1, 1), (1,)]


def test_it_can_be_copied_and_pickled():
    model = Tiny("tiny")
    model.prepare()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.net.weight, model.net.weight)


def test_a_pure_step_is_refused():
    step, state = helios.make_step(Tiny("tiny")), helios.init_state(Tiny("tiny"))
    with pytest.raises(ModelError, match="trains by side effect"):
        step(state, torch.ones(2, 2))


def test_a_loss_that_is_no_scalar_is_named():
    class Unreduced(Tiny):
        def train_step(self, batch, state):
            self._loss_items["l1"] = torch.ones(3)

    model = Unreduced("unreduced")
    state = begin_batch(helios.init_state(model), update=True)
    with pytest.raises(TypeError, match=r"_loss_items\['l1'\].*shape \[3\]"):
        model.step(state, torch.ones(2, 2))


def test_a_model_without_a_train_step_says_so():
    class Empty(helios.ImperativeModel):
        def setup(self, fast_init=False):
            pass

    with pytest.raises(ModelError, match="has no train_step"):
        Empty("empty").train_step(None, helios.trainer.TrainingState())


def test_the_properties_of_the_contract_are_there():
    model = Tiny("tiny")
    assert (model.save_name, model.rank, model.is_distributed) == ("tiny", 0, False)
    assert (model.map_loc, str(model.device), model.metrics) == ("cpu", "cpu", {})
    assert model.trained_state_dict("any", argument=1) == {}
    model.map_loc = {"cuda:0": "cuda:1"}
    assert model.map_loc == {"cuda:0": "cuda:1"}


def test_train_puts_back_what_eval_has_changed():
    model = Tiny("tiny")
    model.prepare()
    model.frozen = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    model.eval()
    model.eval()
    assert not any(m.training for m in model.frozen.modules())
    assert not model.net.training
    model.train()
    assert [m.training for m in model.frozen] == [True, False]
    assert model.net.training


def test_dicts_of_any_kind_become_plain():
    scheduler = {"milestones": Counter([3, 3, 5]), "net": OrderedDict(w=torch.ones(1))}
    plain = as_plain(scheduler, "state")
    assert plain["milestones"] == {3: 2, 5: 1}
    assert type(plain["milestones"]) is dict
    assert type(plain["net"]) is dict


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [np.float64(1)]}, r"state\['a'\]\[0\]: received a float64"),
        ({(1, 2): 3}, r"state: received the key \(1, 2\)"),
        ({"f": print}, r"state\['f'\]: received a builtin_function_or_method"),
    ],
    ids=["numpy", "key", "function"],
)
def test_what_cannot_be_loaded_again_is_named(value, message):
    with pytest.raises(TypeError, match=message):
        as_plain(value, "state")


def test_a_parameter_has_one_path_wherever_it_is_held():
    net, loose = nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([*net.parameters(), loose], lr=1.0)
    held = {"nets": [net], "again": {"net": net}, "optimizer": optimizer}
    assert list(trained(held)) == ["nets.0.weight", "nets.0.bias", "optimizer.0.2"]


def test_gradients_come_back_to_their_parameters():
    held, other = {"net": nn.Linear(1, 1)}, {"net": nn.Linear(1, 1)}
    held["net"].weight.grad = torch.ones(1, 1)
    put_gradients(other, gradients(held))
    assert torch.equal(other["net"].weight.grad, torch.ones(1, 1))
    assert other["net"].bias.grad is None


def test_a_gradient_without_its_parameter_is_refused():
    with pytest.raises(ModelError, match="no such parameter"):
        put_gradients({"net": nn.Linear(1, 1)}, {"net.scale": torch.ones(1)})
