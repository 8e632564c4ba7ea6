"""What differs between members is found, and cannot be used."""

from __future__ import annotations

import math

import pytest
import torch

from helios.errors import ModelError
from helios.functional.differs import Differs, alike


class Plain:
    def __init__(self, value):
        self.value = value


def adder(n):
    return lambda x: x + n


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 2.5, math.nan, "a", b"a", 1j, torch.float32),
        *([1, [2.0]], (1,), {"a": [torch.ones(2)]}, torch.arange(3)),
        *(adder(1), Plain(3), Plain(Plain([1])), math.sin, {1, 2}),
    ],
)
def test_copies_are_alike(value):
    import copy

    assert alike(value, copy.deepcopy(value))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        *((1, 2), (1, 1.0), (0.0, -0.0), ("a", "b"), (True, 1), (None, 0)),
        *(([1], [2]), ([1], [1, 2]), ((1,), [1]), ({"a": 1}, {"b": 1}), ({1}, {2})),
        *((torch.zeros(2), torch.ones(2)), (torch.zeros(2), torch.zeros(3))),
        *((adder(1), adder(2)), (Plain(1), Plain(2)), (object(), object())),
        *((lambda x, y=1: x, lambda x, y=2: x), (iter([1]), iter([1]))),
    ],
)
def test_others_are_not(a, b):
    assert not alike(a, b)


def test_what_refers_to_itself_is_not_followed_for_ever():
    a, b = [], []
    a.append(a)
    b.append(b)
    assert not alike(a, b)


USES = {
    "add": lambda d: d + 1,
    "radd": lambda d: torch.ones(2) + d,
    "mul": lambda d: torch.ones(2) * d,
    "pow": lambda d: 2**d,
    "bool": lambda d: 1 if d else 0,
    "float": float,
    "int": int,
    "eq": lambda d: d == 1,
    "lt": lambda d: d < 1,
    "len": len,
    "iter": list,
    "getitem": lambda d: d[0],
    "call": lambda d: d(),
    "attribute": lambda d: d.shape,
    "format": lambda d: f"{d}",
    "index": lambda d: [1, 2][d],
    "set": lambda d: setattr(d, "a", 1),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_any_use_raises(use):
    with pytest.raises(ModelError, match=r"self\.rate is 0\.1 in one and 0\.2 in another member"):
        use(Differs("self.rate", (0.1, 0.2)))


def test_its_repr_says_what_it_is():
    assert repr(Differs("self.rate", (0.1, 0.2))) == (
        "<self.rate is 0.1 in one and 0.2 in another member>"
    )
