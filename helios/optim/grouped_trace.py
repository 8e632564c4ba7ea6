"""The traced update of groups of parameters; see `helios.functional.traced`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from helios.functional.transformation import Tensors
from helios.optim.tracing import Lists


class GroupsTrace:
    """The traced update of a `helios.optim.groups.Groups`.

    The lists of all groups stand one after the other; each has a place for every parameter, with
    None for those of other groups.

    Args:
        inner: the traced update of each group, by pattern.
        members: gives the names of each group out of all names.
    """

    def __init__(
        self, inner: Mapping[str, Any], members: Callable[[Sequence[str]], dict[str, list[str]]]
    ) -> None:
        self._inner = dict(inner)
        self._members = members
        self._group_of: dict[str, str] = {}
        self.columns: int = sum(part.columns for part in inner.values())
        self.numbers: int = sum(part.numbers for part in inner.values())

    def inputs(self, opt_state: Any) -> list[float]:
        """Return the numbers that the next update depends on."""
        return [n for p, part in self._inner.items() for n in part.inputs(opt_state[p])]

    def slots(self, opt_state: Any, names: Sequence[str]) -> Lists:
        """Return the tensors that an update changes in place; see `TorchTrace.slots`."""
        members = self._members(names)
        self._group_of = {name: pattern for pattern, own in members.items() for name in own}
        found: Lists = []
        for pattern, part in self._inner.items():
            own = members[pattern]
            for column in part.slots(opt_state[pattern], own):
                if column:
                    at = dict(zip(own, column, strict=True))
                    column = [at.get(name) for name in names]
                found.append(column)
        return found

    def started(self, opt_state: Any) -> frozenset[str]:
        """Return the paths of the parameters that have had a gradient."""
        each = [part.started(opt_state[pattern]) for pattern, part in self._inner.items()]
        return frozenset().union(*each)

    def advance(self, opt_state: Any) -> None:
        """Count an update, in place."""
        for pattern, part in self._inner.items():
            part.advance(opt_state[pattern])

    def trace(self, grads: Tensors, slots: Lists, params: Tensors, inputs: torch.Tensor) -> None:
        """Update parameters and slots in place; see `TorchTrace.trace`."""
        column, number = 0, 0
        for pattern, part in self._inner.items():
            which = [i for i, name in enumerate(grads) if self._group_of[name] == pattern]
            own = {name: g for name, g in grads.items() if self._group_of[name] == pattern}
            if own:
                columns = slots[column : column + part.columns]
                part.trace(
                    own,
                    [[c[i] for i in which] if c else [] for c in columns],
                    params,
                    inputs[number : number + part.numbers],
                )
            column += part.columns
            number += part.numbers
