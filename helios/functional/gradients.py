"""The engines that turn a loss into gradients. One kernel runs on any of them.

Both take the state's tensors and a batch, and add the gradients of the batch to those of the window
so far. ``autograd`` is the reference: plain PyTorch on a module that holds the state's tensors, at
the speed of a hand-written loop, and the gradients are those that ``loss.backward()`` leaves in
``.grad``. ``func`` goes through ``torch.func``, costs about twice as much where operator overhead
dominates, and is what ``vmap`` and whole-step compilation need.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import torch
from torch import nn
from torch.autograd.graph import _engine_run_backward

from helios.errors import ModelError
from helios.functional.binding import Binding
from helios.functional.loss import Loss, Objective, check_differentiable, read_loss
from helios.functional.metrics import Metrics
from helios.functional.precision import Policy
from helios.functional.state import Accumulator
from helios.functional.transformation import Tensors
from helios.functional.tree import flatten, unflatten


class Gradients(msgspec.Struct, frozen=True, eq=False):
    """What an engine gives back.

    Args:
        loss: the loss of the micro-batch, without its graph; unscaled.
        grads: gradients by path, summed over the window so far; scaled, if there is a loss scale.
        params: the parameters after the forward pass; only frozen ones may have changed.
        buffers: the buffers after the forward pass.
        metrics: what the micro-batch counts into the metrics; None if the loss says all of it.
        weight: f64[] or a number, the weight of the whole window, of an engine that knows it
            better than the sum of the losses' own weights; None for that sum.
    """

    loss: Loss
    grads: Tensors
    params: Tensors
    buffers: Tensors
    metrics: Metrics | None = None
    weight: Any = None


class Turn(msgspec.Struct, frozen=True, gc=False):
    """Where in a run a micro-batch stands.

    Args:
        update: whether it closes its window.
        seed: the seed of the run.
        iteration: the global iteration, 1 for the first micro-batch.
    """

    update: bool
    seed: int
    iteration: int


class Engine(Protocol):
    """Compute a loss and its gradients. The tensors given may be overwritten."""

    def __call__(
        self,
        objective: Objective,
        trained: tuple[str, ...],
        params: Tensors,
        buffers: Tensors,
        window: Accumulator,
        batch: Any,
        scale: float,
        turn: Turn,
    ) -> Gradients:
        """Run one micro-batch.

        Args:
            objective: whose loss to compute.
            trained: the paths of the parameters to differentiate for.
            params: the parameters by path.
            buffers: the buffers by path.
            window: the window so far.
            batch: one micro-batch.
            scale: the factor on the loss before it is differentiated.
            turn: where in the run it stands.
        """
        ...


class AutogradEngine:
    """``loss.backward()`` on the module itself, holding the state's tensors.

    A parameter that took no part in the loss has no gradient, as in a hand-written loop: the
    optimizer leaves it alone, weight decay included.
    """

    def __init__(self, binding: Binding, policy: Policy) -> None:
        self._binding = binding
        self._policy = policy

    def __call__(
        self,
        objective: Objective,
        trained: tuple[str, ...],
        params: Tensors,
        buffers: Tensors,
        window: Accumulator,
        batch: Any,
        scale: float,
        turn: Turn,
    ) -> Gradients:
        """Run one micro-batch; see `Engine`."""
        binding = self._binding
        binding.lend(params, buffers)
        loss, grads = differentiate(
            binding, self._policy, objective, trained, batch, scale=scale, window=window.grads
        )
        return Gradients(
            loss,
            grads,
            binding.parameters_after(params) if binding.frozen else params,
            binding.buffers(buffers) if buffers else buffers,
        )


Through = Callable[[Loss, torch.Tensor], tuple[torch.Tensor, Sequence[torch.Tensor]]]
"""Takes a loss and what is to be differentiated; returns that, and more leaves to do so for."""


def differentiate(
    binding: Binding,
    policy: Policy,
    objective: Objective,
    trained: tuple[str, ...],
    batch: Any,
    *,
    scale: float = 1.0,
    share: float = 1.0,
    times: float = 1.0,
    window: Tensors | None = None,
    through: Through | None = None,
) -> tuple[Loss, Tensors]:
    """Run forward and backward on the module, with the tensors that it has been lent.

    Args:
        binding: of the module.
        policy: which dtype the loss computes in.
        objective: whose loss to compute.
        trained: the paths of the parameters to differentiate for.
        batch: what the loss is computed on.
        scale: the factor on the loss before it is differentiated.
        share: one more factor on a loss that is a mean: which part of the micro-batch it is of.
        times: one more factor on any loss: what a reduction will divide by.
        window: (optional) gradients to add to, in place.
        through: (optional) what stands between the forward and the backward pass.

    Returns:
        The loss without its graph and without the factors; the gradients by path, of those
        parameters that have one.
    """
    leaves = binding.leaves(trained)
    if window:
        for name, leaf in zip(trained, leaves, strict=True):
            leaf.grad = window.get(name)
    try:
        with NOTHING if torch.is_grad_enabled() else torch.enable_grad():
            with policy.context(leaves[0].device.type) if policy.lowers else NOTHING:
                output = objective.loss(batch)
            loss = read_loss(output, objective.name)
            check_differentiable(loss, objective.name)
            factor = scale * times * (1.0 if loss.weight is not None else share)
            total = loss.total if factor == 1.0 else loss.total * factor
            if through is not None:
                total, more = through(loss, total)
                torch.autograd.backward(total, inputs=[*leaves, *more])
            elif binding.is_plain and type(total) is torch.Tensor:
                backward(total, leaves)
            else:
                torch.autograd.backward(total, inputs=leaves)
    finally:
        grads = taken(trained, leaves)
    return without_graph(loss), grads


NOTHING = contextlib.nullcontext()
"""A context that does nothing, made once."""


def backward(total: torch.Tensor, leaves: tuple[torch.Tensor, ...]) -> None:
    """Add the gradients of a loss to those of some leaves.

    It is what ``torch.autograd.backward`` calls once it has looked at all that it may be given,
    which takes as long as a small layer. Nothing here may be of a class of its own.

    Args:
        total: f[], or f[n] for the sum of its elements.
        leaves: where gradients are wanted.
    """
    _engine_run_backward(
        (total,),
        (torch.ones_like(total),),
        False,
        False,
        leaves,
        allow_unreachable=True,
        accumulate_grad=True,
    )


def taken(names: Sequence[str], leaves: Sequence[torch.Tensor]) -> Tensors:
    """Take the gradients off some leaves, and return those that there are, by path."""
    grads: Tensors = {}
    for name, leaf in zip(names, leaves, strict=True):
        if (grad := leaf.grad) is not None:
            grads[name] = grad
            leaf.grad = None
    return grads


class FuncEngine:
    """``torch.func.grad`` of the loss as a function of the parameters.

    Every trained parameter gets a gradient, zero where it took no part.
    """

    def __init__(self, binding: Binding, policy: Policy) -> None:
        self._binding = binding
        self._policy = policy
        self._device_type = next(iter(binding.parameters.values())).device.type

    def __call__(
        self,
        objective: Objective,
        trained: tuple[str, ...],
        params: Tensors,
        buffers: Tensors,
        window: Accumulator,
        batch: Any,
        scale: float,
        turn: Turn,
    ) -> Gradients:
        """Run one micro-batch; see `Engine`."""
        wrapper = WithBuffers(self._binding.module, objective.loss)
        fixed = {name: tensor for name, tensor in params.items() if name not in trained}
        plain: list[Any] = []  # what is no tensor cannot leave a transform, and goes around it

        def scaled(wanted: Tensors) -> tuple[torch.Tensor, tuple[list[torch.Tensor], Tensors]]:
            # Buffers are updated in place: a transform forbids that on tensors from outside of it.
            own = {name: buffer.clone() for name, buffer in buffers.items()}
            tensors = {f"inner.{n}": t for n, t in {**fixed, **wanted, **own}.items()}
            with self._policy.context(self._device_type):
                output, after = torch.func.functional_call(wrapper, tensors, (batch,))
            loss = read_loss(output, objective.name)
            parts, structure = flatten((loss.total, loss.weight, dict(loss.metrics)))
            where = [i for i, part in enumerate(parts) if isinstance(part, torch.Tensor)]
            values = [parts[i] for i in where]
            for i in where:
                parts[i] = None
            plain[:] = parts, where, structure
            return loss.total * scale, (values, after)

        with torch.enable_grad():
            wanted = {name: params[name] for name in trained}
            grads, (values, after) = torch.func.grad(scaled, has_aux=True)(wanted)
        parts, where, structure = plain
        for i, value in zip(where, values, strict=True):
            parts[i] = value
        loss = Loss(*unflatten(structure, parts))
        for name, earlier in window.grads.items():
            grads[name] = earlier + grads[name]
        return Gradients(
            without_graph(loss), grads, params, {n: t.detach() for n, t in after.items()}
        )


class WithBuffers(nn.Module):
    """Returns the buffers beside what a loss returns, so that reassigned ones are not lost.

    Args:
        inner: the model.
        loss: of a batch, computed with it.
    """

    def __init__(self, inner: nn.Module, loss: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner = inner
        self._loss = loss

    def forward(self, batch: Any) -> tuple[Any, Tensors]:
        """Return what the loss returns, and the buffers after it, by path."""
        return self._loss(batch), dict(self.inner.named_buffers())


def without_graph(loss: Loss) -> Loss:
    """Return a loss that holds no graph."""
    weight = loss.weight
    if isinstance(weight, torch.Tensor):
        weight = weight.detach()
    return Loss(loss.total.detach(), weight, loss.metrics)


MakeEngine = Callable[[Binding, Policy], Engine]
"""Makes an engine for a model's binding and its precision."""

ENGINES: dict[str, type[AutogradEngine] | type[FuncEngine]] = {
    "autograd": AutogradEngine,
    "func": FuncEngine,
}
"""The engines by name."""


def trained_names(model: Any) -> tuple[tuple[Objective, tuple[str, ...]], ...]:
    """Pair each objective of a model with the paths of the parameters that it trains.

    Raises:
        ModelError: if an objective trains no parameter, or two have one name.
    """
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    pairs = []
    for objective in model.objectives():
        wanted = None
        if objective.modules is not None:
            wanted = {id(p) for module in objective.modules for p in module.parameters()}
        names = tuple(
            name
            for name, parameter in parameters.items()
            if parameter.requires_grad and (wanted is None or id(parameter) in wanted)
        )
        if not names:
            raise ModelError(
                f"objective {objective.name!r} trains no parameter: the model has "
                f"{len(parameters)}, of which {sum(p.requires_grad for p in parameters.values())} "
                "require grad and none is in its modules"
            )
        pairs.append((objective, names))
    if len({objective.name for objective, _ in pairs}) != len(pairs):
        raise ModelError(f"two objectives have one name: {[o.name for o, _ in pairs]}")
    return tuple(pairs)
