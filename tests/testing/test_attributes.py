"""Snapshots see every kind of attribute that changes, and nothing that does not."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import helios
from helios.testing.attributes import changes, describe_changes, describe_differences, snapshot


@dataclasses.dataclass(slots=True)
class Slotted:
    value: int = 0


class Holder:
    def __init__(self, value):
        self.value = value


def set_value(holder):
    holder.value = 1


@pytest.mark.parametrize(
    ("value", "change", "said"),
    [
        ([1, 2], lambda v: v.append(3), "x changed from a list of 2 to a list of 3"),
        ({"a": [0]}, lambda v: v["a"].__setitem__(0, 1), "x['a'][0] changed from 0 to 1"),
        ({"a": 0}, lambda v: v.update(b=1), "x changed from a dict of 1 to a dict of 2"),
        ({1}, lambda v: v.add(2), "x changed from frozenset({1}) to frozenset({1, 2})"),
        (collections.deque([1], 1), lambda v: v.append(2), "x[0] changed from 1 to 2"),
        (collections.Counter(a=1), lambda v: v.update("a"), "x['a'] changed from 1 to 2"),
        (itertools.count(), next, "x changed from 'count(0)' to 'count(1)'"),
        (np.zeros(3), lambda v: v.fill(1), "x changed: float64[3] of other values"),
        (torch.zeros(()), lambda v: v.add_(1), "x changed from tensor(0.0) to tensor(1.0)"),
        (torch.zeros(2), lambda v: v.neg_(), "x changed: float32[2] of other values"),
        (random.Random(0), lambda v: v.random(), "x (Random) drew random numbers"),
        (np.random.RandomState(0), lambda v: v.rand(), "x (RandomState) drew random numbers"),
        (Slotted(), set_value, "x.value changed from 0 to 1"),
        ([Slotted()], lambda v: delattr(v[0], "value"), "x[0]"),
        ([Path("a")], lambda v: v.__setitem__(0, Path("b")), "x[0] changed from"),
        (Holder(0), set_value, "x.value changed from 0 to 1"),
        (Holder(Holder(0)), lambda v: set_value(v.value), "x.value.value changed from 0 to 1"),
        (Holder(Holder(0)), lambda v: delattr(v, "value"), "x.value is gone"),
        (
            Holder(None),
            lambda v: setattr(v, "value", Holder(1)),
            "x.value changed from None to a Holder",
        ),
        (
            Holder(float("nan")),
            lambda v: setattr(v, "value", 0.0),
            "x.value changed from nan to 0.0",
        ),
        ([nn.Linear(1, 1)], lambda v: v[0].eval(), "x[0].training changed from True to False"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_is_named(value, change, said):
    before = snapshot(value, "x")
    assert changes(before, snapshot(value, "x")) == []
    change(value)
    assert describe_changes(before, snapshot(value, "x")).startswith(said)


def test_many_changes_are_counted():
    assert describe_changes(snapshot([0] * 9, "x"), snapshot([1] * 9, "x")).endswith("; and 6 more")


def test_an_equal_path_in_its_place_is_no_change():
    assert changes(snapshot(Path("a"), "x"), snapshot(Path("a"), "x")) == []


def test_an_object_that_holds_itself_is_walked_once():
    holder = Holder(0)
    holder.itself = holder
    before = snapshot(holder, "x")
    set_value(holder)
    assert changes(before, snapshot(holder, "x")) == ["x.value"]


def test_other_objects_of_the_same_values_are_no_loss():
    def made():
        return Holder([Holder(1), lambda: 3, helios.optim.SGD(lr=0.1), iter([1])])

    there, fresh = snapshot(made(), "x"), snapshot(made(), "x")
    assert describe_differences(there, fresh) == ""
    assert changes(there, fresh) == ["x.value[1]", "x.value[2]", "x.value[3]"]


def test_the_caches_of_torchs_layers_are_no_ones_state():
    layer = nn.LSTM(2, 2)
    before = snapshot(layer, "x")
    layer.flatten_parameters()
    layer._flat_weights = []
    assert changes(before, snapshot(layer, "x")) == []


def test_a_large_array_of_a_dataset_is_not_copied():
    rows = torch.zeros(2**19)
    held = snapshot([rows], "dataset", whole=False)
    assert not any(isinstance(value, torch.Tensor) for value in held.values())
    assert changes(held, snapshot([rows], "dataset", whole=False)) == []
    assert changes(held, snapshot([rows.clone()], "dataset", whole=False)) == ["dataset[0]"]
