"""Groups of parameters by the patterns of their names, each with an optimizer of its own."""

from __future__ import annotations

import fnmatch
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, overload

from helios.errors import NotTraceableError, StateMismatchError
from helios.functional.transformation import Tensors, Transformation
from helios.optim.grouped_trace import GroupsTrace

GroupsState = dict[str, Any]
_LISTED = 40  # names in an error: more are no help


class Groups:
    """What `groups` returns: itself a `helios.functional.transformation.Transformation`.

    Its state is that of each group, by pattern. What it keeps beside that is which parameters of a
    donated run belong to which group, so that the optimizers stay bound to them.

    Args:
        optimizers: the optimizer of each group, by pattern, in the order in which they are tried.
    """

    def __init__(self, optimizers: Mapping[str, Transformation]) -> None:
        self.optimizers = dict(optimizers)
        self._route: tuple[tuple[str, ...], dict[str, list[str]]] = ((), {})
        self._held: tuple[list[Any], dict[str, Tensors]] = ([], {})

    @property
    def implementation(self) -> str:
        """The implementations of the groups; equal bits need equal ones."""
        names = [
            str(getattr(rule, "implementation", type(rule).__name__))
            for rule in self.optimizers.values()
        ]
        return names[0] if len({*names}) == 1 else f"groups({', '.join(names)})"

    def members(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return the names of each group, by pattern.

        Args:
            names: of all parameters.

        Raises:
            ValueError: if a name belongs to no group, or a group has no name.

        Example:
            >>> from helios.optim import SGD
            >>> groups(SGD, {"*.bias": {"lr": 1.0}, "*": {}}).members(["0.weight", "0.bias"])
            {'*.bias': ['0.bias'], '*': ['0.weight']}
        """
        asked = tuple(names)
        if asked != self._route[0]:
            self._route = asked, _routed(tuple(self.optimizers), asked)
        return self._route[1]

    def init(self, params: Tensors) -> GroupsState:
        """Return the state of every group, by pattern.

        Raises:
            ValueError: if a parameter belongs to no group, or a group has no parameter.
        """
        return {
            pattern: self.optimizers[pattern].init({name: params[name] for name in names})
            for pattern, names in self.members(params).items()
        }

    def update(
        self, grads: Tensors, opt_state: GroupsState, params: Tensors, *, donate: bool = False
    ) -> tuple[Tensors, GroupsState]:
        """Apply one update; see `helios.functional.transformation.Transformation.update`.

        Raises:
            StateMismatchError: if ``opt_state`` has not the patterns of these groups.
        """
        if opt_state.keys() != self.optimizers.keys():
            raise StateMismatchError(
                f"opt_state: received the groups {list(opt_state)}; expected those of the "
                f"optimizer, {list(self.optimizers)}"
            )
        subsets = self._subsets(params) if donate else self._split(params)
        states = opt_state if donate else dict(opt_state)
        changed: Tensors = {}
        for pattern, subset in subsets.items():
            own = {name: grads[name] for name in subset if name in grads}
            new, states[pattern] = self.optimizers[pattern].update(
                own, states[pattern], subset, donate=donate
            )
            if new is not subset:
                changed.update(new)
        return {**params, **changed} if changed else params, states

    def traced(self) -> GroupsTrace:
        """Return the update as operations on tensors alone, for a compiler.

        Raises:
            NotTraceableError: if there is none for the optimizer of a group.
        """
        inner = {}
        for pattern, rule in self.optimizers.items():
            traced = getattr(rule, "traced", None)
            if traced is None:
                raise NotTraceableError(
                    f"the optimizer {type(rule).__name__} of the group {pattern!r} has no update "
                    "that can be traced"
                )
            inner[pattern] = traced()
        return GroupsTrace(inner, self.members)

    def learning_rate(self, count: int) -> dict[str, Any]:
        """Return the learning rate of each group's next update, by pattern.

        A group whose optimizer does not tell it is left out.

        Args:
            count: updates completed.

        Example:
            >>> from helios.optim import SGD
            >>> rule = groups(SGD, {"head.*": {"lr": 0.1}, "*": {"lr": lambda count: 0.5**count}})
            >>> rule.learning_rate(1)
            {'head.*': 0.1, '*': 0.5}
        """
        rates = {
            pattern: rule.learning_rate(count)
            for pattern, rule in self.optimizers.items()
            if hasattr(rule, "learning_rate")
        }
        return {pattern: rate for pattern, rate in rates.items() if rate is not None}

    def _split(self, params: Tensors) -> dict[str, Tensors]:
        return {
            pattern: {name: params[name] for name in names}
            for pattern, names in self.members(params).items()
        }

    def _subsets(self, params: Tensors) -> dict[str, Tensors]:
        """Return the parameters of each group, in the same dicts as long as they are the same."""
        held, now = self._held[0], list(params.values())
        if len(held) != len(now) or not all(map(operator.is_, held, now)):
            self._held = now, self._split(params)
        return self._held[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": ([], {})}

    def __repr__(self) -> str:
        return f"groups({self.optimizers!r})"


@overload
def groups(patterns: Mapping[str, Transformation], /) -> Groups: ...


@overload
def groups(
    make: Callable[..., Transformation],
    patterns: Mapping[str, Mapping[str, Any]],
    /,
    **shared: Any,
) -> Groups: ...


def groups(first: Any, patterns: Any = None, /, **shared: Any) -> Groups:
    """Optimize groups of parameters by rules of their own.

    A pattern is matched with the whole name of a parameter, as it stands in a checkpoint: ``*``
    stands for any characters, dots included, ``?`` for one, ``[ab]`` for one of some. The first
    pattern that matches has the parameter, so the most special ones come first, and ``"*"`` last.

    In the first form every pattern has an optimizer. In the second, every pattern has options of
    one and the same optimizer; the others are those in ``shared``, and then its defaults.

    Args:
        first: optimizers by pattern; or what makes one, such as `helios.optim.AdamW`.
        patterns: in the second form, options by pattern, an empty dict for none.
        shared: in the second form, options of all groups that have no other.

    Raises:
        TypeError: if a pattern has something else, or an option is unknown.
        ValueError: if there is no pattern. When the state is made, and so at the start of a run:
            if a pattern has no parameter, or a parameter no pattern; the message lists the names.

    Law:
        Equal to torch's optimizer with parameter groups of the same options, bit for bit
        (``tests/optim/test_groups.py``).

    Example:
        >>> from helios.optim import SGD, AdamW
        >>> groups(AdamW, {"*.bias": {"weight_decay": 0.0}, "*": {}}, lr=0.1)
        groups({'*.bias': AdamW(lr=0.1, weight_decay=0.0), '*': AdamW(lr=0.1)})
        >>> groups({"net.head.*": SGD(lr=0.1), "*": AdamW(lr=1e-3)})
        groups({'net.head.*': SGD(lr=0.1), '*': AdamW(lr=0.001)})
    """
    if isinstance(first, Mapping):
        if patterns is not None or shared:
            raise TypeError(
                "groups: received optimizers by pattern, and options beside them; expected options "
                "in the optimizers, or groups(AdamW, {pattern: options})"
            )
        return Groups(_checked(first, _optimizer))
    if not callable(first) or isinstance(first, Transformation):
        raise TypeError(
            f"groups: received {first!r}; expected optimizers by pattern, or what makes one, such "
            "as helios.optim.AdamW, and then options by pattern"
        )
    if not isinstance(patterns, Mapping):
        raise TypeError(
            f"groups: received {patterns!r}; expected options by pattern, such as "
            '{"*.bias": {"weight_decay": 0.0}, "*": {}}'
        )

    def made(pattern: str, options: Any) -> Any:
        if not isinstance(options, Mapping):
            raise TypeError(
                f"groups: {pattern!r} received {options!r}; expected a dict of options, such as "
                '{"lr": 1e-3}'
            )
        return first(**{**shared, **options})

    return Groups(_checked(patterns, made))


def _checked(
    patterns: Mapping[Any, Any], make: Callable[[str, Any], Any]
) -> dict[str, Transformation]:
    if not patterns:
        raise ValueError("groups: received no pattern; expected at least one, such as '*'")
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"groups: received the pattern {pattern!r}; expected a string")
    return {pattern: make(pattern, value) for pattern, value in patterns.items()}


def _optimizer(pattern: str, value: Any) -> Any:
    if isinstance(value, type) or not isinstance(value, Transformation):
        raise TypeError(
            f"groups: {pattern!r} received {value!r}; expected an optimizer (init and update), "
            "such as helios.optim.SGD(lr=0.1). For options of one optimizer, write "
            "groups(helios.optim.AdamW, {pattern: options})"
        )
    return value


def _routed(patterns: Sequence[str], names: tuple[str, ...]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {pattern: [] for pattern in patterns}
    rest: list[str] = []
    for name in names:
        first = next((p for p in patterns if fnmatch.fnmatchcase(name, p)), None)
        (rest if first is None else found[first]).append(name)
    for pattern, own in found.items():
        if own:
            continue
        if any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"groups: every parameter that {pattern!r} matches is matched by a pattern before "
                f"it; expected the special ones first. The patterns are {list(patterns)}"
            )
        raise ValueError(
            f"groups: the pattern {pattern!r} matches no parameter that is trained; there are "
            f"{_listed(names)}"
        )
    if rest:
        raise ValueError(
            f"groups: no pattern matches {_listed(rest)}; the patterns are {list(patterns)}. "
            "Put '*' last for all others"
        )
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(repr, names[:_LISTED])) + more
