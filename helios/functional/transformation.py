"""What an optimizer is to the core: a pair of pure functions over named tensors."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch

Tensors = dict[str, torch.Tensor]
"""Tensors by path, such as ``{"net.0.weight": ...}``, in the order of ``named_parameters()``."""


@runtime_checkable
class Transformation(Protocol):
    """A rule that turns gradients into new parameters.

    The numerics of a rule depend on its arguments alone. ``opt_state`` is a pytree whose structure
    does not change from one update to the next, and no tensor of it shares storage with another
    one, or with a parameter.

    Law:
        ``update(..., donate=True)`` gives the bits of ``update(..., donate=False)``
        (``property_tests/test_step_donation.py``).
    """

    def init(self, params: Tensors) -> Any:
        """Return the optimizer state for ``params``, before the first update."""
        ...

    def update(
        self, grads: Tensors, opt_state: Any, params: Tensors, *, donate: bool = False
    ) -> tuple[Tensors, Any]:
        """Apply one update.

        Args:
            grads: gradients by path. A parameter whose path is missing had no gradient and stays
                as it is, without decay, as ``grad is None`` means in ``torch.optim``.
            opt_state: what `init` or the last `update` returned.
            params: the parameters by path.
            donate: if true, the arguments may be overwritten and the results may be them. If
                false, every argument keeps its bits, and the results share no storage with them.

        Returns:
            The new parameters and the new optimizer state.
        """
        ...
