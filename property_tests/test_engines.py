"""The gradient engines agree, bit for bit, where every parameter takes part in the loss."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import helios
from property_tests.cases import MODELS, built, few
from tests.zoo import batches_for


@few
@given(st.sampled_from(MODELS), st.integers(1, 3), st.integers(0, 99), st.integers(2, 6))
def test_the_autograd_engine_equals_the_func_engine(kind, window, seed, size):
    model = built(kind)
    plan = helios.Plan(accumulation_steps=window)
    steps = [helios.make_step(model, plan, engine=e) for e in ("autograd", "func")]
    a = b = helios.init_state(model, seed)
    for batch in batches_for(model, 4, size=size, seed=seed):
        a, b = steps[0](a, batch), steps[1](b, batch)
        assert helios.first_difference(a, b) is None
