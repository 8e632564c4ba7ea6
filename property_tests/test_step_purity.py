"""P8: a step changes nothing but what it returns, and shares no storage with what it was given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import helios
from helios.functional.tree import leaves
from property_tests.cases import ENGINES, MODELS, built, few
from tests.zoo import batches_for


def tensors(tree):
    return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]


def storages(tree):
    return [t.untyped_storage().data_ptr() for t in tensors(tree) if t.numel()]


@few
@given(st.sampled_from(MODELS), st.sampled_from(ENGINES), st.integers(1, 3), st.integers(0, 99))
def test_the_inputs_keep_their_bits_and_versions(kind, engine, window, seed):
    model = built(kind)
    step = helios.make_step(model, helios.Plan(accumulation_steps=window), engine=engine)
    state = helios.init_state(model, seed)
    for batch in batches_for(model, window + 1, seed=seed):
        digest = helios.digest(state), helios.digest(batch)
        versions = [t._version for t in tensors((state, batch))]
        after = step(state, batch)
        assert (helios.digest(state), helios.digest(batch)) == digest
        assert [t._version for t in tensors((state, batch))] == versions
        state = after


@few
@given(st.sampled_from(MODELS), st.sampled_from(ENGINES), st.integers(1, 3), st.integers(0, 99))
def test_outputs_share_no_storage_with_inputs_nor_leaves_with_one_another(
    kind, engine, window, seed
):
    model = built(kind)
    step = helios.make_step(model, helios.Plan(accumulation_steps=window), engine=engine)
    state = helios.init_state(model, seed)
    for batch in batches_for(model, window + 1, seed=seed):
        after = step(state, batch)
        mine = storages(after)
        assert len(set(mine)) == len(mine)
        assert not set(mine) & set(storages((state, batch)))
        assert not set(mine) & {p.untyped_storage().data_ptr() for p in model.parameters()}
        state = after


@few
@given(st.sampled_from(MODELS), st.sampled_from(ENGINES), st.booleans())
def test_the_model_and_the_process_are_as_before(kind, engine, training):
    model = built(kind)
    state = helios.init_state(model, 1)
    step = helios.make_step(model, engine=engine)
    model.train(training)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    random = torch.random.get_rng_state()
    with torch.no_grad():
        step(state, batches_for(model, 1)[0])
        assert not torch.is_grad_enabled()
    assert helios.first_difference(before, dict(model.state_dict())) is None
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training is training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert torch.get_default_dtype() is torch.float32


def test_a_failing_loss_leaves_the_model_as_it_was():
    model = built("line")
    state = helios.init_state(model, 0)
    step = helios.make_step(model)
    pointers = [p.data_ptr() for p in model.parameters()]
    digest = helios.digest(state)
    batch = batches_for(model, 1)[0]
    with pytest.raises(RuntimeError):
        step(state, (torch.zeros(4, 7), batch[1]))
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert helios.digest(state) == digest
    step(state, batch)
