"""Ranks, and collective operations that one process answers by itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, overload

import msgspec
import torch
import torch.distributed as dist

_TORCHRUN = (
    "LOCAL_RANK",
    "RANK",
    "GROUP_RANK",
    "ROLE_RANK",
    "LOCAL_WORLD_SIZE",
    "WORLD_SIZE",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
)
_OPERATIONS = {
    "sum": dist.ReduceOp.SUM,
    "mean": dist.ReduceOp.SUM,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
}


class DistributedInfo(msgspec.Struct, frozen=True):
    """Which of how many processes this is.

    Args:
        is_distributed: whether there is a process group, or one is to be expected.
        rank: the rank over all hosts.
        local_rank: the rank on this host, which is the index of its device.
        world_size: processes over all hosts.
    """

    is_distributed: bool = False
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def is_using_torchrun() -> bool:
    """Tell whether ``torchrun`` started this process, by the environment variables that it sets.

    References:
        https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
    """
    return all(name in os.environ for name in _TORCHRUN)


def is_dist_active() -> bool:
    """Tell whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def get_dist_info() -> DistributedInfo:
    """Return the ranks and the world size of this process.

    They are those of the process group; before there is one, those that ``torchrun`` has given;
    without either, those of one process alone.

    Example:
        >>> get_dist_info().world_size
        1
    """
    if is_dist_active():
        rank = dist.get_rank()
        return DistributedInfo(
            is_distributed=True,
            rank=rank,
            # Without a launcher that says otherwise there is one host.
            local_rank=int(os.environ.get("LOCAL_RANK", rank)),
            world_size=dist.get_world_size(),
        )
    if is_using_torchrun():
        return DistributedInfo(
            is_distributed=True,
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )
    return DistributedInfo()


def get_rank() -> int:
    """Return the rank over all hosts, 0 for one process."""
    return get_dist_info().rank


def get_local_rank() -> int:
    """Return the rank on this host, 0 for one process."""
    return get_dist_info().local_rank


def get_world_size() -> int:
    """Return the number of processes, 1 for one process."""
    return get_dist_info().world_size


@overload
def all_reduce_tensors(tensors: torch.Tensor, op: str = "sum") -> torch.Tensor: ...


@overload
def all_reduce_tensors(tensors: Sequence[torch.Tensor], op: str = "sum") -> list[torch.Tensor]: ...


def all_reduce_tensors(
    tensors: torch.Tensor | Sequence[torch.Tensor], op: str = "sum"
) -> torch.Tensor | list[torch.Tensor]:
    """Reduce tensors over all ranks; every rank gets the result.

    Tensors of a sequence travel together, one collective for each dtype and device.

    Args:
        tensors: one tensor, or a sequence of them, of the same shapes and dtypes on every rank.
        op: ``"sum"``, ``"mean"``, ``"min"`` or ``"max"``. The mean of integers is a float.

    Returns:
        New tensors of the same shapes; the arguments keep their values. With one process and no
        group they are copies, whatever the operation.

    Raises:
        ValueError: if there is no such operation.

    Example:
        >>> all_reduce_tensors(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if op not in _OPERATIONS:
        raise ValueError(
            f"op: received {op!r}; expected one of {', '.join(map(repr, _OPERATIONS))}"
        )
    if isinstance(tensors, torch.Tensor):
        return _all_reduce([tensors], op)[0]
    return _all_reduce(list(tensors), op)


def _all_reduce(tensors: list[torch.Tensor], op: str) -> list[torch.Tensor]:
    results = [tensor.detach().clone() for tensor in tensors]
    if is_dist_active():
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, tensor in enumerate(results):
            groups.setdefault((tensor.dtype, tensor.device), []).append(index)
        for indices in groups.values():
            flat = torch.cat([results[index].reshape(-1) for index in indices])
            dist.all_reduce(flat, op=_OPERATIONS[op])
            parts = torch.split(flat, [results[index].numel() for index in indices])
            for index, part in zip(indices, parts, strict=True):
                results[index] = part.reshape(results[index].shape).clone()
    if op == "mean":
        results = [tensor / _group_size() for tensor in results]
    return results


def _group_size() -> int:
    # Under torchrun the environment speaks of other ranks before there is a group to reach them.
    return dist.get_world_size() if is_dist_active() else 1


def gather_into_tensor(tensor: torch.Tensor, size: Sequence[int] | None = None) -> torch.Tensor:
    """Gather one tensor of every rank into one, in the order of the ranks.

    Args:
        tensor: of the same shape and dtype on every rank.
        size: (optional) the shape of the result. Without it the tensors are joined along their
            first dimension, and scalars make a vector of one element a rank.

    Returns:
        A new tensor, the same on every rank.

    Raises:
        ValueError: if ``size`` does not hold the elements of all ranks.

    Example:
        >>> gather_into_tensor(torch.tensor(3))
        tensor([3])
    """
    world = _group_size()
    shape = [world] if tensor.ndim == 0 else [world * tensor.shape[0], *tensor.shape[1:]]
    wanted = shape if size is None else list(size)
    if torch.Size(wanted).numel() != world * tensor.numel():
        raise ValueError(
            f"size: received {tuple(wanted)}; expected the {world * tensor.numel()} elements of "
            f"{world} rank(s) with {tuple(tensor.shape)} each, such as {tuple(shape)}"
        )
    source = tensor.detach().reshape(-1).contiguous()
    if not is_dist_active():
        return source.clone().reshape(wanted)
    parts = [torch.empty_like(source) for _ in range(world)]
    dist.all_gather(parts, source)
    return torch.cat(parts).reshape(wanted)


def global_print(*args: Any, global_rank: int = 0, **kwargs: Any) -> None:
    """Print on one rank.

    Args:
        args: what to print.
        global_rank: the rank, over all hosts, that prints. Defaults to 0.
        kwargs: keyword arguments of ``print``.

    Example:
        >>> global_print("epoch", 1)
        epoch 1
    """
    info = get_dist_info()
    if not info.is_distributed or info.rank == global_rank:
        print(*args, **kwargs)  # noqa: T201


def local_print(*args: Any, local_rank: int = 0, **kwargs: Any) -> None:
    """Print on one rank of each host.

    Args:
        args: what to print.
        local_rank: the rank on its host that prints. Defaults to 0.
        kwargs: keyword arguments of ``print``.
    """
    info = get_dist_info()
    if not info.is_distributed or info.local_rank == local_rank:
        print(*args, **kwargs)  # noqa: T201


def safe_barrier(**kwargs: Any) -> None:
    """Wait for all ranks; with one process and no group there is nothing to wait for.

    Args:
        kwargs: keyword arguments of ``torch.distributed.barrier``.
    """
    if is_dist_active():
        dist.barrier(**kwargs)
