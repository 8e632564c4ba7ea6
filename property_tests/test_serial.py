"""P12: a state survives bytes, bit for bit, and a step after it is the same step."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import helios
from helios.errors import SerialisationError
from helios.functional.serial import _DTYPES
from helios.testing.strategies import whole_tensors
from property_tests.cases import MODELS, built, few
from tests.zoo import batches_for

# Torch says once a process that complex32 is experimental, and copies its bits all the same.
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

FLOATS = st.one_of(
    st.floats(allow_nan=False),
    st.integers(0, 2**52 - 1).map(
        lambda payload: struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000001 | payload))[0]
    ),
)


@st.composite
def tensors(draw):
    tensor = draw(whole_tensors(st.sampled_from(sorted(_DTYPES)).map(_DTYPES.__getitem__)))
    if tensor.ndim and tensor.shape[0] > 1 and draw(st.booleans()):
        tensor = tensor[::2]
    return tensor


LEAVES = st.one_of(
    tensors(),
    FLOATS,
    st.integers(-(2**80), 2**80),
    st.booleans(),
    st.none(),
    st.text(),
    st.binary(),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=5), inner, max_size=3),
    ),
    max_leaves=6,
)


def kinds(tree):
    if isinstance(tree, dict):
        return {key: kinds(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(kinds(value) for value in tree)
    return (tree.dtype, tree.shape) if isinstance(tree, torch.Tensor) else type(tree)


@given(TREES, st.integers(0, 2**70), st.integers(0, 2**63 - 1))
def test_bytes_and_back_is_the_same_state(tree, count, seed):
    state = helios.TrainingState(global_iteration=count, seed=seed, carry=tree)
    back = helios.TrainingState.from_bytes(state.to_bytes())
    assert helios.first_difference(state, back) is None
    assert kinds(back.carry) == kinds(tree)
    assert back.to_bytes() == state.to_bytes()
    assert back.dict() == state.dict()


@given(tensors())
def test_the_memory_order_of_a_dense_tensor_survives(tensor):
    back = helios.TrainingState.from_bytes(helios.TrainingState(carry=tensor).to_bytes()).carry
    if torch.empty_like(tensor).stride() == tensor.stride() and tensor.numel():
        assert strides(back) == strides(tensor)


def strides(tensor):
    """The strides that matter: a dimension of size 1 may have any."""
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


@few
@given(st.sampled_from(MODELS), st.integers(1, 3), st.integers(0, 99))
def test_a_step_after_bytes_is_the_step_without(kind, window, seed):
    model = built(kind)
    step = helios.make_step(model, helios.Plan(accumulation_steps=window))
    state = helios.init_state(model, seed)
    for batch in batches_for(model, 3, seed=seed):
        again = helios.TrainingState.from_bytes(state.to_bytes())
        after = step(state, batch)
        assert helios.first_difference(step(again, batch), after) is None
        state = after


@few
@given(st.sampled_from(MODELS), st.data())
def test_changed_or_truncated_bytes_are_refused(kind, data):
    good = helios.init_state(built(kind), 0).to_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    flipped = bytearray(good)
    flipped[at] ^= data.draw(st.integers(1, 255))
    for bad in (bytes(flipped), good[:at], good + b"\0"):
        with pytest.raises(SerialisationError):
            helios.TrainingState.from_bytes(bad)
