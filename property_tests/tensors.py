"""Tensors of any bits, for the laws on what is saved."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

SHAPES = st.lists(st.integers(0, 3), max_size=4)


@st.composite
def whole_tensors(draw: Any, dtypes: st.SearchStrategy[torch.dtype]) -> torch.Tensor:
    """Draw a tensor that is the whole of its memory, with its axes in any order."""
    dtype = draw(dtypes)
    shape = draw(SHAPES)
    size = math.prod(shape) * dtype.itemsize
    bits = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        bits = bytes(b & 1 for b in bits)
    flat = torch.frombuffer(bytearray(bits), dtype=dtype) if bits else torch.empty(0, dtype=dtype)
    order = draw(st.permutations(range(len(shape))))
    tensor = flat.reshape([shape[d] for d in order])
    return tensor.permute([order.index(d) for d in range(len(shape))])
