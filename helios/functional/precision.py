"""Precision as values: which dtype the loss computes in, and the loss scale of fp16."""

from __future__ import annotations

import contextlib

import msgspec
import torch
from msgspec.structs import replace

from helios.functional.tree import register_struct

_COMPUTE = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@register_struct
class LossScale(msgspec.Struct, frozen=True):
    """The factor on the loss that keeps small fp16 gradients from vanishing.

    After ``interval`` updates with finite gradients the scale grows by ``growth``; a non-finite
    gradient shrinks it by ``backoff`` and its update is left out. Powers of two are exact.

    Args:
        scale: the factor in force.
        good: updates with finite gradients since the scale last changed.
        growth: what the scale is multiplied by when it grows.
        backoff: what the scale is multiplied by when it shrinks.
        interval: updates with finite gradients after which it grows.

    References:
        Micikevicius et al., "Mixed Precision Training", 2018.

    Example:
        >>> LossScale(1024.0).adjust(finite=False).scale
        512.0
    """

    scale: float = 65536.0
    good: int = 0
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000

    def adjust(self, *, finite: bool) -> LossScale:
        """Return the scale for the next update."""
        if not finite:
            return replace(self, scale=self.scale * self.backoff, good=0)
        if self.good + 1 >= self.interval:
            return replace(self, scale=self.scale * self.growth, good=0)
        return replace(self, good=self.good + 1)


class Policy(msgspec.Struct, frozen=True):
    """Which dtype the loss computes in. Parameters, gradients and updates keep their own.

    Args:
        compute: ``"float32"`` (as written), ``"bfloat16"`` or ``"float16"``: the dtype that
            ``torch.autocast`` lowers to. ``"fp32"``, ``"bf16"`` and ``"fp16"`` are the same names.
        loss_scale: the loss scale to begin with. None means none, except for ``"float16"``, which
            begins with ``LossScale()``.

    Raises:
        ValueError: if ``compute`` is another name.
    """

    compute: str = "float32"
    loss_scale: LossScale | None = None

    def __post_init__(self) -> None:
        if self.compute not in _COMPUTE and self.compute not in _SHORT:
            known = ", ".join(repr(name) for name in (*_COMPUTE, *_SHORT))
            raise ValueError(f"compute: received {self.compute!r}; expected one of {known}")

    @property
    def lowers(self) -> bool:
        """Whether the loss computes in another dtype than that of its tensors."""
        return self.compute not in ("float32", "fp32")

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype to lower to, None for none."""
        return _COMPUTE[_SHORT.get(self.compute, self.compute)]

    def initial_scale(self) -> LossScale | None:
        """Return the loss scale that a run begins with."""
        if self.loss_scale is None and self.dtype is torch.float16:
            return LossScale()
        return self.loss_scale

    def context(self, device_type: str) -> contextlib.AbstractContextManager[object]:
        """Return the context in which the loss is computed on ``device_type``."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, dtype=self.dtype)
