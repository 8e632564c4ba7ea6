"""What stands under a name of a ``state_dict``, and whether its values can be copied."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def defect(value: Any) -> str | None:
    """Say what makes a value something else than a dense tensor with values, None if nothing."""
    if not isinstance(value, torch.Tensor):
        return f"a value of type {type(value).__name__}, not a tensor"
    if isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer):
        return "a lazy parameter, which has no shape yet; run one batch through the network first"
    if value.layout != torch.strided:
        return f"a tensor that is not dense ({value.layout})"
    if value.is_quantized:
        return f"a quantised tensor ({value.dtype})"
    if value.is_meta:
        return "a tensor on the meta device, which has no values"
    if not issubclass(type(value), nn.Parameter) and type(value) not in (torch.Tensor, nn.Buffer):
        return f"a {type(value).__name__}, which is not a plain tensor"
    return None


def overlap(target: torch.Tensor) -> str | None:
    """Say so if elements of a tensor are one place in memory, which cannot be written."""
    if any(n > 1 and not step for n, step in zip(target.shape, target.stride(), strict=True)):
        return "an expanded tensor, whose elements share memory; clone it when it is made"
    return None


def is_finite(value: torch.Tensor, target: torch.Tensor) -> bool:
    """Tell whether every value is finite in the dtype of the module."""
    if not (target.is_floating_point() or target.is_complex()):
        return True
    value = value.to(target.dtype)
    if value.dtype.itemsize == 1:
        value = value.float()  # torch cannot ask this of every 8-bit dtype
    return bool(torch.isfinite(value).all())


def describe(value: Any) -> str:
    """Return the dtype and shape of a tensor, such as ``"float32[2, 3]"``, or what else it is."""
    if (why := defect(value)) is not None:
        return why
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def place(name: str, tensor: torch.Tensor) -> Any:
    """Return what is equal for two tensors that are the same memory, seen alike."""
    if not tensor.numel():
        return name  # no memory at all
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
