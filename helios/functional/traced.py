"""The step as operations on tensors alone, for a compiler to see through.

It computes what the kernel of `helios.functional.step` computes, in one function without a number
that changes from step to step: learning rates, counts and weights come in as one tensor, and what
the host wants to know goes out as one. Parameters, buffers and optimizer state are updated in
place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from helios.errors import NotTraceableError
from helios.functional.gradients import WithBuffers
from helios.functional.loss import Loss, Objective
from helios.functional.metrics import Mean
from helios.functional.precision import Policy
from helios.functional.transformation import Tensors

Lists = list[list[Any]]


class TracedLoss(NamedTuple):
    """What `helios.Loss` is while it is traced: a struct of msgspec cannot be made there."""

    total: torch.Tensor
    weight: Any = None
    metrics: Mapping[str, Any] = {}


class TracedMean(NamedTuple):
    """What `helios.Mean` is while it is traced."""

    total: Any = 0.0
    weight: Any = 0.0


class Part:
    """One objective of a traced step.

    Args:
        model: the model.
        objective: the objective.
        names: the paths of the parameters that it trains.

    Raises:
        NotTraceableError: if the optimizer's update cannot be traced.
    """

    def __init__(self, model: nn.Module, objective: Objective, names: tuple[str, ...]) -> None:
        self.objective = objective
        self.name = objective.name
        self.metric = objective.metric
        self.names = names
        self.optimizer = _traced(objective)
        self.wrapper = WithBuffers(model, objective.loss)
        self.started: frozenset[str] = frozenset()


def _traced(objective: Objective) -> Any:
    traced = getattr(objective.optimizer, "traced", None)
    if traced is None:
        raise NotTraceableError(
            f"the optimizer {type(objective.optimizer).__name__} has no update that can be traced"
        )
    return traced()


class Recipe:
    """What a traced step is made of, beside tensors. Nothing in it changes from step to step.

    Args:
        parts: the objectives, in order.
        policy: which dtype the losses compute in.
        device_type: where.
        skip: whether an update that is not finite leaves out what it did to the buffers, too.
        average: of the parameters, if one is kept.
        norms: whether the norms of the gradients are asked for.
    """

    def __init__(
        self,
        parts: list[Part],
        policy: Policy,
        device_type: str,
        skip: bool,
        average: Any,
        norms: bool = False,
    ) -> None:
        self.parts = parts
        self.policy = policy
        self.lowers = policy.lowers
        self.scales = policy.initial_scale() is not None
        self.device_type = device_type
        self.skip = skip
        self.average = average
        self.norms = norms


class Window(NamedTuple):
    """The open window of an objective.

    Args:
        grads: sums of gradients by path.
        weight: f64[], the sum of the weights.
        total: f[], the sum of the losses.
    """

    grads: Tensors
    weight: torch.Tensor
    total: torch.Tensor


class Outcome(NamedTuple):
    """What a traced step gives back, beside what it updates in place.

    Args:
        windows: the open windows, by objective; empty if they were closed.
        buffers: those that the forward pass has replaced.
        report: f64[n], for each objective ``(ok, loss of the window, weight of the window, norm of
            its gradients)``, then ``(total, weight)`` of each metric. A norm that was not asked for
            is 0.
        probes: for each objective f64[k], by trained parameter with a gradient: NaN if the gradient
            is not finite, else 0.
        names: the paths of those parameters, by objective.
        metrics: the names of the metrics.
    """

    windows: dict[str, Window]
    buffers: Tensors
    report: torch.Tensor
    probes: tuple[torch.Tensor, ...]
    names: tuple[tuple[str, ...], ...]
    metrics: tuple[str, ...]


SAMPLES, SCALE, AVERAGE, RATES = range(4)
"""Where in the numbers of a step the samples of the batch, the loss scale, the weight of the new
parameters in the average, and the first number of the optimizers are."""


def traced_step(
    recipe: Recipe,
    params: Tensors,
    buffers: Tensors,
    slots: dict[str, Lists],
    windows: dict[str, Window],
    average: Tensors | None,
    numbers: torch.Tensor,
    batch: Any,
    update: bool,
) -> Outcome:
    """Run one micro-batch.

    Args:
        recipe: what is fixed.
        params: the parameters by path; updated in place.
        buffers: the buffers by path; updated in place, unless the forward pass replaces them.
        slots: the tensors of each objective's optimizer state, in lists in the order of the
            parameters that it trains; updated in place.
        windows: the open windows, by objective; empty at the first micro-batch of one.
        average: the average of the parameters, updated in place; None if there is none.
        numbers: f64[n], what changes from step to step.
        batch: one micro-batch.
        update: whether it closes the windows.
    """
    opened: dict[str, Window] = {}
    replaced: Tensors = {}
    heads, probes, names = [], [], []
    counted: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    samples, at = numbers[SAMPLES], RATES
    updated = None
    for part in recipe.parts:
        before = {n: b.clone() for n, b in buffers.items()} if recipe.skip else {}
        loss, grads, after = _differentiate(recipe, part, params, buffers, numbers, batch)
        with torch.no_grad():
            if recipe.skip:
                after = _kept_finite(before, buffers, after)
            replaced.update(after)
            buffers = {**buffers, **after}
            weight = _number(1 if loss.weight is None else loss.weight, samples)
            own = {part.metric: _mean(loss.total, samples)}
            if loss.weight is not None:
                own[part.metric] = _number(loss.total, samples), weight
            for name, value in loss.metrics.items():
                own[name] = _mean(value, samples)
            for name, (value, count) in own.items():
                if name in counted:  # by an objective before
                    value, count = counted[name][0] + value, counted[name][1] + count
                counted[name] = value, count
            total = loss.total.detach()
            divided = loss.weight is not None
            window = windows.get(part.name)
            if window is not None:
                grads = {
                    n: window.grads[n] + g if n in window.grads else g for n, g in grads.items()
                }
                grads = {**window.grads, **grads}
                weight, total, divided = weight + window.weight, total + window.total, True
            names.append(tuple(grads))
            numbers_of_part = part.optimizer.numbers
            if not update:
                opened[part.name] = Window(grads, weight, total)
                one = torch.ones_like(samples)
                heads += [one, total.double(), weight, torch.zeros_like(samples)]
                continue
            if divided:
                grads = {n: g / weight.to(g.dtype) for n, g in grads.items()}
            if recipe.scales:
                grads = {n: g / numbers[SCALE].to(g.dtype) for n, g in grads.items()}
            probe = torch.stack([(g * 0).sum().double() for g in grads.values()])
            ok = torch.isfinite(probe).all() & torch.isfinite(total)
            probes.append(probe)
            norm = _norm(grads) if recipe.norms else torch.zeros_like(samples)
            heads += [ok.double(), total.double(), weight, norm]
            rates = numbers[at : at + numbers_of_part]
            _apply(part, grads, slots[part.name], params, rates, ok)
            updated = ok if updated is None else updated & ok
        at += numbers_of_part
    with torch.no_grad():
        if update and average is not None:
            _average(average, params, numbers[AVERAGE], updated)
        flat = [number for pair in counted.values() for number in pair]
        report = torch.stack([*heads, *flat])
    return Outcome(opened, replaced, report, tuple(probes), tuple(names), tuple(counted))


def _differentiate(
    recipe: Recipe,
    part: Part,
    params: Tensors,
    buffers: Tensors,
    numbers: torch.Tensor,
    batch: Any,
) -> tuple[TracedLoss, Tensors, Tensors]:
    with torch.enable_grad():
        leaves = {name: params[name].detach().requires_grad_() for name in part.names}
        tensors = {f"inner.{n}": t for n, t in {**params, **leaves, **buffers}.items()}
        if recipe.lowers:
            with recipe.policy.context(recipe.device_type):
                output, after = torch.func.functional_call(part.wrapper, tensors, (batch,))
        else:
            output, after = torch.func.functional_call(part.wrapper, tensors, (batch,))
        loss = _read(output)
        total = loss.total
        if recipe.scales:
            total = total * numbers[SCALE].to(total.dtype)
        gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    grads = {n: g for n, g in zip(part.names, gradients, strict=True) if g is not None}
    for name in grads:
        if name not in part.started:
            raise RuntimeError("a parameter has got its first gradient late")
    return loss, grads, {n: b.detach().clone() for n, b in after.items() if b is not buffers[n]}


def _read(output: Any) -> TracedLoss:
    if isinstance(output, torch.Tensor):
        return TracedLoss(output)
    if isinstance(output, TracedLoss):
        return output
    total, metrics = output
    return TracedLoss(total, None, metrics)


def _mean(value: Any, samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum and the weight of a metric; see `helios.functional.metrics.as_mean`."""
    if isinstance(value, TracedMean):
        return _number(value.total, samples), _number(value.weight, samples)
    if isinstance(value, torch.Tensor) and value.ndim:
        wide = value.detach().double()
        return wide.sum(), torch.ones_like(wide).sum()
    return _number(value, samples) * samples, samples


