"""The optimizers of several members as one: updates of stacked parameters, by torch's functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from helios.errors import ModelError
from helios.functional.differs import alike
from helios.functional.stacked import along, unstack
from helios.functional.transformation import Tensors
from helios.optim.chain import Chain
from helios.optim.clip import clip_by_global_norm, clip_by_value
from helios.optim.forms import FORMS
from helios.optim.together import FUSED
from helios.optim.torch_optimizer import TorchOptimizer
from helios.trainer.many.sweep import NOT_LINEAR, Sweep

_COUNTERS = frozenset({"step", "mu_product", "eta", "mu"})
"""Slots that hold one number for each parameter, whatever its shape."""

_Lists = tuple[list[Any], list[list[Any]], list[torch.Tensor], list[torch.Tensor]]


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
        self._fused = FUSED.get(self._form.function, self._form.function)
        self._equal = all(
            alike(rule.options, first.options) and alike(rule.lr, first.lr) for rule in self._rules
        )
        self._options = [_options(rule, is_complex=is_complex) for rule in self._rules]
        self._sweep = self._swept()
        self._held: tuple[Any, Any] = (None, None)
        self._lists: dict[tuple[int | None, tuple[str, ...]], _Lists] = {}

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
            self._lists = {}
        who = list(members)
        counts, started = state["count"], state["started"]
        paths = tuple(grads)
        everyone = len(who) == len(counts) and counts.count(counts[0]) == len(counts)
        with torch.no_grad():
            at_once = self._equal or self._sweep is not None
            if at_once and everyone and all(all(started[path]) for path in paths):
                self._call(None, paths, grads, params, state)
            else:
                for member in who:
                    if all(started[path][member] for path in paths):
                        self._call(member, paths, grads, params, state)
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
        return Sweep(cls, self._form, first, decays)

    def _call(
        self,
        member: int | None,
        paths: tuple[str, ...],
        grads: Tensors,
        params: Tensors,
        state: dict[str, Any],
    ) -> None:
        """Call torch's function on the rows of one member, or on those of all."""
        key = member, paths
        if key not in self._lists:
            self._lists[key] = self._gather(member, paths, params, state["slots"])
        leaves, slots, rests, firsts = self._lists[key]
        index = 0 if member is None else member
        own = [grads[path] if member is None else grads[path][member] for path in paths]
        options = self._options[index]
        if options.get("fused"):  # the fused kernels walk a gradient by the strides of its leaf
            own = [
                g if g.stride() == leaf.stride() else torch.empty_like(leaf).copy_(g)
                for g, leaf in zip(own, leaves, strict=True)
            ]
        if member is None and self._sweep is not None:
            count = state["count"][0]
            rates = [float(rule.learning_rate(count)) for rule in self._rules]
            self._sweep(leaves, own, slots, rates)
        else:
            lr = self._rules[index].learning_rate(state["count"][index])
            if lr is not None and "lr" in options:
                options["lr"] = lr
            function = self._fused if options.get("fused") else self._form.function
            function(leaves, own, *slots, **options)
        if rests:
            torch._foreach_copy_(rests, firsts)

    def _gather(
        self, member: int | None, paths: tuple[str, ...], params: Tensors, slots: dict[str, Any]
    ) -> _Lists:
        rests: list[torch.Tensor] = []
        firsts: list[torch.Tensor] = []
        own: list[dict[str, Any]] = []
        for path in paths:
            views: dict[str, Any] = {}
            for name, value in slots[path].items():
                if member is not None:
                    views[name] = value[member]
                elif name in _COUNTERS:
                    views[name] = value[0]
                    if len(value) > 1:  # what is equal for all is counted once, and copied
                        rests.append(value[1:])
                        firsts.append(value[:1].expand(len(value) - 1))
                else:
                    views[name] = value
            own.append(views)
        leaves = [params[path] if member is None else params[path][member] for path in paths]
        return leaves, self._form.lists(own), rests, firsts

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
