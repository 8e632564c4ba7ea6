"""P11: a donated step computes the same bits, and what it consumed says so."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import helios
from helios.errors import ConsumedStateError
from property_tests.cases import ENGINES, MODELS, built, few
from tests.zoo import batches_for


@few
@given(st.sampled_from(MODELS), st.sampled_from(ENGINES), st.integers(1, 3), st.integers(0, 99))
def test_donated_equals_undonated(kind, engine, window, seed):
    model = built(kind)
    step = helios.make_step(model, helios.Plan(accumulation_steps=window), engine=engine)
    kept = helios.init_state(model, seed)
    given_away = helios.init_state(model, seed)
    for batch in batches_for(model, 5, seed=seed):
        kept = step(kept, batch)
        given_away = step(given_away, batch, donate=True)
        assert helios.first_difference(kept, given_away) is None


@few
@given(st.sampled_from(MODELS), st.lists(st.booleans(), min_size=4, max_size=6), st.booleans())
def test_donated_and_pure_steps_mix(kind, choices, training):
    model = built(kind).train(training)  # a step trains, whatever mode it finds
    step = helios.make_step(model)
    kept, mixed = helios.init_state(model, 0), helios.init_state(model, 0)
    for batch, donate in zip(batches_for(model, len(choices)), choices, strict=True):
        kept = step(kept, batch)
        mixed = step(mixed, batch, donate=donate)
    assert helios.first_difference(kept, mixed) is None


@few
@given(st.sampled_from(MODELS))
def test_a_consumed_state_raises_on_use_and_says_why(kind):
    model = built(kind)
    step = helios.make_step(model)
    state = helios.init_state(model, 0)
    batch = batches_for(model, 1)[0]
    after = step(state, batch, donate=True)
    for use in (
        lambda: step(state, batch),
        lambda: step(state, batch, donate=True),
        lambda: state.carry.params,
        state.to_bytes,
    ):
        with pytest.raises(ConsumedStateError, match="given to a donated step"):
            use()
    assert state.current_iteration == 0
    step(after, batch)


def test_in_a_donated_run_the_model_holds_the_state():
    model = built("line")
    step = helios.make_step(model)
    state = step(helios.init_state(model, 0), batches_for(model, 1)[0], donate=True)
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == state.carry.params[name].data_ptr()


def test_a_donated_step_that_fails_consumes_its_state():
    model = built("line")
    step = helios.make_step(model)
    state = helios.init_state(model, 0)
    with pytest.raises(RuntimeError):
        step(state, (torch.zeros(4, 7), torch.zeros(4, 1)), donate=True)
    with pytest.raises(ConsumedStateError):
        _ = state.carry.params
