"""Less memory for more time: activations that are computed again in the backward pass."""

from __future__ import annotations

import fnmatch

from torch import nn

from helios.functional.recomputed import Recomputed

_NO_FORWARD = nn.Module.forward


def checkpoint_activations(module: nn.Module, *patterns: str) -> tuple[str, ...]:
    """Do not keep the activations within some submodules: compute them again when they are needed.

    In training, each matching submodule runs under ``torch.utils.checkpoint``. Memory then holds
    its input alone, and its forward pass is computed twice. Call it in ``setup``. Names, values and
    gradients stay as they are; random numbers are drawn as in the first pass, and buffers are
    updated once. The buffers within a submodule are copied until its backward pass. Evaluation is
    left alone.

    A step with it is not compiled, as ``Trainer(compile=True)`` then says, and it takes the
    ``"autograd"`` engine: ``torch.func``, and with it `helios.fit_many`, cannot do it.

    Args:
        module: the model, or a part of it.
        patterns: matched with whole names of submodules, as in ``module.named_modules()``: ``*``
            stands for any characters, dots included. Within a submodule that matches, others are
            not looked at.

    Returns:
        The names of the submodules.

    Raises:
        ValueError: if a pattern matches no submodule; the message lists the names there are.

    Law:
        A run has the bits of one without it (``tests/model/test_recompute.py``).

    References:
        Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 1))
        >>> checkpoint_activations(net, "0")
        ('0',)
    """
    # A list of modules has no forward of its own.
    names = [n for n, m in module.named_modules() if n and type(m).forward is not _NO_FORWARD]
    if not patterns:
        raise ValueError("patterns: received none; expected at least one, such as 'net.blocks.*'")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            listed = ", ".join(map(repr, names[:40])) or "none"
            more = f" and {len(names) - 40} more" if len(names) > 40 else ""
            raise ValueError(
                f"the pattern {pattern!r} matches no submodule of the {type(module).__name__}; it "
                f"has {listed}{more}"
            )
    found: list[str] = []
    for name in names:
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            found.append(name)
    for name in found:
        part = module.get_submodule(name)
        forward = vars(part).get("forward")
        if not isinstance(forward, Recomputed):
            part.forward = Recomputed(part, forward)
    return tuple(found)
