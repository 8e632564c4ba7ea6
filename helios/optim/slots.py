"""What an optimizer keeps for one parameter, found out before the first update.

``torch.optim`` makes most of its state at a parameter's first gradient, so the tree would change
at the first update. Here the structure is found by letting a throw-away optimizer take one step on
a copy of the parameter, or of one element of it, with a gradient of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from helios.functional.tree import clone, map_leaves, same_bits
from helios.optim.forms import FORMS

Build = Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]
"""Makes a torch optimizer over the given leaves, with the options of the run."""


def trainable(param: torch.Tensor) -> bool:
    """Tell whether a parameter can have a gradient: integers and booleans cannot."""
    return param.is_floating_point() or param.is_complex()


def first_slots(build: Build, param: torch.Tensor) -> dict[str, Any]:
    """Return the slots of a parameter as they stand before its first gradient.

    What the optimizer makes in its constructor has the constructor's values (Adagrad); what it
    makes at the first gradient is zeros of the right shape, dtype, device and strides, and is made
    anew by torch when that gradient comes.

    Raises:
        TypeError: if the optimizer keeps numbers outside of its per-parameter state.
    """
    leaf = param.detach()
    optimizer = build([leaf])
    made = clone(dict(optimizer.state.get(leaf, {})))
    elementwise = type(optimizer) in FORMS
    # A trial takes six times the memory of what it is made on. Where all that is kept for a
    # parameter is one number or has its shape, one element of it tells as much.
    sample = leaf.new_zeros([1] * leaf.ndim) if elementwise else leaf.clone()
    optimizer = build([sample])
    before = _group(optimizer)
    sample.grad = _zero_gradient(optimizer, sample)
    optimizer.step()
    _check_group(optimizer, before)

    def first(value: Any) -> Any:
        if elementwise and isinstance(value, torch.Tensor) and value.ndim and leaf.ndim:
            return torch.zeros_like(leaf, dtype=value.dtype, device=value.device)
        return _zero(value)

    return {
        name: made[name] if name in made else map_leaves(first, value)
        for name, value in optimizer.state.get(sample, {}).items()
    }


def _zero_gradient(optimizer: torch.optim.Optimizer, leaf: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros_like(leaf)
    # The one optimizer of torch that refuses a dense gradient.
    return zeros.to_sparse(1) if isinstance(optimizer, torch.optim.SparseAdam) else zeros


def _zero(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # An expanded or overlapping slot could not be updated in place: preserve_format densifies.
        return torch.zeros_like(value, memory_format=torch.preserve_format)
    return type(value)() if isinstance(value, (bool, int, float, complex)) else value


def _group(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
    return dict(clone(options))


def _check_group(optimizer: torch.optim.Optimizer, before: dict[str, Any]) -> None:
    # Some optimizers outside of torch count steps in the group. That number would be in no state,
    # and a resumed run would start it anew without a word.
    after = _group(optimizer)
    moved = [k for k in after if k not in before or not _same(after[k], before[k])]
    if moved or len(optimizer.param_groups) != 1:
        name = type(optimizer).__name__
        raise TypeError(
            f"{name}: its step changes {', '.join(map(repr, moved)) or 'the parameter groups'} in "
            "the parameter group; expected an optimizer that keeps its numbers in the state of "
            "each parameter. Write it as a helios.optim.Transformation instead"
        )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return same_bits(a, b)
