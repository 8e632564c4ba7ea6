"""Update rules on shards: those that treat every element by itself need not know of them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from helios.errors import ModelError
from helios.functional.transformation import Tensors, Transformation
from helios.functional.tree import clone
from helios.optim import TorchOptimizer, clip_by_global_norm, clip_by_value
from helios.optim.binding import ELEMENTWISE
from helios.optim.chain import Chain
from helios.optim.clip import State
from helios.optim.gradient_transformation import GradientTransformation
from helios.optim.groups import Groups
from helios.optim.kinds import grouped


def on_shards(
    rule: Transformation, objective: str, group: dist.ProcessGroup | None = None
) -> Transformation:
    """Return an update rule that does to shards what the given one does to whole parameters.

    Its state has the structure of the given one's, with shards in the place of whole tensors.

    Args:
        rule: an optimizer, or a chain of gradient transformations and one.
        objective: whose rule it is, for the error.
        group: the ranks; None for all.

    Raises:
        ModelError: if some part of the rule looks at more than one element at a time. A rule or a
            transformation of one's own says that it does not by an attribute ``elementwise`` that
            is true.
    """
    if isinstance(rule, Chain):
        before = {name: _before(part, objective, group) for name, part in rule.before.items()}
        return Chain(before, rule.name, on_shards(rule.optimizer, objective, group))
    if isinstance(rule, Groups):
        return Groups({p: on_shards(r, objective, group) for p, r in rule.optimizers.items()})
    if isinstance(rule, TorchOptimizer):
        if rule.cls in ELEMENTWISE:
            return rule
        raise _refused(objective, rule.cls.__name__)
    if getattr(rule, "elementwise", False):
        return rule
    raise _refused(objective, type(rule).__name__)


def _before(part: Any, objective: str, group: dist.ProcessGroup | None) -> GradientTransformation:
    if isinstance(part, clip_by_global_norm):
        return ClipOverRanks(part.max_norm, part.norm_type, group)
    if isinstance(part, clip_by_value) or getattr(part, "elementwise", False):
        whole: GradientTransformation = part
        return whole
    raise _refused(objective, type(part).__name__)


def _refused(objective: str, name: str) -> ModelError:
    known = ", ".join(sorted(cls.__name__ for cls in ELEMENTWISE))
    return ModelError(
        f"{objective}: received {name}, and the parameters are sharded over the ranks; expected an "
        f"optimizer that treats every element by itself ({known}), after clipping or nothing. Use "
        "helios.DDP, or, if a rule of your own does so, give it an attribute elementwise = True"
    )


class ClipOverRanks(msgspec.Struct, frozen=True):
    """`helios.optim.clip_by_global_norm` on gradients of which every rank has some rows.

    The norm is over all ranks, which costs one collective of one number.

    Args:
        max_norm: the largest norm that passes unscaled.
        norm_type: the order of the norm; ``math.inf`` for the largest absolute value.
        group: the ranks; None for all.
    """

    max_norm: float
    norm_type: float = 2.0
    group: Any = None

    def init(self, params: Tensors) -> State:
        """Return the empty state."""
        return {}

    def apply(
        self, grads: Tensors, state: State, params: Tensors, *, donate: bool = False
    ) -> tuple[Tensors, State]:
        """Clip; see `helios.optim.gradient_transformation.GradientTransformation`.

        Which gradients there are is the same on all ranks.
        """
        clipped: Tensors = grads if donate else clone(grads)
        if not clipped:
            return clipped, state
        with torch.no_grad():
            norm = norm_over_ranks(clipped, float(self.norm_type), self.group)
            factor = torch.clamp(float(self.max_norm) / (norm + 1e-6), max=1.0)
            for (tensors,) in grouped(clipped.values()):
                torch._foreach_mul_(tensors, factor.to(tensors[0].device, tensors[0].dtype))
        return clipped, state


def norm_over_ranks(
    grads: Tensors, order: float = 2.0, group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Return f64[], the norm over all gradients, of which every rank has some rows.

    Every rank calls it at the same place, with gradients of the same parameters.

    Args:
        grads: this rank's rows of each, by path; at least one.
        order: the order of the norm; ``math.inf`` for the largest absolute value.
        group: the ranks; None for all.
    """
    device = next(iter(grads.values())).device
    here = [grad for grad in grads.values() if grad.numel()]  # no elements have no maximum
    norm = torch.zeros((), dtype=torch.float64, device=device)
    if here:
        norm = torch.nn.utils.get_total_norm(here, order).to(device, torch.float64)
    if math.isinf(order):
        dist.all_reduce(norm, op=dist.ReduceOp.MAX, group=group)
        return norm
    norm = norm**order
    dist.all_reduce(norm, group=group)
    return norm ** (1 / order)
