"""The ranks of a run as the trainer sees them: which this one is, and what all of them say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from helios.errors import RankError
from helios.trainer.ranks.guard import Guard

_FIRST = 1 << 12  # bytes that the first round carries; a second one follows for longer values
_HEAD = 8


class Ranks:
    """The ranks of a run. One rank alone says everything to itself.

    Args:
        rank: which this one is, over all hosts.
        local_rank: which this one is on its host.
        world_size: number of ranks.
        group: the process group for what ranks say, on the CPU; None for the default one.
        store: what all ranks can write to and read from; needed for `once` alone.
        guard: what tells how the run ends; needed for `ended` and `named` alone.

    Attributes:
        collectives: collectives run so far, of those that `exchange` runs.

    Example:
        >>> Ranks().exchange({"loss": 0.5})
        [{'loss': 0.5}]
    """

    def __init__(
        self,
        rank: int = 0,
        local_rank: int = 0,
        world_size: int = 1,
        group: dist.ProcessGroup | None = None,
        store: Any = None,
        guard: Guard | None = None,
    ) -> None:
        self.rank = rank
        self.local_rank = local_rank
        self.world_size = world_size
        self._group = group
        self._store = store
        self._guard = guard
        self._once = 0
        self.collectives = 0

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self.world_size > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and the terminal."""
        return self.rank == 0

    def exchange(self, value: Any) -> list[Any]:
        """Return what every rank says here, in the order of the ranks.

        Every rank calls it at the same place. It waits for all of them.

        Args:
            value: numbers, strings, bytes, None, and lists and dicts of them.
        """
        if not self.several:
            return [value]
        data = msgspec.msgpack.encode(value)
        own = len(data).to_bytes(_HEAD, "little") + data
        heads = self._gather(own[:_FIRST].ljust(_FIRST, b"\0"))
        lengths = [int.from_bytes(head[:_HEAD], "little") + _HEAD for head in heads]
        longest = max(lengths)
        if longest > _FIRST:
            rest = self._gather(own[_FIRST:].ljust(longest - _FIRST, b"\0"))
            heads = [head + tail for head, tail in zip(heads, rest, strict=True)]
        return [
            msgspec.msgpack.decode(head[_HEAD:length])
            for head, length in zip(heads, lengths, strict=True)
        ]

    def told_by_first(self, value: Any) -> Any:
        """Return what rank 0 says; the others' value is not looked at."""
        return self.exchange(value if self.is_first else None)[0]

    def together(self, act: Callable[[], Any], what: str) -> Any:
        """Let rank 0 do something that can fail, and let all ranks know at once whether it did.

        Args:
            act: what to do, called on rank 0 alone; what it returns is to be as for `exchange`.
            what: names it, for the error.

        Returns:
            What it returned, on every rank.

        Raises:
            Exception: on rank 0, what ``act`` raised.
            RankError: on the others, if it raised.
        """
        result, failure = None, None
        if self.is_first:
            try:
                result = act()
            except Exception as error:
                failure = error
        told = self.told_by_first(
            [result, None if failure is None else f"{type(failure).__name__}: {failure}"]
        )
        if failure is not None:
            raise failure
        result, message = told
        if message is not None:
            raise RankError(f"{what} failed on rank 0: {message}", rank=0)
        return result

    def once(self, act: Callable[[], None]) -> None:
        """Let rank 0 do something that may take long, while the others wait as long as it takes.

        Args:
            act: what to do; if it raises, rank 0 fails, and the others go on to wait.
        """
        self._once += 1
        key = f"once/{self._once}"
        if self.is_first:
            act()
            if self._store is not None:
                self._store.set(key, "done")
        elif self._store is not None:
            # A wait inside the store has a timeout, and lasts until then if rank 0 is dead.
            pause = 0.01
            while not self._store.check([key]):
                time.sleep(pause)
                pause = min(pause * 2, 0.5)

    def ended(self) -> None:
        """Say that all ranks have agreed to end here: leaving is no failure from now on."""
        if self._guard is not None:
            self._guard.ended()

    def named(self, error: BaseException) -> BaseException:
        """Return the failure of the run for an exception that this rank sees of it.

        It is that of the rank which failed first, which may have made others fail.
        """
        return error if self._guard is None else self._guard.named(error)

    def agree(self, what: str, value: Any, advice: str) -> None:
        """Raise unless every rank has the same value.

        Args:
            what: names it, for the error.
            value: what is to be equal, as for `exchange`.
            advice: what to do if it is not, a clause.

        Raises:
            RankError: naming the first rank that differs from rank 0.
        """
        if not self.several:
            return
        values = self.exchange(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise RankError(
                    f"{what}: rank {rank} has {other!r} and rank 0 has {values[0]!r}; expected the "
                    f"same on all ranks: {advice}",
                    rank=rank,
                )

    def close(self) -> None:
        """Let go of the group and the store, when they are left.

        What holds this object may live as long as the process does, or be garbage that a worker of
        a later run is forked with: a group whose threads are not there cannot be freed.
        """
        self._group = self._store = self._guard = None

    def _gather(self, data: bytes) -> list[bytes]:
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(parts, own, group=self._group)
        self.collectives += 1
        return [part.numpy().tobytes() for part in parts]
