"""What the tests of this folder share: a small model, its gradients, and a native run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from helios.functional.tree import leaves

Tensors = dict[str, torch.Tensor]

MATRICES = {"a": (4, 3), "b": (3, 5)}
MIXED = {"net.0.weight": (4, 3), "net.0.bias": (4,), "net.1.weight": (2, 4), "scale": ()}


def make_params(shapes: dict[str, tuple[int, ...]] = MIXED, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {path: torch.randn(shape, generator=generator) for path, shape in shapes.items()}


def make_grads(params: Tensors, updates: int, seed: int = 1) -> list[Tensors]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            path: torch.randn(p.shape, generator=generator, dtype=p.dtype) * (1 + k)
            for path, p in params.items()
        }
        for k in range(updates)
    ]


def without(grads: Tensors, path: str) -> Tensors:
    return {k: v for k, v in grads.items() if k != path}


def native(
    cls: type[torch.optim.Optimizer],
    params: Tensors,
    grads: Sequence[Tensors],
    *,
    rate: Callable[[int], float] | None = None,
    **options: Any,
) -> list[Tensors]:
    """The parameters after each update of the plain torch optimizer."""
    own = {path: torch.nn.Parameter(p.clone()) for path, p in params.items()}
    optimizer = cls(list(own.values()), **options)
    history = []
    for count, step_grads in enumerate(grads):
        if rate is not None:
            optimizer.param_groups[0]["lr"] = rate(count)
        for path, p in own.items():
            grad = step_grads.get(path)
            p.grad = None if grad is None else grad.clone()
        optimizer.step()
        history.append({path: p.detach().clone() for path, p in own.items()})
    return history


def functional(
    optimizer: Any, params: Tensors, grads: Sequence[Tensors], *, donate: bool = False
) -> tuple[list[Tensors], Any]:
    """The parameters after each update of a transformation, and the last state."""
    params = {path: p.clone() for path, p in params.items()}
    state = optimizer.init(params)
    history = []
    for step_grads in grads:
        given = {path: g.clone() for path, g in step_grads.items()}
        params, state = optimizer.update(given, state, params, donate=donate)
        history.append({path: p.detach().clone() for path, p in params.items()})
    return history, state


def storages(tree: Any) -> set[int]:
    return {
        leaf.untyped_storage().data_ptr()
        for leaf in leaves(tree)
        if isinstance(leaf, torch.Tensor) and leaf.numel()
    }


def versions(tree: Any) -> list[int]:
    return [leaf._version for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]
