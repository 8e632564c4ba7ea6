"""The update of an optimizer as operations on tensors alone; see `helios.functional.traced`.

Whatever changes from update to update, the learning rate and the count, comes in as a tensor, so
that a compiler has nothing to compile again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from helios.errors import NotTraceableError
from helios.functional.transformation import Tensors
from helios.optim.forms import FORMS
from helios.optim.gradient_transformation import GradientTransformation

Lists = list[list[Any]]


class TorchTrace:
    """The traced update of a `helios.optim.TorchOptimizer`.

    Args:
        cls: the optimizer class.
        options: its options, without the learning rate.
        lr: ``(count) -> float``, the learning rate after so many updates; None if it has none.

    Raises:
        NotTraceableError: if the update cannot be traced.

    Attributes:
        numbers: how many numbers an update takes from the host.
        columns: how many lists `slots` returns.
    """

    def __init__(self, cls: type[torch.optim.Optimizer], options: dict[str, Any], lr: Any) -> None:
        if cls not in FORMS:
            known = ", ".join(sorted(known.__name__ for known in FORMS))
            raise NotTraceableError(
                f"the optimizer {cls.__name__} has no update that can be traced; these have: "
                f"{known}"
            )
        self._form = FORMS[cls]
        self._lr = lr
        native = cls([torch.zeros(1)], **options)
        own = self._form.options(native.param_groups[0])
        own.update(
            (name, value) for name, value in _FOR_A_TRACE.items() if name in self._form.takes
        )
        self._options = own
        self._has_rate = "lr" in self._form.takes
        self.numbers = int(self._has_rate)
        self.columns = len(self._form.slots)

    def inputs(self, opt_state: Any) -> list[float]:
        """Return the numbers that the next update depends on."""
        return [float(self._lr(opt_state["count"]))] if self._has_rate else []

    def slots(self, opt_state: Any, names: Sequence[str]) -> Lists:
        """Return the tensors that an update changes in place.

        Args:
            opt_state: the optimizer state.
            names: the paths of the parameters.

        Returns:
            Some lists, each with a tensor, or None, for each parameter, or empty.
        """
        return self._form.lists([opt_state["slots"][name] for name in names])

    def started(self, opt_state: Any) -> frozenset[str]:
        """Return the paths of the parameters that have had a gradient."""
        return frozenset(path for path, started in opt_state["started"].items() if started)

    def advance(self, opt_state: Any) -> None:
        """Count an update, in place."""
        opt_state["count"] += 1

    def trace(self, grads: Tensors, slots: Lists, params: Tensors, inputs: torch.Tensor) -> None:
        """Update parameters and slots in place.

        Args:
            grads: gradients by path.
            slots: what `slots` returned for those paths, or a copy.
            params: the parameters of those paths.
            inputs: f64[numbers], what `inputs` returned.
        """
        options = {**self._options, "lr": inputs[0]} if self._has_rate else self._options
        # Corrections of a bias are powers of the count. One by one, they are numbers of Python.
        exact = [[s.double() for s in c] if n == "step" else c for n, c in self._named(slots)]
        self._form.function(
            [params[path] for path in grads], list(grads.values()), *exact, **options
        )
        for (name, column), counted in zip(self._named(slots), exact, strict=True):
            if name == "step":
                for step, count in zip(column, counted, strict=True):
                    step.copy_(count)

    def _named(self, slots: Lists) -> list[tuple[str, list[Any]]]:
        return list(zip(self._form.slots, slots, strict=True))


_FOR_A_TRACE = {"foreach": False, "fused": False, "capturable": True, "differentiable": False}


class ChainTrace:
    """The traced update of a `helios.optim.Chain`.

    Args:
        before: the gradient transformations by name, in order.
        name: the name of the optimizer.
        inner: the traced update of the optimizer.

    Raises:
        NotTraceableError: if a transformation keeps a state of its own.
    """

    def __init__(self, before: dict[str, GradientTransformation], name: str, inner: Any) -> None:
        for part_name, part in before.items():
            if part.init({"probe": torch.zeros(1)}) != {}:
                raise NotTraceableError(
                    f"the gradient transformation {part_name!r} ({type(part).__name__}) keeps a "
                    "state from update to update"
                )
        self._before = list(before.values())
        self._name = name
        self._inner = inner
        self.numbers: int = inner.numbers
        self.columns: int = inner.columns

    def inputs(self, opt_state: Any) -> list[float]:
        """Return the numbers that the next update depends on."""
        found: list[float] = self._inner.inputs(opt_state[self._name])
        return found

    def slots(self, opt_state: Any, names: Sequence[str]) -> Lists:
        """Return the tensors that an update changes in place; see `TorchTrace.slots`."""
        found: Lists = self._inner.slots(opt_state[self._name], names)
        return found

    def started(self, opt_state: Any) -> frozenset[str]:
        """Return the paths of the parameters that have had a gradient."""
        found: frozenset[str] = self._inner.started(opt_state[self._name])
        return found

    def advance(self, opt_state: Any) -> None:
        """Count an update, in place."""
        self._inner.advance(opt_state[self._name])

    def trace(self, grads: Tensors, slots: Lists, params: Tensors, inputs: torch.Tensor) -> None:
        """Update parameters and slots in place; see `TorchTrace.trace`."""
        for part in self._before:
            grads, _ = part.apply(grads, {}, params, donate=True)
        self._inner.trace(grads, slots, params, inputs)
