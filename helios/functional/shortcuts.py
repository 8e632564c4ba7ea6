"""Operations on the parameters of several members that are faster than what vmap makes of them.

``torch.func.vmap`` rewrites an operator into several others, and dispatches each of them twice. For
the two that most small networks spend their time in, a linear layer and the cross entropy, the
operator for all members is written down here. Everything else goes through vmap, and so do these
two where they are not used in their plain form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch._C import _functorch
from torch.overrides import TorchFunctionMode

_Tensor = torch.Tensor


class Shortcuts(TorchFunctionMode):
    """While it is entered inside of one vmap, calls of some functions take a shorter way.

    Law:
        The values are those of vmap up to rounding (``tests/functional/test_shortcuts.py``).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function, or what stands in for it."""
        way = _WAYS.get(func)
        if way is not None:
            value = way(*args, **(kwargs or {}))
            if value is not None:
                return value
        return func(*args, **(kwargs or {}))


def _linear(x: _Tensor, weight: _Tensor, bias: _Tensor | None = None) -> _Tensor | None:
    """Return what ``F.linear`` is for all members, None to leave it to vmap."""
    if bias is None or not _is_plain():
        return None
    level = _functorch.current_level()
    w, b, inputs = _of_all(weight, level), _of_all(bias, level), _of_all(x, level)
    if w is None or b is None:
        return None
    if inputs is None:
        if x.ndim != 2:
            return None
        inputs = x.expand(len(w), -1, -1)
    elif inputs.ndim != 3:
        return None
    # Transposed, so that the gradient of the weight comes in the layout of the weight.
    out = torch.baddbmm(b.unsqueeze(2), w, inputs.transpose(1, 2)).transpose(1, 2)
    if w.shape[1] < _FEW:
        out = out.contiguous()
    return _functorch._add_batch_dim(out, 0, level)


def _cross_entropy(
    input: _Tensor,
    target: _Tensor,
    weight: _Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> _Tensor | None:
    """Return what ``F.cross_entropy`` is for all members, None to leave it to vmap."""
    if (
        (reduction, label_smoothing) != ("mean", 0.0)
        or (weight, size_average, reduce) != (None, None, None)
        or not _is_plain()
        or _functorch.is_functorch_wrapped_tensor(target)
        or target.ndim != 1
    ):
        return None
    level = _functorch.current_level()
    logits = _of_all(input, level)
    if logits is None or logits.ndim != 3:
        return None
    # With the classes before the rows, where the kernel of the CPU is five times as fast.
    losses = F.cross_entropy(
        logits.transpose(1, 2),
        target.expand(len(logits), -1),
        ignore_index=ignore_index,
        reduction="none",
    )
    out = losses.sum(1) / (target != ignore_index).sum()
    return _functorch._add_batch_dim(out, 0, level)


_WAYS: dict[Any, Callable[..., _Tensor | None]] = {
    F.linear: _linear,
    F.cross_entropy: _cross_entropy,
}


_FEW = 32
"""Outputs of a layer below which what follows it, such as argmax, wants them side by side."""


def _is_plain() -> bool:
    """Tell whether there is one vmap, no other transform, and no autocast."""
    depth = _functorch.get_dynamic_layer_stack_depth()
    return depth == 1 and not torch._C._is_any_autocast_enabled()


def _of_all(x: _Tensor, level: int) -> _Tensor | None:
    """Return the values of all members, by member; None if they have one in common."""
    if not _functorch.is_batchedtensor(x):
        return None
    value, dimension = _functorch._unwrap_batched(x, level)
    if dimension is None:
        return None
    return value if dimension == 0 else value.movedim(dimension, 0)
