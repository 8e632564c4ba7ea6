"""P9: the same state and batch give the same bits, whatever else happens in between."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import helios
from property_tests.cases import ENGINES, MODELS, built, few
from tests.zoo import batches_for


@few
@given(
    st.sampled_from(MODELS),
    st.sampled_from(ENGINES),
    st.integers(1, 3),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**31),
)
def test_a_step_is_a_function(kind, engine, window, seed, noise):
    model = built(kind)
    step = helios.make_step(model, helios.Plan(accumulation_steps=window), engine=engine)
    state = helios.init_state(model, seed)
    batches = batches_for(model, 4, seed=seed % 1000)
    states = [state]
    for batch in batches:
        states.append(step(states[-1], batch))
    torch.manual_seed(noise)
    random.seed(noise)
    np.random.seed(noise)
    for before, batch, after in reversed(list(zip(states, batches, states[1:], strict=False))):
        torch.rand(3)
        assert helios.first_difference(step(before, batch), after) is None


@few
@given(st.integers(0, 99))
def test_runs_interleaved_through_one_step_do_not_touch_each_other(seed):
    model = built("noisy")
    step = helios.make_step(model)
    batches = batches_for(model, 4, seed=seed)

    def alone(start):
        state = helios.init_state(model, start)
        for batch in batches:
            state = step(state, batch)
        return state

    expected = alone(seed), alone(seed + 1)
    a, b = helios.init_state(model, seed), helios.init_state(model, seed + 1)
    for batch in batches:
        a = step(a, batch)
        b = step(b, batch)
    assert (a, b) == expected


@few
@given(st.integers(0, 2**63 - 1), st.integers(1, 10**12))
def test_the_loss_draws_under_the_public_key(seed, iteration):
    model = built("noisy")
    seen = []
    original = model.loss
    model.loss = lambda batch: (seen.append(torch.rand(2)), original(batch))[1]
    try:
        state = helios.TrainingState(
            global_iteration=iteration - 1, seed=seed, carry=helios.init_state(model).carry
        )
        helios.make_step(model)(state, batches_for(model, 1)[0])
    finally:
        del model.loss
    with torch.random.fork_rng():
        torch.manual_seed(helios.train_key(seed, iteration))
        assert torch.equal(seen[0], torch.rand(2))
