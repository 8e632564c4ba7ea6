import random

import numpy as np
import pytest
import torch

import helios
from helios.errors import ModelError
from helios.tuning import find_lr
from tests import zoo


def generators():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("kind", [zoo.Line, zoo.Noisy, zoo.Weighted, zoo.Adversarial])
def test_what_is_given_keeps_every_bit(kind):
    model = kind("model")
    state = helios.init_state(model, seed=1)
    batches = zoo.batches_for(model, 5)
    state = helios.make_step(model)(state, batches[0])
    model.eval()
    before, held = helios.TrainingState.from_bytes(state.to_bytes()), model.state_dict()
    held = {name: value.clone() for name, value in held.items()}
    rng, optimizers = generators(), [repr(o.optimizer) for o in model.objectives()]
    result = find_lr(model, batches, updates=12, high=0.1, state=state)
    assert len(result.rates) == 12
    assert state == before
    assert helios.first_difference(dict(model.state_dict()), held) is None
    assert not model.training
    assert [repr(o.optimizer) for o in model.objectives()] == optimizers
    assert torch.equal(generators()[0], rng[0])
    assert generators()[1:] == rng[1:]


def test_a_sweep_is_a_fit_at_these_rates():
    rates = helios.optim.rates.exponential(1e-3, gamma=10 ** (1 / 2))
    model = zoo.Line(optimizer=lambda: helios.optim.SGD(lr=rates))
    batches = zoo.regression(3)
    found = find_lr(zoo.Line(), batches, low=1e-3, high=1e-2, updates=3)
    step, state = helios.make_step(model), helios.init_state(model)
    losses = []
    for batch in batches:
        state = step(state, batch)
        losses.append(state.carry.metrics["loss"].total)
    first = losses[0] / 4
    second = (losses[1] - losses[0]) / 4
    assert found.rates == pytest.approx((1e-3, 10**-2.5, 1e-2))
    assert found.losses[:2] == pytest.approx((first, (0.9 * first + second) / 1.9))


def test_a_rate_in_a_chain_is_driven():
    def chained():
        return helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(1e9), sgd=helios.optim.SGD(lr=5.0)
        )

    alone = find_lr(zoo.Line(), zoo.regression(4), updates=8, high=0.1)
    assert find_lr(zoo.Line(optimizer=chained), zoo.regression(4), updates=8, high=0.1) == alone


def test_divergence_ends_a_sweep():
    found = find_lr(zoo.Line(), zoo.regression(4), low=1e-3, high=1e6, updates=50)
    assert found.diverged
    assert len(found.rates) == len(found.losses) < 50


def test_a_loss_that_is_not_finite_ends_a_sweep():
    x, y = zoo.regression(1)[0]
    found = find_lr(zoo.Line(), [(x, y), (x * float("nan"), y)], updates=10)
    assert (found.diverged, len(found.losses)) == (True, 1)


def test_a_suggestion_trains():
    found = find_lr(zoo.Line, zoo.regression(1, size=32), low=1e-5, high=10.0, updates=60)
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < 1


def test_a_model_with_a_step_of_its_own_is_an_error():
    class Own(zoo.Line):
        def step(self, state, batch):
            return state

    with pytest.raises(ModelError, match="Own has a step of its own"):
        find_lr(Own(), zoo.regression(2))


def test_an_optimizer_without_a_rate_is_an_error():
    class Still:
        def init(self, params):
            return {}

        def update(self, grads, opt_state, params, *, donate=False):
            return params, opt_state

        def __repr__(self):
            return "Still()"

    with pytest.raises(ModelError, match=r"'loss', Still\(\), has no learning rate"):
        find_lr(zoo.Line(optimizer=Still), zoo.regression(2))


def test_a_data_module_is_set_up_and_torn_down():
    data = helios.data.from_datasets(train=zoo.regression(1, size=8)[0], batch_size=4)
    assert len(find_lr(zoo.Line(), data, updates=5, high=0.1).losses) == 5


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"high": 1e-9}, {"updates": 1}, {"divergence": 1}])
def test_arguments_out_of_range_are_errors(wrong):
    with pytest.raises(ValueError, match="received"):
        find_lr(zoo.Line(), zoo.regression(2), **wrong)


def test_a_sweep_is_drawn():
    axes = find_lr(zoo.Line(), zoo.regression(2), updates=5, high=0.1).plot()
    assert axes.get_xscale() == "log"
