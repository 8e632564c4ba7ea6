"""The optimizers of several members as one: updates of stacked parameters, by torch's functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from helios.errors import ModelError
from helios.functional.differs import alike
from helios.functional.stacked import along, unstack
from helios.functional.transformation import Tensors
from helios.optim.binding import laid_out
from helios.optim.chain import Chain
from helios.optim.clip import clip_by_global_norm, clip_by_value
from helios.optim.forms import FORMS, Function
from helios.optim.groups import Groups
from helios.optim.together import FUSED
from helios.optim.torch_optimizer import TorchOptimizer
from helios.trainer.many.clocked import CLOCKED
from helios.trainer.many.sweep import NOT_LINEAR, Sweep

_COUNTERS = frozenset({"step", "mu_product", "eta", "mu"})
"""Slots that hold one number for each parameter, whatever its shape."""


class _Lists(NamedTuple):
    """What torch's function is called with, and how: of one member, or of all."""

    function: Function
    leaves: list[torch.Tensor]
    slots: list[list[Any]]
    counters: list[torch.Tensor]
    counts: list[torch.Tensor]
    """What goes into the counters after a call for all: what all count alike is counted once."""


class Rules:
    """One objective's optimizer of every member.

    An update of an elementwise rule is one call for all members, as long as their rates, options
    and counts are the same; otherwise it is one for each member, on views of its rows.

    Args:
        optimizers: of the members, in their order.
        where: what they belong to, for errors.
        is_complex: whether a parameter is complex.

    Raises:
        ModelError: if a rule is not elementwise, or the members' differ in more than numbers.

    Law:
        Each member gets the update of its own optimizer, up to rounding
        (``tests/trainer/many/test_rules.py``).
    """

    def __init__(self, optimizers: Sequence[Any], where: str, *, is_complex: bool = False) -> None:
        self._chains = [_parts(optimizer, where) for optimizer in optimizers]
        self._before, self._name, first = self._chains[0]
        self._rules = [rule for _, _, rule in self._chains]
        for index, (before, name, rule) in enumerate(self._chains[1:], 1):
            _check_alike(where, index, "gradient clipping", before, self._before)
            _check_alike(where, index, "the name in the chain", name, self._name)
            _check_alike(where, index, "the class", rule.cls, first.cls)
            _check_alike(where, index, "the options", _fixed(rule), _fixed(first))
        self._form = FORMS[first.cls]
        self._equal = all(
            alike(rule.options, first.options) and alike(rule.lr, first.lr) for rule in self._rules
        )
        self._options = [_options(rule, is_complex=is_complex) for rule in self._rules]
        self._sweep = self._swept()
        self._held: tuple[Any, Any] = (None, None)
        self._rows: dict[tuple[int, tuple[str, ...]], _Lists] = {}
        self._whole: tuple[tuple[str, ...], _Lists | None] | None = None

    @property
    def implementation(self) -> str:
        """The implementation of the first member's optimizer."""
        return self._rules[0].implementation

    def update(
        self, grads: Tensors, opt_state: dict[str, Any], params: Tensors, members: Iterable[int]
    ) -> None:
        """Apply one update to the rows of some members, in place.

        Args:
            grads: gradients by path, ``[members, ...]`` each; they may be overwritten.
            opt_state: the stacked optimizer state.
            params: the parameters by path; more than have gradients may be there.
            members: the places of the members whose update it is.
        """
        for clip in self._before.values():
            if isinstance(clip, clip_by_global_norm):
                _clip_norms(clip, grads)
            else:
                clip.apply(grads, {}, params, donate=True)
        state = opt_state if self._name is None else opt_state[self._name]
        if self._held[0] is not params or self._held[1] is not state["slots"]:
            self._held = params, state["slots"]
            self._rows, self._whole = {}, None
        who = list(members)
        counts, started = state["count"], state["started"]
        paths = tuple(grads)
        everyone = len(who) == len(counts) and counts.count(counts[0]) == len(counts)
        at_once = everyone and (self._equal or self._sweep is not None)
        whole = None
        with torch.no_grad():
            if at_once and self._whole is not None and self._whole[0] == paths:
                whole = self._whole[1]
            elif at_once and all(all(started[path]) for path in paths):
                whole = self._gathered(paths, params, state["slots"])
                self._whole = paths, whole
            if whole is not None:
                self._call_for_all(whole, [grads[path] for path in paths], counts[0])
            else:
                self._whole = None  # what is counted for one member is no longer as it was
                for member in who:
                    if all(started[path][member] for path in paths):
                        own = [grads[path][member] for path in paths]
                        lists = self._of_one(member, paths, params, state["slots"])
                        self._call(lists, own, member, counts[member])
                    else:
                        self._first(member, grads, params, state)
        for member in who:
            counts[member] += 1

    def _swept(self) -> Sweep | None:
        """Return what updates all members at once if they differ in rate and decay alone."""
        cls, first = self._rules[0].cls, self._options[0]
        swept = {"lr": None, "weight_decay": None}
        alone = all(alike({**options, **swept}, {**first, **swept}) for options in self._options)
        odd = cls in NOT_LINEAR or first.get("maximize") or "lr" not in first
        if self._equal or not alone or odd:
            return None
        decays = [float(options.get("weight_decay", 0.0)) for options in self._options]
        return Sweep(cls, first, decays)

    def _call_for_all(self, lists: _Lists, grads: list[torch.Tensor], count: int) -> None:
        """Call torch's function once, on the tensors of all members."""
        if self._sweep is None:
            self._call(lists, grads, 0, count)
        else:
            rates = [float(rule.learning_rate(count)) for rule in self._rules]
            grads = self._as_taken(lists, grads, 0)
            self._sweep(lists.function, lists.leaves, grads, lists.slots, rates)
        if lists.counters:
            torch._foreach_copy_(lists.counters, lists.counts)

    def _call(self, lists: _Lists, grads: list[torch.Tensor], member: int, count: int) -> None:
        """Call torch's function with the options and the rate of a member."""
        options = self._options[member]
        grads = self._as_taken(lists, grads, member)
        lr = self._rules[member].learning_rate(count)
        if lr is not None and "lr" in options:
            options["lr"] = lr
        lists.function(lists.leaves, grads, *lists.slots, **options)

    def _as_taken(
        self, lists: _Lists, grads: list[torch.Tensor], member: int
    ) -> list[torch.Tensor]:
        """Return gradients as a member's function takes them: fused ones ask for a layout."""
        if not self._options[member].get("fused"):
            return grads
        return list(map(laid_out, grads, lists.leaves))

    def _of_one(
        self, member: int, paths: tuple[str, ...], params: Tensors, slots: dict[str, Any]
    ) -> _Lists:
        """Return the rows of one member."""
        found = self._rows.get((member, paths))
        if found is None:
            own = [{n: value[member] for n, value in slots[path].items()} for path in paths]
            leaves = [params[path][member] for path in paths]
            function = self._function(member)
            found = _Lists(function, leaves, self._form.lists(own), [], [])
            self._rows[member, paths] = found
        return found

    def _gathered(
        self, paths: tuple[str, ...], params: Tensors, slots: dict[str, Any]
    ) -> _Lists | None:
        """Return the tensors of all members, None if they have not counted alike."""
        counters = [value for path in paths for n, value in slots[path].items() if n in _COUNTERS]
        if not all(bool((counter == counter[0]).all()) for counter in counters):
            return None
        own = [
            {n: value[0] if n in _COUNTERS else value for n, value in slots[path].items()}
            for path in paths
        ]
        leaves = [params[path] for path in paths]
        function = self._function(0)
        lists = self._form.lists(own)
        if function in CLOCKED and len({float(counter[0]) for counter in counters}) == 1:
            clock = counters[0][0].clone()
            lists[-1] = [clock] * len(paths)  # the steps, of which there is one for all
            counts = [clock.expand(len(counter)) for counter in counters]
            return _Lists(CLOCKED[function], leaves, lists, counters, counts)
        several = [counter for counter in counters if len(counter) > 1]
        rests = [counter[1:] for counter in several]
        counts = [counter[:1].expand(len(counter) - 1) for counter in several]
        return _Lists(function, leaves, lists, rests, counts)

    def _function(self, member: int) -> Function:
        """Return the function of the class, or what calls its fused kernel without detours."""
        function = self._form.function
        return FUSED.get(function, function) if self._options[member].get("fused") else function

    def _first(self, member: int, grads: Tensors, params: Tensors, state: dict[str, Any]) -> None:
        """Apply a member's update by its optimizer itself, which makes its state as torch does."""
        held = {path: params[path] for path in state["slots"]}
        own = unstack(state, member)
        rule = self._rules[member]
        rows = {path: held[path][member] for path in held}
        _, after = rule.update(
            {path: grads[path][member] for path in grads}, own, rows, donate=True
        )
        for path, values in after["slots"].items():
            state["started"][path][member] = after["started"][path]
            for name, value in values.items():
                state["slots"][path][name][member] = value


