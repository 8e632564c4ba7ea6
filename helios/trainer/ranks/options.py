"""What can be chosen about how several ranks train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import nn

Wrap = tuple[type[nn.Module], ...] | Callable[[nn.Module], bool] | None


class DDP(msgspec.Struct, frozen=True):
    """How gradients are added over ranks, by ``torch.nn.parallel.DistributedDataParallel``.

    Args:
        bucket_cap_mb: (optional) how many MiB of gradients travel together; by default 25.
        find_unused_parameters: (optional) whether to look in every backward pass for parameters
            that take no part in it. By default the first micro-batch tells; a parameter that is
            left out later is then an error.
        comm_hook: (optional) replaces the all-reduce of a bucket, as those of
            ``torch.distributed.algorithms.ddp_comm_hooks`` do. It is given ``comm_state`` and the
            bucket. What is 1-d in it has to arrive as its mean: stop requests travel in it.
        comm_state: (optional) what the hook is given.

    Raises:
        ValueError: if an option has a wrong value.

    Example:
        >>> DDP(bucket_cap_mb=50).bucket_cap_mb
        50
    """

    bucket_cap_mb: float | None = None
    find_unused_parameters: bool | None = None
    comm_hook: Callable[[Any, Any], Any] | None = None
    comm_state: Any = None

    def __post_init__(self) -> None:
        """Check what was given."""
        size, hook, unused = self.bucket_cap_mb, self.comm_hook, self.find_unused_parameters
        if size is not None and (
            isinstance(size, bool) or not isinstance(size, (int, float)) or not size > 0
        ):
            raise _value("bucket_cap_mb", size, "a number of MiB above 0, or None")
        if unused is not None and not isinstance(unused, bool):
            raise _value("find_unused_parameters", unused, "True, False or None")
        if hook is not None and not callable(hook):
            raise _value("comm_hook", hook, "a function of a state and a bucket, or None")


class FSDP(msgspec.Struct, frozen=True):
    """How a model is sharded over ranks, by ``torch.distributed.fsdp.fully_shard``.

    Parameters, gradients, optimizer state and average lie on all ranks, each keeping some rows of
    every parameter. Modules that are wrapped come together as a whole for their part of the forward
    and backward pass; what is in none of them is together all the time between.

    Args:
        wrap: (optional) which modules are wrapped: classes of them, or a function that tells. Name
            the repeated blocks of the model. By default none is, and the whole model comes together
            at once.
        reshard_after_forward: (optional) whether wrapped modules are taken apart between the
            forward and the backward pass, for less memory and more traffic. By default they are,
            and what is in none of them is not.
        param_dtype: (optional) the dtype in which parameters come together and compute; by default
            their own.
        reduce_dtype: (optional) the dtype in which gradients are added over the ranks; by default
            that of the computation.

    Raises:
        ValueError: if an option has a wrong value.

    Example:
        >>> FSDP(wrap=(nn.TransformerEncoderLayer,)).reshard_after_forward is None
        True
    """

    wrap: Wrap = None
    reshard_after_forward: bool | None = None
    param_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        """Check what was given."""
        wrap, after = self.wrap, self.reshard_after_forward
        if isinstance(wrap, type) or not (
            wrap is None
            or callable(wrap)
            or (isinstance(wrap, tuple) and wrap and all(map(_is_module, wrap)))
        ):
            raise _value("wrap", wrap, "a tuple of module classes, a function of a module, or None")
        if after is not None and not isinstance(after, bool):
            raise _value("reshard_after_forward", after, "True, False or None")
        for name in ("param_dtype", "reduce_dtype"):
            dtype = getattr(self, name)
            if dtype is not None and not (
                isinstance(dtype, torch.dtype) and dtype.is_floating_point
            ):
                raise _value(name, dtype, "a floating-point torch.dtype, or None")

    def wraps(self, module: nn.Module) -> bool:
        """Tell whether a module is to be wrapped."""
        if self.wrap is None:
            return False
        if isinstance(self.wrap, tuple):
            return isinstance(module, self.wrap)
        return bool(self.wrap(module))


def _is_module(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, nn.Module)


def _value(name: str, received: Any, expected: str) -> ValueError:
    return ValueError(f"{name}: received {received!r}; expected {expected}")
