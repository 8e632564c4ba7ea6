"""What ``torch.optim.Optimizer.step`` does, with everything gathered once that can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import optimizer as watched

from helios.optim.forms import FORMS, SAME_BITS_TOGETHER
from helios.optim.together import FUSED, TOGETHER

_SEVERAL = 4  # parameters: to gather fewer costs more than it saves
_SMALL = 2**18  # elements of all parameters: beyond the caches, many passes cost more than calls


class Direct:
    """An update of some parameters, all of which have their state already, by one call.

    On the CPU, small parameters are updated by operators over lists, as torch does on a GPU alone:
    that saves a call from Python for each parameter and operator, and where it is done the bits are
    the same.

    Args:
        cls: the optimizer class, one of `helios.optim.forms.FORMS`.
        group: its options.
        params: the parameters, updated in place.
        slots: the state of each, updated in place.

    Law:
        It has the bits of ``step()`` (``tests/optim/test_contract.py``,
        ``tests/optim/test_forms.py``).
    """

    def __init__(
        self,
        cls: type[torch.optim.Optimizer],
        group: Mapping[str, Any],
        params: list[torch.Tensor],
        slots: Sequence[Mapping[str, Any]],
    ) -> None:
        form = FORMS[cls]
        options = form.options(group)
        if "has_complex" in form.takes:
            options["has_complex"] = any(map(torch.is_complex, params))
        function = form.function
        plain = not any(isinstance(option, torch.Tensor) for option in options.values())
        on_cpu = all(p.is_cpu for p in params)
        if options.get("fused") and plain and on_cpu and len({p.dtype for p in params}) == 1:
            function = FUSED.get(function, function)
        elif cls in SAME_BITS_TOGETHER and plain and on_cpu and _are_small(params, options):
            options["foreach"] = True
            if len({p.dtype for p in params}) == 1:
                function = TOGETHER.get(function, function)
        self._function = function
        self._params = params
        self._lists = form.lists(slots)
        self._options = options
        self._has_rate = "lr" in options

    def __call__(self, grads: list[torch.Tensor], lr: Any) -> None:
        """Apply one update.

        Args:
            grads: a dense gradient for each parameter; may be overwritten.
            lr: the learning rate, None for that of the options.
        """
        if lr is not None and self._has_rate:
            self._options["lr"] = lr
        with torch.no_grad():
            self._function(self._params, grads, *self._lists, **self._options)


def _are_small(params: list[torch.Tensor], options: Mapping[str, Any]) -> bool:
    return (
        options.get("foreach") is None
        and not options.get("fused")
        and len(params) >= _SEVERAL
        and sum(p.numel() for p in params) <= _SMALL
        and all(p.dtype in (torch.float32, torch.float64) for p in params)
    )


def observed() -> bool:
    """Tell whether somebody watches ``Optimizer.step``: a hook on all optimizers, or a profiler."""
    return bool(
        watched._global_optimizer_pre_hooks
        or watched._global_optimizer_post_hooks
        or torch._C._autograd._profiler_enabled()
    )
