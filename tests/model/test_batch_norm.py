import copy

import pytest
import torch
from torch.optim.swa_utils import update_bn as native

import helios
from helios.errors import ModelError
from helios.functional.tree import clone
from helios.model import freeze, update_bn
from tests import zoo

DATA = zoo.classes(6)


class Averaged(zoo.Noisy):
    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.net = self.net[:3].append(torch.nn.Linear(8, 2))  # torch draws no key for dropout
        self.average = helios.optim.average(None, start=2)


def trained(model):
    step, state = helios.make_step(model), helios.init_state(model, seed=0)
    for batch in DATA:
        state = step(state, batch)
    return state


def test_the_statistics_are_those_of_torch():
    model = Averaged()
    state = trained(model)
    new = update_bn(model, state, DATA)
    net = copy.deepcopy(model.net)
    params = {n.removeprefix("net."): t for n, t in state.carry.average.items()}
    net.load_state_dict(params, strict=False)
    native([x for x, _ in DATA], net)
    for name, buffer in net.named_buffers():
        assert helios.first_difference(buffer, new.carry.buffers[f"net.{name}"]) is None
    assert helios.first_difference(new.carry.params, state.carry.average) is None


def test_model_and_state_are_left_as_they_are():
    model = Averaged()
    state = trained(model)
    before, values = clone(state), clone(dict(model.state_dict()))
    drawn = torch.get_rng_state()
    new = update_bn(model, state, DATA)
    assert state == before
    assert helios.first_difference(dict(model.state_dict()), values) is None
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.net[1].momentum == 0.1
    assert torch.equal(new.carry.buffers["seen"], state.carry.buffers["seen"])
    assert new.carry.opt_state is not state.carry.opt_state


def test_frozen_statistics_stay():
    model = Averaged()
    state = trained(model)
    freeze(model, "net.1.*")
    new = update_bn(model, state, DATA)
    assert helios.first_difference(new.carry.buffers, state.carry.buffers) is None


def test_no_batch_is_an_error():
    model = Averaged()
    with pytest.raises(ModelError, match="received none"):
        update_bn(model, helios.init_state(model), [])
