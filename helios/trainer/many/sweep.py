"""One call of torch's function for members whose learning rates and weight decays differ.

The function takes one rate. But the step of most rules is the rate times something that depends on
neither the rate nor the parameter: the function is given zeros for parameters, a rate of 1 and no
decay, and what it makes of the zeros is multiplied by the rate of each member.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from helios.functional.stacked import along
from helios.optim.forms import Function

NOT_LINEAR = (torch.optim.Rprop, torch.optim.ASGD)
"""Rules that keep step sizes of their own, or averages, in which the rate is."""


class Sweep:
    """Updates stacked parameters by a rule, with a rate and a decay for each member.

    Args:
        cls: the class of the rule.
        options: its options, those of any member.
        decays: the weight decay of each member.

    Law:
        The updates are those of each member's own rule, up to rounding
        (``tests/trainer/many/test_rules.py``).
    """

    def __init__(
        self,
        cls: type[torch.optim.Optimizer],
        options: Mapping[str, Any],
        decays: Sequence[float],
    ) -> None:
        self._options = {**options, "lr": 1.0}
        if "weight_decay" in options:
            self._options["weight_decay"] = 0.0
        self._decays = list(decays)
        self._is_decoupled = cls is torch.optim.AdamW or bool(options.get("decoupled_weight_decay"))
        self._steps: list[torch.Tensor] = []

    def __call__(
        self,
        function: Function,
        leaves: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor],
        slots: Sequence[Any],
        rates: Sequence[float],
    ) -> None:
        """Apply one update, in place.

        Args:
            function: updates lists of parameters, as the function of the class does.
            leaves: the parameters, ``[members, ...]`` each.
            grads: their gradients; overwritten.
            slots: the state of the rule, in the order in which its function takes it.
            rates: the learning rate of each member.
        """
        rate = _columns(rates, leaves)
        if any(self._decays):
            if self._is_decoupled:
                factors = [1 - lr * decay for lr, decay in zip(rates, self._decays, strict=True)]
                for leaf, factor in zip(leaves, _columns(factors, leaves), strict=True):
                    leaf.mul_(factor)
            else:
                decays = _columns(self._decays, leaves)
                for grad, leaf, decay in zip(grads, leaves, decays, strict=True):
                    grad.addcmul_(leaf, decay)
        if [step.shape for step in self._steps] != [leaf.shape for leaf in leaves]:
            self._steps = [torch.empty_like(leaf) for leaf in leaves]
        torch._foreach_zero_(self._steps)
        function(self._steps, list(grads), *slots, **self._options)
        for leaf, step, factor in zip(leaves, self._steps, rate, strict=True):
            leaf.addcmul_(step, factor)


def _columns(values: Sequence[float], leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return one number for each member, in the dtype and a shape for each parameter."""
    wide = torch.tensor(values, dtype=torch.float64)
    made: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}
    found = []
    for leaf in leaves:
        key = leaf.dtype, leaf.device
        if key not in made:
            made[key] = wide.to(leaf.device, leaf.dtype)
        found.append(along(made[key], leaf))
    return found
