"""States of several members in one: every tensor has a first dimension for the members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from msgspec.structs import replace

from helios.errors import StateMismatchError
from helios.functional.loss import Loss
from helios.functional.metrics import Mean, Metrics
from helios.functional.state import Accumulator, Carry, TrainingState, take_carry
from helios.functional.transformation import Tensors

SKIPPED = "<skipped>"
"""Where the optimizer states of a stacked carry keep how many updates each member left out."""


def stack(trees: Sequence[Any]) -> Any:
    """Stack trees of dicts: ``[members, ...]`` for each tensor, a list for any other leaf.

    Example:
        >>> stack([{"a": 1, "b": torch.zeros(2)}, {"a": 2, "b": torch.ones(2)}])
        {'a': [1, 2], 'b': tensor([[0., 0.],
                [1., 1.]])}
    """
    first = trees[0]
    if isinstance(first, dict):
        if any(list(tree) != list(first) for tree in trees):
            differ = [key for tree in trees for key in {*tree} ^ {*first}]
            raise StateMismatchError(f"the states of the members differ in {sorted(set(differ))}")
        return {key: stack([tree[key] for tree in trees]) for key in first}
    if isinstance(first, torch.Tensor):
        return torch.stack([tree.detach() for tree in trees])
    return list(trees)


def unstack(tree: Any, member: int) -> Any:
    """Return the tree of one member, in tensors of its own: the inverse of `stack`."""
    if isinstance(tree, dict):
        return {key: unstack(value, member) for key, value in tree.items()}
    return _of(tree, member)


def rows(tensors: Tensors, member: int) -> Tensors:
    """Return the tensors of one member, as views."""
    return {name: tensor[member] for name, tensor in tensors.items()}


def stack_carries(carries: Sequence[Carry]) -> Carry:
    """Return the carry of all members.

    Raises:
        StateMismatchError: if they differ in more than values.
    """
    first = carries[0]
    opt_state = stack([carry.opt_state for carry in carries])
    opt_state[SKIPPED] = [carry.skipped for carry in carries]
    return Carry(
        params=stack([carry.params for carry in carries]),
        buffers=stack([carry.buffers for carry in carries]),
        opt_state=opt_state,
        accumulators={
            name: Accumulator(
                stack([carry.accumulators[name].grads for carry in carries]),
                _joined([carry.accumulators[name].weight for carry in carries]),
                _joined([carry.accumulators[name].total for carry in carries]),
            )
            for name in first.accumulators
        },
        average=None if first.average is None else stack([carry.average for carry in carries]),
        metrics={
            name: Mean(
                _sums([carry.metrics[name].total for carry in carries]),
                _sums([carry.metrics[name].weight for carry in carries]),
            )
            for name in first.metrics
        },
        best=_best([carry.best for carry in carries]),
        skipped=sum(carry.skipped for carry in carries),
    )


def member_state(state: TrainingState, member: int) -> TrainingState:
    """Return the state of one member, as a run of it alone has it, in tensors of its own.

    Args:
        state: of all members.
        member: the place of the member, from 0.

    Law:
        Stacking the states of all members gives the state of all, bit for bit
        (``tests/functional/test_stacked.py``).
    """
    carry = take_carry(state)
    best: Any = carry.best
    opt_state = {name: value for name, value in carry.opt_state.items() if name != SKIPPED}
    own = Carry(
        params=unstack(carry.params, member),
        buffers=unstack(carry.buffers, member),
        opt_state=unstack(opt_state, member),
        accumulators={
            name: Accumulator(
                unstack(window.grads, member),
                _part(window.weight, member),
                _part(window.total, member),
            )
            for name, window in carry.accumulators.items()
        },
        average=None if carry.average is None else unstack(carry.average, member),
        metrics={
            name: Mean(_sum(mean.total, member), _sum(mean.weight, member))
            for name, mean in carry.metrics.items()
        },
        best=None if best is None else best[member],
        skipped=carry.opt_state[SKIPPED][member],
    )
    return replace(state, carry=own)


def loss_metrics(name: str, loss: Loss, samples: int) -> Metrics:
    """Return what the losses of all members count into the metrics, ``f64[members]`` each.

    Args:
        name: the name of the loss among the metrics.
        loss: ``[members]``, and its metrics with a first dimension for the members.
        samples: samples in the batch, the weight of what is a mean over it.
    """
    if loss.weight is None:
        found = {name: _mean(loss.total, samples)}
    else:
        found = {name: Mean(_wide(loss.total), _wide(loss.weight))}
    for key, value in loss.metrics.items():
        if isinstance(value, Mean):
            found[key] = Mean(_wide(value.total), _wide(value.weight))
        elif isinstance(value, torch.Tensor):
            found[key] = _mean(value, samples)
        else:
            found[key] = Mean(float(value) * samples, samples)
    return found


def each(metrics: Mapping[str, Mean], members: int) -> list[dict[str, float]]:
    """Return the means of every member on the host, by name. Waits for the device."""
    found: list[dict[str, float]] = [{} for _ in range(members)]
    for name, mean in metrics.items():
        totals, weights = _numbers(mean.total, members), _numbers(mean.weight, members)
        for values, total, weight in zip(found, totals, weights, strict=True):
            values[name] = total / weight if weight else float("nan")
    return found


def along(values: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Return ``[members]`` in a shape that is broadcast against ``[members, ...]``."""
    return values.view(-1, *(1,) * (tensor.ndim - 1))


def _mean(value: torch.Tensor, samples: int) -> Mean:
    if value.ndim == 1:
        return Mean(_wide(value).mul_(samples), samples)
    total = value.detach().sum(tuple(range(1, value.ndim)), dtype=torch.float64)
    return Mean(total, value.numel() // len(value))


def _wide(value: Any) -> Any:
    """Return a private copy of sums in float64."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(torch.float64, copy=True)
    return value


def _numbers(value: Any, members: int) -> list[float]:
    if isinstance(value, torch.Tensor):
        return [float(number) for number in value.tolist()]
    return [float(value)] * members


def _joined(values: list[Any]) -> Any:
    """Stack tensors; take a number that all have in common as it is."""
    return torch.stack(values) if isinstance(values[0], torch.Tensor) else values[0]


def _sums(values: list[Any]) -> Any:
    """Stack sums in the making, which one member alone keeps as numbers on the CPU."""
    if isinstance(values[0], torch.Tensor):
        return torch.stack(values)
    if all(type(value) is int for value in values) and len(set(values)) == 1:
        return values[0]  # a count, which all have in common
    return torch.tensor(values, dtype=torch.float64)


def _sum(value: Any, member: int) -> Any:
    """Return a member's sum as one alone keeps it; see `helios.functional.metrics`."""
    own = _part(value, member)
    if isinstance(own, torch.Tensor) and own.is_cpu:
        number: Any = own.tolist()
        return float(number)
    return own


def _part(value: Any, member: int) -> Any:
    return value[member].clone() if isinstance(value, torch.Tensor) else value


def _of(value: Any, member: int) -> Any:
    return value[member].clone() if isinstance(value, torch.Tensor) else value[member]


def _best(values: list[float | None]) -> Any:
    return None if all(value is None for value in values) else tuple(values)
