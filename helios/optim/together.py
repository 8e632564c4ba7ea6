"""Adam and SGD over lists of tensors of one device and dtype, without torch's gathering of them.

They run the operators that torch's own implementations run, in the same order, and have their bits;
what they leave out is the sorting of tensors by device and dtype at every update, which takes
longer than the arithmetic where parameters are small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adam import adam as torch_adam
from torch.optim.adamw import adamw as torch_adamw
from torch.optim.sgd import sgd as torch_sgd

Tensors = list[torch.Tensor]

_ONE = torch.tensor(1.0)  # counting by a tensor: a number would be made one for every parameter


def adam(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    max_exp_avg_sqs: Tensors,
    steps: Tensors,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    amsgrad: bool,
    maximize: bool,
    decoupled_weight_decay: bool = False,
    **_: Any,
) -> None:
    """Update parameters in place, like ``torch.optim.adam.adam`` with ``foreach=True``.

    Law:
        It has the bits of torch's own, one by one and together (``tests/optim/test_forms.py``).
    """
    if maximize:
        grads = torch._foreach_neg(grads)  # type: ignore[assignment]
    torch._foreach_add_(steps, _ONE, alpha=1.0)
    if weight_decay != 0:
        if decoupled_weight_decay:
            torch._foreach_mul_(params, 1 - lr * weight_decay)
        else:
            grads = torch._foreach_add(grads, params, alpha=weight_decay)  # type: ignore[assignment]
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
    counts: list[Any] = [step.tolist() for step in steps]
    if amsgrad:
        torch._foreach_maximum_(max_exp_avg_sqs, exp_avg_sqs)
    roots = torch._foreach_sqrt(max_exp_avg_sqs if amsgrad else exp_avg_sqs)
    torch._foreach_div_(roots, [(1 - beta2**count) ** 0.5 for count in counts])
    torch._foreach_add_(roots, eps)
    sizes = [(lr / (1 - beta1**count)) * -1 for count in counts]
    torch._foreach_addcdiv_(params, exp_avgs, roots, sizes)


def adamw(*tensors: Tensors, **options: Any) -> None:
    """Update parameters in place, like ``torch.optim.adamw.adamw`` with ``foreach=True``."""
    adam(*tensors, decoupled_weight_decay=True, **options)


def sgd(
    params: Tensors,
    grads: Tensors,
    momentum_buffers: list[torch.Tensor | None],
    *,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
    maximize: bool,
    **_: Any,
) -> None:
    """Update parameters in place, like ``torch.optim.sgd.sgd`` with ``foreach=True``.

    With momentum, every parameter has its buffer already.
    """
    if maximize:
        grads = torch._foreach_neg(grads)  # type: ignore[assignment]
    if weight_decay != 0:
        grads = torch._foreach_add(grads, params, alpha=weight_decay)  # type: ignore[assignment]
    if momentum != 0:
        buffers: Any = momentum_buffers
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads, alpha=1 - dampening)
        if nesterov:
            torch._foreach_add_(grads, buffers, alpha=momentum)
        else:
            grads = buffers
    torch._foreach_add_(params, grads, alpha=-lr)


def fused_adam_of_steps(
    *tensors: Tensors, decoupled_weight_decay: bool = False, **options: Any
) -> None:
    """Update parameters in place by the fused kernel; the steps, last, are counted already."""
    function = torch._fused_adamw_ if decoupled_weight_decay else torch._fused_adam_
    function(*tensors, **{name: options[name] for name in _FUSED})


def fused_adam(*tensors: Tensors, decoupled_weight_decay: bool = False, **options: Any) -> None:
    """Update parameters in place, like ``torch.optim.adam.adam`` with ``fused=True``."""
    torch._foreach_add_(tensors[-1], 1)
    fused_adam_of_steps(*tensors, decoupled_weight_decay=decoupled_weight_decay, **options)


def fused_adamw(*tensors: Tensors, **options: Any) -> None:
    """Update parameters in place, like ``torch.optim.adamw.adamw`` with ``fused=True``."""
    fused_adam(*tensors, decoupled_weight_decay=True, **options)


_FUSED = ("amsgrad", "lr", "beta1", "beta2", "weight_decay", "eps", "maximize")

TOGETHER: dict[Callable[..., None], Callable[..., None]] = {
    torch_adam: adam,
    torch_adamw: adamw,
    torch_sgd: sgd,
}
"""What runs in the place of a function of torch, where parameters are small."""

FUSED: dict[Callable[..., None], Callable[..., None]] = {
    torch_adam: fused_adam,
    torch_adamw: fused_adamw,
}
"""What runs in the place of a function of torch with ``fused=True``."""
