"""Gradient transformations and an optimizer, one after the other, by name."""

from __future__ import annotations

from typing import Any

from helios.errors import NotTraceableError, StateMismatchError
from helios.functional.transformation import Tensors, Transformation
from helios.optim.gradient_transformation import GradientTransformation
from helios.optim.tracing import ChainTrace

ChainState = dict[str, Any]


class Chain:
    """What `chain` returns: itself a `helios.functional.transformation.Transformation`.

    Args:
        before: the gradient transformations by name, in order.
        name: the name of the optimizer.
        optimizer: what turns the transformed gradients into parameters.
    """

    def __init__(
        self, before: dict[str, GradientTransformation], name: str, optimizer: Transformation
    ) -> None:
        self.before = before
        self.name = name
        self.optimizer = optimizer

    @property
    def implementation(self) -> str:
        """The implementation of its optimizer."""
        return str(getattr(self.optimizer, "implementation", type(self.optimizer).__name__))

    def init(self, params: Tensors) -> ChainState:
        """Return the state of every part, by name."""
        states = {name: part.init(params) for name, part in self.before.items()}
        return {**states, self.name: self.optimizer.init(params)}

    def update(
        self, grads: Tensors, opt_state: ChainState, params: Tensors, *, donate: bool = False
    ) -> tuple[Tensors, ChainState]:
        """Apply one update; see `helios.functional.transformation.Transformation.update`.

        Raises:
            StateMismatchError: if ``opt_state`` has not the names of this chain.
        """
        if opt_state.keys() != {*self.before, self.name}:
            raise StateMismatchError(
                f"opt_state: received the names {list(opt_state)}; expected those of the chain, "
                f"{[*self.before, self.name]}"
            )
        states = opt_state if donate else dict(opt_state)
        for name, part in self.before.items():
            grads, states[name] = part.apply(grads, states[name], params, donate=donate)
        params, states[self.name] = self.optimizer.update(
            grads, states[self.name], params, donate=donate
        )
        return params, states

    def traced(self) -> ChainTrace:
        """Return the update as operations on tensors alone, for a compiler.

        Raises:
            NotTraceableError: if there is none for the optimizer, or for a part before it.
        """
        traced = getattr(self.optimizer, "traced", None)
        if traced is None:
            raise NotTraceableError(
                f"the optimizer {type(self.optimizer).__name__} has no update that can be traced"
            )
        return ChainTrace(self.before, self.name, traced())

    def learning_rate(self, count: int) -> Any:
        """Return the learning rate of the next update; None if the optimizer does not tell it.

        Of `helios.optim.groups` it is a dict, of the rates by pattern.

        Args:
            count: updates completed.
        """
        learning_rate = getattr(self.optimizer, "learning_rate", None)
        return None if learning_rate is None else learning_rate(count)

    def __repr__(self) -> str:
        parts = {**self.before, self.name: self.optimizer}
        return f"chain({', '.join(f'{name}={part!r}' for name, part in parts.items())})"


def chain(**parts: GradientTransformation | Transformation) -> Chain:
    """Put gradient transformations before an optimizer.

    The names are keys of the state, so they stand in the paths of a checkpoint.

    Args:
        parts: any number of gradient transformations and then one optimizer, by name.

    Raises:
        TypeError: if a part is neither of the two.
        ValueError: if there is not exactly one optimizer, or if it is not the last part.

    Law:
        A chain of clipping and an optimizer is torch's clipping, and then its optimizer, bit for
        bit (``tests/optim/test_chain.py``).

    Example:
        >>> import torch
        >>> from helios.optim import SGD, clip_by_global_norm
        >>> rule = chain(clip=clip_by_global_norm(1.0), sgd=SGD(lr=0.1))
        >>> list(rule.init({"w": torch.zeros(2)}))
        ['clip', 'sgd']
    """
    before: dict[str, GradientTransformation] = {}
    optimizers: dict[str, Transformation] = {}
    for name, part in parts.items():
        if isinstance(part, type):
            raise TypeError(f"{name}: received the class {part.__name__}; expected a value of it")
        if isinstance(part, Transformation):
            optimizers[name] = part
        elif isinstance(part, GradientTransformation):
            before[name] = part
        else:
            raise TypeError(
                f"{name}: received {type(part).__name__}; expected a gradient transformation (init "
                "and apply) or, last, an optimizer (init and update)"
            )
    if len(optimizers) != 1 or list(parts)[-1] not in optimizers:
        raise ValueError(
            f"chain: received the parts {list(parts)}, of which {list(optimizers)} are optimizers; "
            "expected exactly one optimizer, as the last part"
        )
    [(name, optimizer)] = optimizers.items()
    return Chain(before, name, optimizer)
