"""What may stand before the optimizer in a chain: a rule from gradients to gradients."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from helios.functional.transformation import Tensors


@runtime_checkable
class GradientTransformation(Protocol):
    """A rule that turns gradients into other gradients, such as clipping.

    As with an optimizer, the numerics depend on the arguments alone, and the state is a pytree
    whose structure does not change.
    """

    def init(self, params: Tensors) -> Any:
        """Return the state for ``params``, before the first update."""
        ...

    def apply(
        self, grads: Tensors, state: Any, params: Tensors, *, donate: bool = False
    ) -> tuple[Tensors, Any]:
        """Transform the gradients of one update.

        Args:
            grads: gradients by path; parameters without one are missing.
            state: what `init` or the last `apply` returned.
            params: the parameters by path, not to be changed.
            donate: if true, ``grads`` and ``state`` may be overwritten and returned. If false,
                they keep their bits, and the results share no storage with them.

        Returns:
            The new gradients and the new state.
        """
        ...
