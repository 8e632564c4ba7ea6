"""The statistics of batch normalisation, computed anew for the parameters of a state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from msgspec.structs import replace
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from helios.errors import ModelError
from helios.functional import rng
from helios.functional.binding import bind, in_mode
from helios.functional.state import Carry, TrainingState, take_carry
from helios.functional.tree import clone
from helios.model.model import Model


def update_bn(model: Model, state: TrainingState, batches: Iterable[Any]) -> TrainingState:
    """Return a state whose batch normalisation has the statistics of its averaged parameters.

    Running statistics follow the parameters along a run; an average of parameters has others. Here
    they are the mean over ``batches`` with equal weights, in training mode, without gradients. The
    parameters of the new state are the average, if ``model.average`` is one to evaluate with: those
    and the new buffers belong together. Nothing else of the state changes.

    Args:
        model: the model; left as it is.
        state: a state of it; left as it is.
        batches: what `Model.loss` takes, on the model's device.

    Returns:
        The new state. ``model.load_state_dict({**carry.params, **carry.buffers}, strict=False)``
        takes its carry into the model.

    Raises:
        ModelError: if the model has a step of its own, or there is no batch.

    Law:
        The statistics are those of ``torch.optim.swa_utils.update_bn``, bit for bit
        (``tests/model/test_batch_norm.py``).

    Example:
        >>> import helios
        >>> class Normed(helios.Model):
        ...     def setup(self, fast_init=False):
        ...         self.net = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
        ...         self.optimizer = helios.optim.SGD(lr=0.1)
        ...         self.average = helios.optim.average(None)
        ...
        ...     def loss(self, batch):
        ...         return self.net(batch).square().mean()
        >>> model = Normed("normed")
        >>> state = helios.init_state(model)
        >>> new = update_bn(model, state, [torch.full((2, 1), 3.0), torch.full((2, 1), 5.0)])
        >>> new.carry.buffers["net.0.running_mean"]
        tensor([4.])
    """
    carry = take_carry(state)
    if not isinstance(carry, Carry):
        raise ModelError("update_bn: the model has a step of its own, whose carry has no buffers")
    averaged = carry.average is not None and getattr(model.average, "evaluate", False)
    params = clone(carry.average if averaged else carry.params)
    own = clone(carry.buffers)
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    ]
    momenta = [layer.momentum for layer in layers]
    binding = bind(model)
    saved = rng.generator_states()
    seen = False
    try:
        with binding.borrowed(), in_mode(model, training=True), torch.no_grad():
            binding.lend(params, own)
            still = [layer for layer in layers if not layer.training]
            for layer in layers:
                if layer not in still:
                    layer.reset_running_stats()
                    layer.momentum = None  # the mean over all batches, with equal weights
            for index, batch in enumerate(batches):
                seen = True
                rng.seed_generators(rng.fold(state.seed, "update_bn", index))
                with model.precision.context(model.device.type):
                    for objective in _losses(model):
                        objective(batch)
            after = binding.buffers(own)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        rng.restore_generators(saved)
    if not seen:
        raise ModelError("batches: received none; expected at least one batch to average over")
    statistics = _statistics(model, layers)
    buffers = {
        name: after[name] if name in statistics else buffer.clone()
        for name, buffer in carry.buffers.items()
    }
    return replace(state, carry=replace(clone(carry), params=params, buffers=buffers))


def _losses(model: Model) -> list[Any]:
    return [function for _, function in model._losses()]


def _statistics(model: nn.Module, layers: list[Any]) -> set[str]:
    wanted = {id(layer) for layer in layers}
    return {
        f"{prefix}.{key}" if prefix else key
        for prefix, layer in model.named_modules(remove_duplicate=False)
        if id(layer) in wanted
        for key in layer._buffers
    }
