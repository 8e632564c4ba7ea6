"""How a model is spread over the ranks: the options, and doing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from msgspec.structs import replace
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from helios.errors import ModelError
from helios.functional.binding import bind_by
from helios.functional.loss import Objective
from helios.trainer.ranks.elementwise import on_shards
from helios.trainer.ranks.options import FSDP
from helios.trainer.ranks.sharding import Root, ShardedBinding


def shard(
    model: Any, options: FSDP, device: torch.device | None = None, mesh: DeviceMesh | None = None
) -> ShardedBinding:
    """Spread a model over the ranks. Every rank calls it, before a state or a step is made.

    The model's ``setup()`` has run, under the same seed on every rank, so that all have the same
    parameters; they may still be on the CPU, and come to the device one wrapped module at a time.
    From here on `helios.init_state` and `helios.make_step` see this rank's shards.

    Args:
        model: a `helios.Model`.
        options: how.
        device: (optional) where the shards go; by default where the model is.
        mesh: (optional) the ranks, in one dimension; by default all of them.

    Raises:
        ModelError: if the model cannot be sharded: a step of its own, an optimizer that looks at
            more than one element at a time, a parameter without rows, one that is shared by two
            wrapped modules, or parameters of two dtypes in one of them.
    """
    rules = model.objectives()
    for objective in rules:
        on_shards(objective.optimizer, objective.name)
    if device is None:
        device = next(iter(model.parameters())).device
    if mesh is None:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    wrapped = [m for m in model.modules() if m is not model and options.wraps(m)]
    _check_parameters(model, wrapped)
    how: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": options.reshard_after_forward,
        "mp_policy": MixedPrecisionPolicy(options.param_dtype, options.reduce_dtype),
    }
    root = Root(model)
    for module in [*reversed(wrapped), root]:  # the inner ones first
        sharded: Any = fully_shard(module, **how)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
        # A parameter that took no part on one rank may have on another.
        sharded.set_reduce_scatter_unused_params(True)
    binding = ShardedBinding(model, root, mesh)
    bind_by(binding)
    model.__dict__["objectives"] = _Objectives(model.objectives, mesh)
    return binding


class _Objectives:
    """The objectives of a model, with update rules for shards."""

    def __init__(self, whole: Callable[[], Any], mesh: DeviceMesh) -> None:
        self._whole = whole
        self._mesh = mesh

    def __call__(self) -> list[Objective]:
        group = self._mesh.get_group()
        return [
            replace(objective, optimizer=on_shards(objective.optimizer, objective.name, group))
            for objective in self._whole()
        ]


def _check_parameters(model: nn.Module, wrapped: list[nn.Module]) -> None:
    owner: dict[int, int] = {}  # of a parameter, the innermost wrapped module, by their ids
    dtypes: dict[int, tuple[str, torch.dtype]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        inside = [m for m in wrapped if any(s is module for s in m.modules())]
        home = id(min(inside, key=lambda m: len(list(m.modules())))) if inside else 0
        for key, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{key}" if prefix else key
            if parameter.ndim == 0:
                raise ModelError(
                    f"parameter {name!r}: received a scalar; expected at least one dimension, whose"
                    " rows can be shared among the ranks. Make it a tensor of shape (1,)"
                )
            if not parameter.is_contiguous():
                raise ModelError(
                    f"parameter {name!r}: received strides {parameter.stride()}; expected a "
                    "contiguous parameter. Assign parameter.contiguous() in setup()"
                )
            if owner.setdefault(id(parameter), home) != home:
                raise ModelError(
                    f"parameter {name!r} is shared by two modules that are wrapped each by itself; "
                    "expected shared parameters in one wrapped module, or in none. Change wrap="
                )
            if parameter.requires_grad:
                first, dtype = dtypes.setdefault(home, (name, parameter.dtype))
                if parameter.dtype != dtype:
                    raise ModelError(
                        f"parameter {name!r} is {parameter.dtype} and {first!r} is {dtype}, and "
                        "both come together in one module; expected one dtype in each wrapped "
                        "module. Change wrap= or the dtypes"
                    )
