"""Loading pretrained weights into a module: by their own names, or by an explicit mapping."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import nn

from helios.errors import PretrainedError
from helios.functional.tree import same_bits
from helios.model import entries, name_mapping
from helios.model.weights_file import SHOWN, read_weights

_LISTED = 3


class Loaded(msgspec.Struct, frozen=True):
    """What `load_pretrained` did, by name.

    Args:
        loaded: the entries of the module that hold values of the file now.
        kept: the entries of the module that are as they were.
        unused: the entries of the file that were not asked for.
        non_finite: the entries of the module that hold a NaN or an infinity of the file now.

    Example:
        >>> print(Loaded(loaded=("net.weight", "net.bias"), kept=("head.weight",)))
        loaded 2 entries; kept 1 (head.weight)
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    non_finite: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line with counts and the first names."""
        parts = [f"loaded {len(self.loaded)} {'entry' if len(self.loaded) == 1 else 'entries'}"]
        for what, names in (
            ("kept", self.kept),
            ("unused in the file", self.unused),
            ("NOT FINITE", self.non_finite),
        ):
            if names:
                more = ", ..." if names[_LISTED:] else ""
                parts.append(f"{what} {len(names)} ({', '.join(names[:_LISTED])}{more})")
        return "; ".join(parts)


def load_pretrained(
    module: nn.Module,
    path: str | os.PathLike[str],
    *,
    mapping: name_mapping.NameMapping | None = None,
    key: str | None = None,
    cast: bool = False,
) -> Loaded:
    """Load weights from a file into a module; call it in ``setup``.

    By default names, shapes and dtypes must be those of the module's ``state_dict()`` exactly.
    With a mapping, they must be for the entries that it names.

    Law: either every entry that was asked for holds the values of the file, or nothing in the
    module has changed. Values are copied in place: tied parameters stay tied, and devices as they
    are.

    Args:
        module: a model, or one of its networks.
        path: a ``.pt`` or ``.pth`` that ``torch.save`` wrote, a ``.safetensors`` (with the extra
            ``helios[safetensors]``), or a checkpoint of helios. No code in it is run.
        mapping: (optional) from names of the module to names of the file. A name that ends in a dot
            stands for everything below it, ``""`` for everything; the longest that fits decides.
            None as a value, or no entry, leaves what is in the module as it is.
        key: (optional) where the tensors are in a nested file, such as ``"state_dict"`` or
            ``"carry.average"``, with a dot between levels.
        cast: whether to convert floating point tensors to the dtype of the module.

    Returns:
        What was loaded, kept and unused.

    Raises:
        PretrainedError: if the entries do not fit, listing those that do not; if the mapping
            matches nothing; if the file has another ending or no tensors by name.
        CheckpointError: if there is no such file, or reading it could run code.
        CorruptCheckpointError: if its bytes make no sense.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"module.weight": torch.ones(1, 2)}, f"{folder}/linear.pth")
        ...     net = nn.Linear(2, 1, bias=False)
        ...     print(load_pretrained(net, f"{folder}/linear.pth", mapping={"": "module."}))
        loaded 1 entry
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: received a {type(module).__name__}; expected an nn.Module")
    if mapping is not None:
        name_mapping.check_mapping(mapping)
    file = read_weights(path, key)
    targets = module.state_dict(keep_vars=True)
    if not targets:
        raise PretrainedError(
            f"module: received a {type(module).__name__} without parameters; make its networks "
            "before load_pretrained is called"
        )
    if mapping is not None:
        name_mapping.check_matches(mapping, targets, file)
    wanted = name_mapping.sources(targets, mapping or name_mapping.EVERYTHING)
    asked = {to: source for to, source in wanted.items() if source is not None}

    problems = _Problems(f"{os.fspath(path)!r} does not fit {type(module).__name__}")
    pairs = _pair(module, targets, file, asked, cast, problems)
    used = set(asked.values())
    unused = tuple(name for name in file if name not in used)
    if mapping is None:
        problems.unexpected += [f"{name}: {entries.describe(file[name])}" for name in unused]
        problems.proposal = name_mapping.propose(targets, file)
    problems.check()
    followers = _follow_ties(targets, pairs, wanted, problems)
    problems.check()

    non_finite = tuple(
        to for to, value in pairs.items() if not entries.is_finite(value, targets[to])
    )
    with torch.no_grad():
        for to, value in pairs.items():
            targets[to].copy_(value)
    loaded = {*pairs, *followers}
    return Loaded(
        loaded=tuple(name for name in targets if name in loaded),
        kept=tuple(name for name in targets if name not in loaded),
        unused=unused,
        non_finite=non_finite,
    )


