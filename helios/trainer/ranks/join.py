"""Joining a run of several ranks, and leaving it without a collective."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from helios.errors import RankError
from helios.trainer.ranks.board import Board, Failure
from helios.trainer.ranks.rendezvous import Rendezvous

_LINGER = 4.0  # seconds; a watcher ends its process before that
_DESTROY = 1.0  # seconds
_fits: defaultdict[str, int] = defaultdict(int)


class Joined(msgspec.Struct, frozen=True):
    """A rank among others.

    Args:
        rank: over all hosts, from 0.
        local_rank: on this host, from 0; the index of its device.
        world_size: ranks over all hosts.
        board: where failures are written, for the main thread.
        group: for control messages: a gloo group on the CPU.
        timeout: seconds that a collective of this group, and leaving, may take.
    """

    rank: int
    local_rank: int
    world_size: int
    board: Board
    group: dist.ProcessGroup
    timeout: float


@contextlib.contextmanager
def joined(
    rendezvous: Rendezvous | None, device: torch.device, timeout: float, *, keep: bool = False
) -> Iterator[Joined]:
    """Join a run, and leave it at the end.

    With a rendezvous the ranks form the default group of ``torch.distributed``. It is destroyed at
    the end, without any collective; after an exception without waiting for others, and otherwise
    when all ranks are done: a rank that left before would break those that still read from it.
    Only the rank that hosts the store stays for some seconds until the others have read from the
    board why the run failed.

    Without one, the user's own default group is used and left alive. Their timeout is that of their
    collectives; control messages have a group of their own, of this timeout.

    Args:
        rendezvous: where the ranks meet; None if the user has formed a group.
        device: that the ranks train on; with CUDA the group has NCCL, too.
        timeout: seconds for the others to come, for each collective, and for the others to end
            their work once this rank has.
        keep: whether the group lives on if all went well, until the process ends: a sharded model
            is of no use without it. What joins next uses it.

    Raises:
        RankError: if a rank does not come, or one fails.
        ValueError: if there is a group and a rendezvous, or neither.
    """
    if rendezvous is None:
        it, mine = _use_group(timeout)
    else:
        it, mine = _form_group(rendezvous, device, timeout), None
    kept = False
    try:
        yield it
        failure = finish(it)
        if failure is not None:
            raise RankError(f"[rank {it.rank}] the run failed: {failure}", rank=failure.rank)
        kept = keep and mine is None
    finally:
        if kept:
            atexit.register(_destroy, None)
        else:
            _destroy(mine)
        with contextlib.suppress(RuntimeError):  # the store may have gone
            it.board.leave(_LINGER)


def finish(it: Joined) -> Failure | None:
    """Wait for all ranks to end their work; return the first failure, if there is one."""
    try:
        return it.board.finish(it.timeout)
    except RuntimeError:
        return it.board.gone()


def _form_group(rendezvous: Rendezvous, device: torch.device, timeout: float) -> Joined:
    if dist.is_initialized():
        raise ValueError(
            "rendezvous: there is a default group already; destroy it, or pass None to use it"
        )
    me, world = rendezvous.rank, rendezvous.world_size
    store: Any = rendezvous.store(timeout)
    board = Board(PrefixStore("board", store), me, world, rendezvous.hosting_rank)
    try:
        missing = board.arrive(timeout)
        if missing:
            raise RankError(_did_not_come(rendezvous, missing, timeout), rank=missing[0])
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("group", store.clone()),
            rank=me,
            world_size=world,
            timeout=timedelta(seconds=timeout),
        )
    except RuntimeError as error:
        _destroy(None)
        if isinstance(error, RankError):
            raise
        raise _not_formed(board, error, timeout) from error
    assert dist.group.WORLD is not None
    return Joined(me, rendezvous.local_rank, world, board, dist.group.WORLD, timeout)


def _did_not_come(rendezvous: Rendezvous, missing: list[int], timeout: float) -> str:
    ranks = ", ".join(map(str, missing[:16])) + (", ..." if len(missing) > 16 else "")
    return (
        f"rank {rendezvous.rank} waited {timeout:g} s at {rendezvous.host}:{rendezvous.port} for "
        f"all {rendezvous.world_size} ranks; {len(missing)} did not come: rank {ranks}. See what "
        "they printed: they failed before they joined, or were not started, or have another "
        "address, port or number of fits before this one"
    )


def _not_formed(board: Board, error: RuntimeError, timeout: float) -> RankError:
    message = f"all ranks came, but within {timeout:g} s no group could be formed: {error}"
    failure = Failure(board.rank, "raised", "joining", message)
    with contextlib.suppress(RuntimeError):
        failure = board.post(failure)
        board.leave(_LINGER)
    return RankError(f"[rank {board.rank}] the run failed: {failure}", rank=failure.rank)


def _use_group(timeout: float) -> tuple[Joined, dist.ProcessGroup]:
    if not dist.is_initialized():
        raise ValueError(
            "rendezvous: received None, and torch.distributed has no default group; expected one "
            "of them: start the ranks with torchrun, or call init_process_group first"
        )
    rank, world = dist.get_rank(), dist.get_world_size()
    store: Any = dist.distributed_c10d._get_default_store()
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # at the same store
    _fits[restart] += 1
    prefix = f"helios/{restart}/{_fits[restart]}"
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    board = Board(
        PrefixStore(prefix, store.clone()), rank, world, hosting_rank=None if hosted else 0
    )
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    return Joined(rank, local_rank, world, board, group, timeout), group


def _destroy(group: dist.ProcessGroup | None) -> None:
    """Destroy a group, the default one for None.

    That waits for collectives under way, which after a failure may take until their timeout. It is
    not waited for: the process is about to end, and closes its connections by that.
    """
    if not dist.is_initialized():
        return
    thread = threading.Thread(target=dist.destroy_process_group, args=(group,), daemon=True)
    thread.start()
    thread.join(_DESTROY)