def _parts(optimizer: Any, where: str) -> tuple[dict[str, Any], str | None, TorchOptimizer]:
    """Return the gradient transformations, the name and the rule of an optimizer.

    Raises:
        ModelError: if one of them is not elementwise.
    """
    before: dict[str, Any] = {}
    name = None
    if isinstance(optimizer, Chain):
        before, name, optimizer = optimizer.before, optimizer.name, optimizer.optimizer
    for part in before.values():
        if not isinstance(part, (clip_by_global_norm, clip_by_value)):
            raise ModelError(
                f"{where}: received {part!r} before the optimizer; members that are trained at "
                "once may have clip_by_global_norm and clip_by_value there"
            )
    if isinstance(optimizer, Groups):
        raise ModelError(
            f"{where}: received groups of parameters, {list(optimizer.optimizers)}; members that "
            "are trained at once have one optimizer for all parameters. Train the members one by "
            "one"
        )
    if not isinstance(optimizer, TorchOptimizer) or optimizer.cls not in FORMS:
        known = ", ".join(sorted(cls.__name__ for cls in FORMS))
        raise ModelError(
            f"{where}: received {optimizer!r}, which is not known to treat every element of a "
            f"parameter by itself; members that are trained at once may have {known}"
        )
    return before, name, optimizer


