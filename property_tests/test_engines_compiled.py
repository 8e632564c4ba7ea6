"""The compiled engine agrees with the eager one, up to rounding, and with itself in every bit.

The backend runs the traced operators as they are: what a compiler does to them is its own.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

import helios
from property_tests.cases import built, few
from tests.functional.test_compiled import TRACED, distance
from tests.zoo import batches_for

# One graph for each place in a window is traced once, for all examples.
patient = settings(few, deadline=None)


@patient
@given(st.sampled_from(["line", "weighted"]), st.integers(1, 3), st.integers(0, 99), st.data())
def test_the_compiled_step_equals_the_eager_one(kind, window, seed, data):
    model = built(kind)
    plan = helios.Plan(accumulation_steps=window)
    eager = helios.make_step(model, plan)
    compiled = helios.make_step(model, plan, compile=TRACED)
    a = b = c = helios.init_state(model, seed)
    for batch in batches_for(model, 2 * window + 2, seed=seed):
        a, b = eager(a, batch), compiled(b, batch)
        c = compiled(c, batch, donate=data.draw(st.booleans()) and c is not b)
        assert distance(b, a) < (1e-13 if kind == "weighted" else 2e-6)
        assert helios.first_difference(c, b) is None
