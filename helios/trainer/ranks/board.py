"""The board of a run: where the first failure is written, and the others are asked for theirs.

Everything is a key of the store:

===================== ===========================================================================
``here/<rank>``       the rank has come
``failure``           the first failure; it stands
``bell/<rank>``       the rank's watcher is to look
``asked``             counts those that want to know what the others do; the first rings the bells
``answer/<rank>``     what the rank's main thread does, from its watcher
``waited/<rank>``     the rank's collective has failed, which is somebody else's fault
``finished/<rank>``   the rank has done its work
``agreed``            all have
``left/<rank>``       the rank needs the store no more
===================== ===========================================================================
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Literal

import msgspec
import torch.distributed as dist

_FOR_EVER = timedelta(days=20)  # in milliseconds it still is a C int
_SHOWN = 16  # ranks that a message lists
_MOST_TEXT = 200  # characters of what another rank said

Kind = Literal["raised", "waited", "stalled", "died"]


class Failure(msgspec.Struct, frozen=True):
    """How a rank failed.

    Args:
        rank: which one; None if it was none of them, but what hosts the store.
        kind: ``"raised"`` an exception, ``"waited"`` in vain for another rank, ``"stalled"``: it
            did not come to where the others waited, or ``"died"``.
        where: in the run, in words; may be empty.
        message: what happened, in a line.
        traceback: of the exception, or the stack of the main thread; may be empty.
    """

    rank: int | None
    kind: Kind
    where: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        """Return all of it as text, the traceback last."""
        who = "what started the ranks" if self.rank is None else f"rank {self.rank}"
        where = f" ({self.where})" if self.where else ""
        head = f"{who} failed first{where}: {self.message}"
        if not self.traceback:
            return head
        what = "traceback" if self.kind in ("raised", "waited") else "stack"
        whose = "Its" if self.rank is None else f"The {what} of rank {self.rank}"
        return f"{head}\n{whose}:\n{self.traceback.rstrip()}"


class Answer(msgspec.Struct, frozen=True):
    """What a rank's main thread does.

    Args:
        where: in the run, in words; may be empty.
        stack: of the main thread.
        in_collective: whether the stack is seen to wait for other ranks. Within a backward pass
            nothing can be seen.
    """

    where: str
    stack: str
    in_collective: bool = False


class Board:
    """One rank's view of the board, for one thread: a connection carries one call at a time.

    All methods raise the ``RuntimeError`` of the store if it has gone.

    Args:
        store: a ``torch.distributed.Store``, with a connection of its own.
        rank: whose view it is.
        world_size: how many ranks there are.
        hosting_rank: the rank that hosts the store; None if none of them does.
    """

    def __init__(
        self, store: Any, rank: int, world_size: int, hosting_rank: int | None = None
    ) -> None:
        self._store = store
        self.store = store
        self.rank = rank
        self.world_size = world_size
        self.hosting_rank = hosting_rank

    def clone(self) -> Board:
        """Return a view with a connection of its own, for another thread."""
        return Board(self._store.clone(), self.rank, self.world_size, self.hosting_rank)

    # Coming and going.

    def arrive(self, timeout: float) -> list[int]:
        """Say that this rank is here, and wait for all.

        Args:
            timeout: seconds.

        Returns:
            The ranks that did not come in time.
        """
        self._mark("here")
        everybody = self._keys("here", range(self.world_size))
        if _poll(lambda: self._store.check(everybody), timeout):
            return []
        return self._unmarked("here")

    def finish(self, timeout: float) -> Failure | None:
        """Say that this rank has done its work, and wait until all have.

        A rank that left before the others would close connections that they still read from; a rank
        that fails at the very end would find nobody to tell.

        Args:
            timeout: seconds.

        Returns:
            The first failure, if there is one; of a rank that does not finish in time, too.
        """
        if not self._has("finished", self.rank):
            self._mark("finished")
            if self._store.add("finished", 1) == self.world_size:
                self._store.set("agreed", "")
        if _poll(lambda: self._store.check(["agreed"]) or self.failure() is not None, timeout):
            return self.failure()
        message = f"waited {timeout:g} s for the other ranks to end their work"
        return self.blame(Failure(self.rank, "waited", "at the end", message))

    def leave(self, timeout: float) -> None:
        """Say that this rank needs the store no more; the host waits for the others.

        Args:
            timeout: seconds for which the rank that hosts the store waits. A rank that is known to
                have died is not waited for.
        """
        self._mark("left")
        if self.rank != self.hosting_rank:
            return
        failure = self.failure()
        died = failure.rank if failure is not None and failure.kind == "died" else None
        others = [rank for rank in range(self.world_size) if rank != died]
        _poll(lambda: self._store.check(self._keys("left", others)), timeout)

    # The first failure.

    def failure(self) -> Failure | None:
        """Return the failure that stands, without waiting for one."""
        if not self._store.check(["failure"]):
            return None
        return msgspec.msgpack.decode(self._store.get("failure"), type=Failure)

    def post(self, failure: Failure) -> Failure:
        """Write a failure down, and wake all watchers.

        Returns:
            The one that stands: the first that was posted, by whichever rank.
        """
        encoded = msgspec.msgpack.encode(failure)
        standing = self._store.compare_set("failure", "", encoded)
        if standing == encoded:
            self._ring(range(self.world_size))
        return msgspec.msgpack.decode(standing, type=Failure)

    def blame(self, waited: Failure, patience: float = 2.0) -> Failure:
        """Find out for which rank this one waited in vain, and post that.

        Another rank's exception goes before everything: there is some time for it to be posted.
        Meanwhile the watchers are asked what their main threads do. A rank that does not answer is
        dead; one that answers, and was not waiting for others, has stalled. If all were waiting,
        their collectives do not fit each other.

        Args:
            waited: how this rank failed.
            patience: seconds.

        Returns:
            The failure that stands.
        """
        self._store.set(f"waited/{self.rank}", msgspec.msgpack.encode(waited))
        if self._store.add("asked", 1) == 1:
            self._ring(range(self.world_size))
        everybody = self._keys("waited", range(self.world_size))
        _poll(lambda: self.failure() is not None or self._store.check(everybody), patience)
        return self.failure() or self.post(self._verdict(waited))

    def gone(self) -> Failure:
        """Return the failure that is left to say if the store has gone."""
        what = "died, or ended while others still worked; the store that it hosts has gone with it"
        return Failure(self.hosting_rank, "died", "", what)

    # What a watcher does.

    def wait_for_bell(self) -> None:
        """Wait, at no cost, until this rank's bell rings, or the store is gone."""
        while not self._has("bell", self.rank):
            try:
                self._store.wait([f"bell/{self.rank}"], _FOR_EVER)
            except dist.DistStoreError:  # out of time
                continue

    def ring_own_bell(self) -> None:
        """Wake the watcher of this rank alone."""
        self._ring([self.rank])

    def answer(self, answer: Answer) -> None:
        """Say what this rank's main thread does."""
        self._store.set(f"answer/{self.rank}", msgspec.msgpack.encode(answer))

    # What a rank that waited makes of it.

    def _verdict(self, waited: Failure) -> Failure:
        waiting = {rank: self._waited(rank) for rank in range(self.world_size)}
        suspects = [rank for rank, failure in waiting.items() if failure is None]
        answers = {rank: self._answer(rank) for rank in suspects}
        for rank, answer in answers.items():
            if answer is None:
                return Failure(rank, "died", "", _died(waited))
        for rank, answer in answers.items():
            if answer is not None and not answer.in_collective and not self._has("finished", rank):
                what = f"did not come to where others waited for it; {_said(waited)}"
                return Failure(rank, "stalled", answer.where, what, answer.stack)
        finished = [rank for rank in waiting if self._has("finished", rank)]
        if finished and len(finished) < self.world_size:
            what = "ended its work while other ranks waited for it in a collective"
            told = (failure for rank, failure in waiting.items() if rank not in finished)
            what = f"{what}; {_said(next(filter(None, told), waited))}"
            return Failure(finished[0], "stalled", "at the end", what)
        return _misfit({r: failure for r, failure in waiting.items() if failure is not None})

    def _waited(self, rank: int) -> Failure | None:
        if not self._has("waited", rank):
            return None
        return msgspec.msgpack.decode(self._store.get(f"waited/{rank}"), type=Failure)

    def _answer(self, rank: int) -> Answer | None:
        if not self._has("answer", rank):
            return None
        return msgspec.msgpack.decode(self._store.get(f"answer/{rank}"), type=Answer)

    # Keys.

    def _keys(self, name: str, ranks: Iterable[int]) -> list[str]:
        return [f"{name}/{rank}" for rank in ranks]

    def _mark(self, name: str) -> None:
        self._store.set(f"{name}/{self.rank}", "")

    def _has(self, name: str, rank: int) -> bool:
        return bool(self._store.check([f"{name}/{rank}"]))

    def _unmarked(self, name: str) -> list[int]:
        return [rank for rank in range(self.world_size) if not self._has(name, rank)]

    def _ring(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self._store.set(f"bell/{rank}", "")


def _poll(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for a condition, at most ``timeout`` seconds; return whether it came.

    The store could wait by itself, but prints a warning whenever it does so in vain.
    """
    end, pause = time.monotonic() + timeout, 0.001
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    return True


def _died(waited: Failure) -> str:
    return (
        "ended without a word: it was killed (for memory, perhaps), or crashed in native code, as "
        "gloo does if ranks do not give tensors of the same size to a collective; what it printed "
        f"may tell. {_said(waited)}"
    )


def _said(waited: Failure) -> str:
    where = f" ({waited.where})" if waited.where else ""
    message = waited.message[:_MOST_TEXT] + "..." * (len(waited.message) > _MOST_TEXT)
    return f"rank {waited.rank}{where} noticed it: {message}"


def _misfit(waiting: dict[int, Failure]) -> Failure:
    first = min(waiting)
    places = "\n".join(
        f"--- rank {rank}: {failure.message}\n{failure.traceback.rstrip()}"
        for rank, failure in list(waiting.items())[:_SHOWN]
    )
    message = (
        f"{_ranks(waiting)} waited for each other, and all of them are alive: their collectives do "
        "not fit each other (see where each of them was), or the network failed"
    )
    return Failure(first, "waited", waiting[first].where, message, places)


def _ranks(ranks: Iterable[int]) -> str:
    numbers = sorted(ranks)
    text = ", ".join(map(str, numbers[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
    return f"rank{'s' * (len(numbers) > 1)} {text}"
