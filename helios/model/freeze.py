"""Parameters that are not trained, by the patterns of their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from helios.model.hooks import ModelHooks

_STILL = "_helios_still"  # a plain attribute: it travels with copies and pickles of the module


def freeze(module: nn.Module, *patterns: str, buffers: bool = True) -> tuple[str, ...]:
    """Keep parameters as they are: no gradient, no optimizer state, no update.

    It is ``requires_grad_(False)``, by name. Call it in ``setup``, once the networks are there:
    what a run trains is decided at its start.

    A layer that keeps running statistics changes them in every forward pass, trained or not. With
    ``buffers``, a layer of which a pattern matches a buffer is in evaluation mode in training, too,
    so that batch normalisation uses the statistics that it has, and keeps them. Dropout has no
    buffer, and goes on dropping.

    Args:
        module: the model, or a part of it.
        patterns: matched with whole names of parameters and buffers, as they stand in the
            ``state_dict`` of ``module``: ``*`` stands for any characters, dots included.
        buffers: whether layers with a matching buffer keep it.

    Returns:
        The names of what is frozen, parameters first.

    Raises:
        ValueError: if a pattern matches nothing; the message lists the names there are.

    Law:
        A run leaves every bit of what is frozen, and trains the rest as with ``requires_grad_``
        (``tests/model/test_freeze.py``).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> freeze(net, "0.*", "1.running_*")
        ('0.weight', '0.bias', '1.running_mean', '1.running_var')
        >>> [name for name, p in net.named_parameters() if p.requires_grad]
        ['1.weight', '1.bias', '2.weight', '2.bias']
    """
    names = _matching(module, patterns, buffers=buffers)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in names:
            parameter.requires_grad_(False)
    for owner in _owners(module, names):
        setattr(owner, _STILL, True)
        owner.training = False
    return names


def unfreeze(module: nn.Module, *patterns: str) -> tuple[str, ...]:
    """Train parameters again, and let the layers with matching buffers update them.

    Between two runs: within one, the optimizer has no state for them.

    Args:
        module: the model, or a part of it.
        patterns: as for `freeze`.

    Returns:
        The names of what is trained again, and of the buffers of those layers.

    Raises:
        ValueError: if a pattern matches nothing; the message lists the names there are.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> _ = freeze(net, "*")
        >>> unfreeze(net, "1.*")
        ('1.weight', '1.bias')
    """
    names = _matching(module, patterns, buffers=True)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in names and (parameter.is_floating_point() or parameter.is_complex()):
            parameter.requires_grad_(True)
    for owner in _owners(module, names):
        if vars(owner).pop(_STILL, False):
            owner.training = module.training
    return names


def keep_still(module: nn.Module) -> None:
    """Put the layers whose buffers are frozen back in evaluation mode, after ``train()``."""
    for submodule in module.modules():
        if _STILL in vars(submodule):
            submodule.training = False


def _matching(module: nn.Module, patterns: Sequence[str], *, buffers: bool) -> tuple[str, ...]:
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    if buffers:
        names += [name for owned, _ in _layers(module) for name in owned]
    found: set[str] = set()
    kind = "parameter or buffer" if buffers else "parameter"
    if not patterns:
        raise ValueError("patterns: received none; expected at least one, such as 'net.backbone.*'")
    for pattern in patterns:
        own = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not own:
            raise ValueError(
                f"the pattern {pattern!r} matches no {kind} of the {type(module).__name__}; it "
                f"has {_listed(names)}"
            )
        found |= own
    return tuple(name for name in names if name in found)


def _owners(module: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Return the layers that have a buffer of one of these names."""
    wanted = set(names)
    return [layer for owned, layer in _layers(module) if not wanted.isdisjoint(owned)]


def _layers(module: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """Yield each layer with buffers, and their names; a model is no layer, and trains always."""
    for prefix, layer in module.named_modules():
        if layer._buffers and not isinstance(layer, ModelHooks):
            yield [f"{prefix}.{key}" if prefix else key for key in layer._buffers], layer


def _listed(names: Sequence[str], most: int = 40) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(map(repr, names[:most])) or "none") + more