def _number(value: Any, like: torch.Tensor) -> torch.Tensor:
    """Return a number as f64[] on the device of ``like``."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(like.device, torch.float64)
    number: torch.Tensor = torch.ones_like(like) * value
    return number


def _apply(
    part: Part, grads: Tensors, slots: Lists, params: Tensors, rates: torch.Tensor, ok: torch.Tensor
) -> None:
    """Update parameters and optimizer state in place, if ``ok``."""
    which = [i for i, name in enumerate(part.names) if name in grads]
    grads = {part.names[i]: grads[part.names[i]] for i in which}
    new = {name: params[name].clone() for name in grads}
    old_slots = [[column[i] for i in which] if column else [] for column in slots]
    new_slots = [[None if s is None else s.clone() for s in column] for column in old_slots]
    part.optimizer.trace(grads, new_slots, new, rates)
    for name, tensor in new.items():
        params[name].copy_(torch.where(ok, tensor, params[name]))
    for old_column, new_column in zip(old_slots, new_slots, strict=True):
        for old, slot in zip(old_column, new_column, strict=True):
            if old is not None and slot is not None:
                old.copy_(torch.where(ok, slot, old))


def _norm(grads: Tensors) -> torch.Tensor:
    norms = torch.stack([torch.linalg.vector_norm(g).double() for g in grads.values()])
    norm: torch.Tensor = torch.linalg.vector_norm(norms)
    return norm


def _average(average: Tensors, params: Tensors, weight: torch.Tensor, ok: Any) -> None:
    for name, old in average.items():
        new = params[name]
        if old.is_floating_point() or old.is_complex():
            new = torch.lerp(old, new, weight.to(old.dtype))
        old.copy_(torch.where(ok, new, old))


def _kept_finite(before: Tensors, buffers: Tensors, after: Tensors) -> Tensors:
    """Put the buffers back if one became NaN or infinite; return those that were replaced."""
    now = {**buffers, **after}
    found = [
        (torch.isfinite(old) & ~torch.isfinite(now[name])).any()
        for name, old in before.items()
        if old.is_floating_point() and now[name].shape == old.shape
    ]
    if not found:
        return after
    spoiled = torch.stack(found).any()
    for name, old in before.items():
        if name not in after:
            buffers[name].copy_(torch.where(spoiled, old, buffers[name]))
    return {n: torch.where(spoiled, before[n], b) for n, b in after.items()}


STAND_INS = {Loss: TracedLoss, Mean: TracedMean}
"""What is made in the place of a struct while a step is traced."""
