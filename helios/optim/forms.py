"""The functions behind torch's optimizers: one update of tensors, without an optimizer object.

``torch.optim.AdamW(...).step()`` gathers its tensors and calls ``torch.optim.adamw.adamw``. Calling
that function has the same numerics without the gathering, and ``torch.compile`` and
``torch.func.vmap`` can see through it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.optim import adadelta, adagrad, adam, adamax, adamw, asgd, nadam, radam, rmsprop, rprop
from torch.optim import sgd as sgd_module

Function = Callable[..., None]


class Form(NamedTuple):
    """How the function of an optimizer class is called.

    Args:
        function: updates lists of parameters, in place.
        slots: the names of the per-parameter state, in the order in which it takes their lists.
        takes: the names of its keyword arguments.
        gaps: whether it takes None for the state that a parameter has not got; otherwise a list
            that no parameter has is empty.
    """

    function: Function
    slots: tuple[str, ...]
    takes: frozenset[str]
    gaps: bool = False

    def lists(self, slots: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
        """Return the state of each parameter as the lists that the function takes."""
        return [
            []
            if not self.gaps and slots and name not in slots[0]
            else [of_one.get(name) for of_one in slots]
            for name in self.slots
        ]

    def options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments that the options of a parameter group come down to."""
        named = {name: value for name, value in group.items() if name in self.takes}
        for option, names in _PAIRS.items():
            if option in group:
                named.update(
                    (name, value)
                    for name, value in zip(names, group[option], strict=True)
                    if name in self.takes
                )
        return named


_PAIRS = {
    "betas": ("beta1", "beta2"),
    "etas": ("etaminus", "etaplus"),
    "step_sizes": ("step_size_min", "step_size_max"),
}


def _form(function: Function, *slots: str, gaps: bool = False) -> Form:
    names = list(inspect.signature(function).parameters)
    return Form(function, slots, frozenset(names[2 + len(slots) :]), gaps)


FORMS: dict[type[torch.optim.Optimizer], Form] = {
    torch.optim.SGD: _form(sgd_module.sgd, "momentum_buffer", gaps=True),
    torch.optim.Adam: _form(adam.adam, "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"),
    torch.optim.AdamW: _form(adamw.adamw, "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"),
    torch.optim.Adagrad: _form(adagrad.adagrad, "sum", "step"),
    torch.optim.RMSprop: _form(
        rmsprop.rmsprop, "square_avg", "grad_avg", "momentum_buffer", "step"
    ),
    torch.optim.NAdam: _form(nadam.nadam, "exp_avg", "exp_avg_sq", "mu_product", "step"),
    torch.optim.RAdam: _form(radam.radam, "exp_avg", "exp_avg_sq", "step"),
    torch.optim.Adamax: _form(adamax.adamax, "exp_avg", "exp_inf", "step"),
    torch.optim.Adadelta: _form(adadelta.adadelta, "square_avg", "acc_delta", "step"),
    torch.optim.Rprop: _form(rprop.rprop, "prev", "step_size", "step"),
    torch.optim.ASGD: _form(asgd.asgd, "ax", "mu", "eta", "step"),
}
"""The form of each class that has one."""

SAME_BITS_TOGETHER = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.Adamax,
        torch.optim.Adadelta,
        torch.optim.Rprop,
    }
)
"""Classes whose ``foreach`` implementation has the bits of the one by one, in float32 and 64."""