class _Problems:
    """What does not fit, gathered to be told at once."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.missing: list[str] = []
        self.unexpected: list[str] = []
        self.different: list[str] = []
        self.refused: list[str] = []
        self.tied: list[str] = []
        self.castable = False
        self.proposal: name_mapping.NameMapping | None = None

    def check(self) -> None:
        """Raise a PretrainedError if there are any."""
        lines = []
        for title, found in (
            ("missing in the file", self.missing),
            ("unexpected in the file", self.unexpected),
            ("different", self.different),
            ("cannot be loaded", self.refused),
            ("tied in the module", self.tied),
        ):
            if found:
                lines.append(f"  {title} ({len(found)}):")
                lines += [f"    {line}" for line in found[:SHOWN]]
                if found[SHOWN:]:
                    lines.append(f"    and {len(found) - SHOWN} more")
        if lines:
            raise PretrainedError("\n".join([f"{self.title}:", *lines, self._advice()]))

    def _advice(self) -> str:
        advice = ["Nothing was loaded."]
        if self.missing or self.unexpected:
            if self.proposal is not None:
                advice.append(f"The names would fit with mapping={dict(self.proposal)}.")
            else:
                advice.append(
                    "Pass mapping= from names or prefixes of the module to those of the file; "
                    "None as a value keeps what is in the module."
                )
        if self.castable:
            advice.append("To convert floating point tensors, pass cast=True.")
        if self.refused:
            advice.append("Map what cannot be loaded to None to keep what is in the module.")
        return " ".join(advice)


def _pair(
    module: nn.Module,
    targets: Mapping[str, Any],
    file: Mapping[str, Any],
    asked: Mapping[str, str],
    cast: bool,
    problems: _Problems,
) -> dict[str, torch.Tensor]:
    """Return the tensors of the file by the names of the module that they fit."""
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    pairs: dict[str, torch.Tensor] = {}
    for to, source in asked.items():
        target = targets[to]
        label = to if to == source else f"{to} (from {source})"
        if id(target) not in own:
            problems.refused.append(
                f"{label}: the module's entry is extra state or made by a hook, neither a "
                "parameter nor a buffer"
            )
            continue
        unfit = entries.defect(target) or entries.overlap(target)
        if unfit is not None:
            problems.refused.append(f"{label}: the module has {unfit}")
            continue
        if source not in file:
            problems.missing.append(f"{label}: {entries.describe(target)}")
            continue
        value = file[source]
        unfit = entries.defect(value)
        if unfit is not None:
            problems.refused.append(f"{label}: the file has {unfit}")
            continue
        floating = value.is_floating_point() and target.is_floating_point()
        if value.shape != target.shape or (value.dtype != target.dtype and not (cast and floating)):
            problems.different.append(
                f"{label}: the file has {entries.describe(value)}, the module "
                f"{entries.describe(target)}"
            )
            problems.castable |= floating and not cast and value.dtype != target.dtype
            continue
        pairs[to] = value.detach()
    return pairs


def _follow_ties(
    targets: Mapping[str, Any],
    pairs: Mapping[str, torch.Tensor],
    wanted: Mapping[str, str | None],
    problems: _Problems,
) -> set[str]:
    """Return the entries that a mapping does not name, but that are tied to one which it does.

    Tied entries are one place in memory: two different values for it do not fit.
    """
    places: dict[Any, str] = {}
    for to, value in pairs.items():
        first = places.setdefault(entries.place(to, targets[to]), to)
        dtype = targets[to].dtype
        if first != to and not same_bits(pairs[first].to(dtype), value.to(dtype)):
            problems.tied.append(
                f"{to}: it is one with {first}, but the file has two different values, "
                f"{wanted[to]} and {wanted[first]}; map both to one of them"
            )
    followers = set()
    for name, target in targets.items():
        if name in pairs or entries.defect(target) is not None:
            continue
        tied_to = places.get(entries.place(name, target))
        if tied_to is None:
            continue
        if name in wanted:
            problems.tied.append(
                f"{name}: the mapping keeps it, but it is one with {tied_to}, which is loaded from "
                f"{wanted[tied_to]}; map it to {wanted[tied_to]} too"
            )
        followers.add(name)
    return followers
