"""Any ``torch.optim.Optimizer`` class as a pair of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from helios.functional.transformation import Tensors
from helios.functional.tree import clone
from helios.optim.binding import Binding, OptState
from helios.optim.options import REQUIRED, check_class, check_options, option_defaults
from helios.optim.slots import first_slots, trainable
from helios.optim.tracing import TorchTrace

Rate = Callable[[int], float]
"""A learning rate as a function of the updates completed; see `helios.optim.rates`."""

LearningRate = float | torch.Tensor | Rate


class TorchOptimizer:
    """The numerics of a ``torch.optim.Optimizer`` class, as `init` and `update`.

    The optimizer state is a plain dict:

    - ``"count"``: the updates completed, an int;
    - ``"started"``: by path, whether the parameter has had a gradient yet;
    - ``"slots"``: by path, what torch keeps for the parameter, by torch's names.

    Its structure does not change from `init` on. The object itself holds no numerics: it may serve
    several runs in turn, and a copy of it serves as well. What it does keep, after a donated
    update, is the torch optimizer that is bound to the tensors of that run, so that the next
    donated update with the same objects has nothing to bind.

    Args:
        cls: the optimizer class. It must keep its numbers in the state of each parameter.
        lr: the learning rate, or a function that gives it for the number of updates completed.
            Without it, the default of the class.
        options: the other options of the class, by name.

    Raises:
        TypeError: if ``cls`` is not such a class, or has no such option.
        ValueError: if the class refuses the value of an option.

    Law:
        Every update gives the bits of the native optimizer, and leaves its arguments as they were
        unless they are donated (``tests/optim/test_contract.py``).

    Example:
        >>> sgd = TorchOptimizer(torch.optim.SGD, lr=0.5, momentum=0.9)
        >>> sgd
        SGD(lr=0.5, momentum=0.9)
        >>> params = {"w": torch.tensor([1.0])}
        >>> params, state = sgd.update({"w": torch.tensor([1.0])}, sgd.init(params), params)
        >>> params["w"], state["count"]
        (tensor([0.5000]), 1)
    """

    def __init__(
        self,
        cls: type[torch.optim.Optimizer],
        *,
        lr: LearningRate | None = None,
        **options: Any,
    ) -> None:
        check_class(cls)
        if lr is None:
            lr = _default_lr(cls)
        check_options(cls, options if lr is None else {"lr": lr, **options})
        self.cls = cls
        self.lr = lr
        self.options = options
        self._binding: Binding | None = None
        # torch checks values in the constructor: let it, here, not at the first update.
        self._build([torch.zeros(1, 1)])

    def init(self, params: Tensors) -> OptState:
        """Return the state before the first update.

        Args:
            params: the parameters by path.

        Raises:
            ValueError: if there is no floating-point parameter.
        """
        if not any(map(trainable, params.values())):
            raise ValueError(
                f"params: received {len(params)} parameters, none of floating point; expected at "
                "least one to optimize"
            )
        return {
            "count": 0,
            "started": dict.fromkeys(params, False),
            "slots": {
                path: first_slots(self._build, param) if trainable(param) else {}
                for path, param in params.items()
            },
        }

    def update(
        self, grads: Tensors, opt_state: OptState, params: Tensors, *, donate: bool = False
    ) -> tuple[Tensors, OptState]:
        """Apply one update; see `helios.functional.transformation.Transformation.update`.

        Args:
            grads: gradients by path; a path left out, or None, means no gradient.
            opt_state: the state that `init` or the last `update` returned.
            params: the parameters by path.
            donate: if true, ``params`` and ``opt_state`` are updated in place and returned, and
                ``grads`` may be overwritten.

        Raises:
            ValueError: if a gradient does not fit its parameter.
            StateMismatchError: if ``opt_state`` is not of these parameters.
        """
        lr = self.lr(opt_state["count"]) if callable(self.lr) else self.lr
        if not donate:
            # torch overwrites gradients too, under Nesterov momentum with foreach.
            opt_state, params, grads = clone(opt_state), clone(params), clone(grads)
            return Binding(self._build, opt_state, params).step(grads, lr)
        binding = self._binding
        # Until the step has succeeded there is nothing to come back to.
        self._binding = None
        if binding is None or not binding.holds(opt_state, params):
            binding = Binding(self._build, opt_state, params)
        result = binding.step(grads, lr)
        self._binding = binding
        return result

    def learning_rate(self, count: int) -> Any:
        """Return the learning rate of the next update.

        Args:
            count: updates completed.

        Example:
            >>> TorchOptimizer(torch.optim.SGD, lr=lambda count: 0.5**count).learning_rate(3)
            0.125
        """
        return self.lr(count) if callable(self.lr) else self.lr

    def traced(self) -> TorchTrace:
        """Return the update as operations on tensors alone, for a compiler.

        Raises:
            NotTraceableError: if there is none for the class.
        """
        return TorchTrace(self.cls, self.options, self.learning_rate)

    @property
    def implementation(self) -> str:
        """The class and which of its implementations was asked for; equal bits need an equal one.

        Example:
            >>> TorchOptimizer(torch.optim.Adam, fused=True).implementation
            'Adam(fused=True)'
        """
        chosen = [f"{k}={self.options[k]}" for k in ("foreach", "fused") if k in self.options]
        return f"{self.cls.__name__}({', '.join(chosen)})"

    def _build(self, leaves: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
        lr = self.learning_rate(0)
        options = self.options if lr is None else {"lr": lr, **self.options}
        return self.cls(list(leaves), **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_binding": None}

    def __repr__(self) -> str:
        options = self.options if self.lr is None else {"lr": self.lr, **self.options}
        return f"{self.cls.__name__}({', '.join(f'{k}={v!r}' for k, v in options.items())})"


def _default_lr(cls: type[torch.optim.Optimizer]) -> Any:
    default = (option_defaults(cls) or {}).get("lr")
    return None if default is REQUIRED else default
