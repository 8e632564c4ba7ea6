"""What members of one run must have in common, and where they may differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from helios.errors import ModelError
from helios.functional.binding import bind
from helios.functional.differs import Differs, alike
from helios.functional.trainable import custom_step
from helios.functional.vmapped import slots_of
from helios.model.hooks import ModelHooks, overridden
from helios.model.model import Model
from helios.optim.average import Average

_SINGLE = (
    "on_training_batch_start",
    "on_training_batch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "should_training_stop",
)
"""Hooks around single batches: there is none of a member alone."""

_OWN = {
    *("_save_name", "_is_set_up", "_device", "_rank", "_is_distributed", "_trainer", "_precision"),
    *("optimizer", "average", "monitor", "valid_metrics", "test_metrics", "best_score"),
}
"""Attributes of a `Model` that are its own affair."""

_MODULE = set(vars(nn.Module()))
"""Attributes that every module has."""


def check_members(members: Sequence[Model]) -> None:
    """Raise if some models, set up, cannot be trained at once.

    Raises:
        ModelError: naming what a member has, or what two of them have not in common.
    """
    first = members[0]
    for member in members:
        name = member.save_name
        if member.trains_by_side_effect:
            raise ModelError(
                f"{name!r} trains by side effect, and is trained alone, by Trainer.fit. To train "
                "several at once, write its loss as that of a helios.Model"
            )
        if custom_step(member) is not None:
            raise ModelError(f"{name!r} has a step() of its own, which trains one member alone")
        hooks = [hook for hook in _SINGLE if overridden(member, hook, ModelHooks) is not None]
        if hooks:
            raise ModelError(
                f"{name!r} overrides {', '.join(hooks)}: of members that are trained at once, "
                "hooks around single batches are not called. Put what they do into the loss, a "
                "plugin, or the hooks around epochs and validations"
            )
        if member.precision.initial_scale() is not None:
            raise ModelError(
                f"{name!r} has a loss scale ({member.precision.compute}): members that are trained "
                "at once may compute in float32 or bfloat16"
            )
        if not (member.average is None or isinstance(member.average, Average)):
            raise ModelError(
                f"{name!r} keeps an average of the class {type(member.average).__name__}; members "
                "that are trained at once may have helios.optim.average"
            )
        _check_modules(member)
        _check_places(member)
        _check_same(member, first)


def _check_same(member: Model, first: Model) -> None:
    for what, received, expected in (
        ("class", type(member), type(first)),
        ("precision", member.precision, first.precision),
        ("average", member.average, first.average),
        ("modules", _modules(member), _modules(first)),
        ("parameters", _tensors(member, "_parameters"), _tensors(first, "_parameters")),
        ("buffers", _tensors(member, "_buffers"), _tensors(first, "_buffers")),
    ):
        if received == expected:
            continue
        shown = _differences(received, expected)
        raise ModelError(
            f"the {what} of {member.save_name!r} and {first.save_name!r} differ: received "
            f"{shown[0]} and {shown[1]}; members that are trained at once differ in their values, "
            "and in the numbers of their optimizers, alone"
        )


def _differences(a: Any, b: Any) -> tuple[Any, Any]:
    """Return two values; of two dicts, the first entries in which they differ."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return a, b
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)][:3]
    return {key: a.get(key) for key in keys}, {key: b.get(key) for key in keys}


def _modules(model: Model) -> dict[str, str]:
    # By name: a module with parametrisations has a class of its own.
    return {
        path: f"{type(module).__module__}.{type(module).__qualname__}"
        for path, module in model.named_modules()
        if path
    }


def _tensors(model: Model, kind: str) -> dict[str, str | None]:
    """Describe parameters or buffers by path: shape, dtype, whether trained, whom they share."""
    found: dict[str, str | None] = {}
    names: dict[int, str] = {}
    for path, slots, key in slots_of(model, kind):
        tensor = slots[key]
        if tensor is None:
            found[path] = None
            continue
        same = names.setdefault(id(tensor), path)
        shape = f"{tensor.dtype}{list(tensor.shape)}".removeprefix("torch.")
        trained = " trained" if tensor.requires_grad else ""
        found[path] = f"{shape}{trained}" if same == path else f"the same as {same}"
    return found


def _check_modules(model: Model) -> None:
    """Raise if a module does what torch.func.vmap does not see through."""
    for path, module in model.named_modules():
        if hasattr(module, "_orig_mod"):
            raise ModelError(
                f"{path!r} of {model.save_name!r} is compiled; members that are trained at once "
                "are not. Leave torch.compile out, or train the members one by one"
            )
        if getattr(module, "sparse", False) is True:
            raise ModelError(
                f"{type(module).__name__} {path!r} of {model.save_name!r} has sparse gradients; "
                "members that are trained at once have dense ones. Leave sparse=True out"
            )


def _check_places(model: Model) -> None:
    """Raise if a module keeps a parameter where none can be put in its place, as an LSTM does."""
    parameters = {id(parameter): name for name, parameter in bind(model).parameters.items()}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in _MODULE or attribute in _OWN:
                continue
            held = [parameters[id(v)] for v in _inside(value) if id(v) in parameters]
            if held:
                raise ModelError(
                    f"{type(module).__name__} {path!r} of {model.save_name!r} keeps the parameter "
                    f"{held[0]!r} in its attribute {attribute!r} too, where those of all members "
                    "cannot stand for it. Use a module that keeps it under one name, or train the "
                    "members one by one"
                )


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _inside(part)
    else:
        yield value


def differing(members: Sequence[Model]) -> list[tuple[nn.Module, str, Differs]]:
    """Return, for the modules of the first member, what is not the same in all.

    The loss of all is the first one's. It must not read what is another value in another member,
    and what cannot be compared may be.
    """
    found = []
    first = dict(members[0].named_modules())
    for member in members[1:]:
        for path, module in member.named_modules():
            ours, theirs = vars(first[path]), vars(module)
            for name in {**ours, **theirs}:
                if name in _MODULE or (path == "" and name in _OWN):
                    continue
                a, b = ours.get(name), theirs.get(name)
                if not alike(a, b):
                    where = ".".join(part for part in ("self", path, name) if part)
                    found.append((first[path], name, Differs(where, (a, b))))
    return found
