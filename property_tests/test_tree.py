"""Trees: flattening and back, bitwise equality, digests."""

from __future__ import annotations

import optree
import pytest
import torch
import torch.utils._pytree as torch_pytree
from hypothesis import given
from hypothesis import strategies as st

import helios
from helios.functional.tree import NAMESPACE, clone, leaves_with_paths, map_leaves
from property_tests.cases import MODELS, built, few
from property_tests.test_serial import TREES

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


@few
@given(st.sampled_from(MODELS), st.integers(0, 99))
def test_states_flatten_and_unflatten_in_optree_and_in_torch(kind, seed):
    state = helios.init_state(built(kind), seed)
    leaves, spec = optree.tree_flatten(state, none_is_leaf=True, namespace=NAMESPACE)
    assert optree.tree_unflatten(spec, leaves) == state
    leaves, spec = torch_pytree.tree_flatten(state)
    assert torch_pytree.tree_unflatten(leaves, spec) == state


@given(TREES)
def test_a_tree_equals_its_copy_and_has_its_digest(tree):
    assert helios.first_difference(tree, clone(tree)) is None
    assert helios.digest(tree) == helios.digest(clone(tree))


@given(TREES, st.data())
def test_one_changed_bit_is_found_at_its_path(tree, data):
    found = [(p, t) for p, t in leaves_with_paths(tree) if isinstance(t, torch.Tensor)]
    found = [(p, t) for p, t in found if t.numel() and t.dtype is not torch.bool]
    if not found:
        return
    path, target = data.draw(st.sampled_from(found))
    changed = target.clone(memory_format=torch.contiguous_format)
    raw = changed.reshape(-1).view(torch.uint8)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = raw[at] ^ (1 << data.draw(st.integers(0, 7)))
    other = map_leaves(lambda leaf: changed if leaf is target else leaf, tree)
    assert helios.first_difference(tree, other) == path
    assert helios.digest(tree) != helios.digest(other)


@given(TREES, TREES)
def test_equal_trees_have_equal_digests_and_others_do_not(a, b):
    assert (helios.first_difference(a, b) is None) == (helios.digest(a) == helios.digest(b))


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_wall_clock_takes_no_part_in_the_digest(a, b):
    states = [helios.TrainingState(average_iter_time=t) for t in (a, b)]
    assert helios.digest(states[0]) == helios.digest(states[1])