def _check_alike(where: str, index: int, what: str, received: Any, expected: Any) -> None:
    if received != expected:
        raise ModelError(
            f"{where}: {what} of member {index} is {received!r}, and of member 0 {expected!r}; "
            "members that are trained at once may differ in the numbers of their optimizer alone, "
            "such as lr and weight_decay"
        )


def _fixed(rule: TorchOptimizer) -> dict[str, Any]:
    """Return the options that are no numbers."""
    numbers = (int, float, tuple, torch.Tensor)
    return {
        name: value if isinstance(value, bool) or not isinstance(value, numbers) else "a number"
        for name, value in {**_group(rule), "lr": 0.0}.items()
    }


def _group(rule: TorchOptimizer) -> dict[str, Any]:
    lr = rule.learning_rate(0)
    options = rule.options if lr is None else {"lr": lr, **rule.options}
    [group] = rule.cls([torch.zeros(1)], **options).param_groups
    return {name: value for name, value in group.items() if name != "params"}


def _options(rule: TorchOptimizer, *, is_complex: bool) -> dict[str, Any]:
    """Return what torch's function takes; the fused kernel, unless another one was asked for."""
    group = _group(rule)
    options = FORMS[rule.cls].options(group)
    asked = {"foreach", "fused"} & {name for name in rule.options if rule.options[name] is not None}
    if "has_complex" in FORMS[rule.cls].takes:
        options["has_complex"] = is_complex
    plain = not (asked or is_complex or isinstance(group["lr"], torch.Tensor))
    if "fused" in options and plain:
        options.update(fused=True, foreach=False)
    return options


def _clip_norms(clip: clip_by_global_norm, grads: Tensors) -> None:
    """Clip the gradients of each member by their own norm, in place."""
    if not grads:
        return
    order = float(clip.norm_type)
    with torch.no_grad():
        norms = [
            torch.linalg.vector_norm(g.reshape(len(g), -1), order, dim=1) for g in grads.values()
        ]
        norm = torch.linalg.vector_norm(torch.stack(norms), order, dim=0)
        factor = torch.clamp(float(clip.max_norm) / (norm + 1e-6), max=1.0)
        for grad in grads.values():
            grad.mul_(along(factor, grad))
