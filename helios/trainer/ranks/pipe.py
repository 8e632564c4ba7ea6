"""What a spawned rank and its parent say to each other: each rank has a pipe of its own.

Nothing is shared between ranks, no lock of a queue either: a rank that is killed in the middle of a
message harms no other. Values are pickled by themselves, without what ``torch.multiprocessing``
does for tensors: they are copied, not shared, and are whole even if the rank that sent them is no
more. Pickles are read from these pipes alone, whose other end a process of the same program holds.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal

import msgspec

Kind = Literal["began", "item", "done", "failed"]


class Report(msgspec.Struct, frozen=True):
    """The head of a message from a rank; a body follows.

    Args:
        kind: ``"began"``: the rank has imported everything, and begins to work; ``"item"`` for the
            user's queue; ``"done"`` with what the work returned, bytes; ``"failed"`` with the
            exception that it raised, pickled if that can be.
        seconds: when, on the monotonic clock, which all processes of a host share.
        text: of a failure, its traceback.
    """

    kind: Kind
    seconds: float
    text: str = ""


def unpickle(data: bytes) -> Any:
    """Rebuild what the other end of a pipe has pickled.

    Args:
        data: a message of a process that is this one's parent or child, and of nothing else: to
            rebuild a pickle is to run what it says.
    """
    return ForkingPickler.loads(data)


class Upward:
    """A rank's end of its pipe, for all threads of its process.

    Args:
        connection: the pipe.
    """

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def send(self, kind: Kind, body: bytes = b"", text: str = "") -> None:
        """Send a message; wait until the parent has taken most of it.

        Args:
            kind: what it is about.
            body: bytes that belong to it.
            text: of a failure.

        Raises:
            RuntimeError: in a process that this one has forked.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                "queue: received an item in a process that the rank has started, as the workers of "
                "a loader are; expected it in the process of the rank itself: put it there"
            )
        with self._lock:
            head = Report(kind, time.monotonic(), text)
            self._connection.send_bytes(msgspec.msgpack.encode(head))
            self._connection.send_bytes(body)


class RankQueue:
    """The user's queue on a rank: what is put here, the parent gets, in this order.

    Args:
        upward: the way to the parent.
    """

    def __init__(self, upward: Upward) -> None:
        self._upward = upward

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item into the queue of the parent.

        There is always room. An item is pickled here, tensors are copied.

        Args:
            item: what can be pickled.
            block: without effect, as in a queue without a bound.
            timeout: without effect.

        Raises:
            Exception: what pickling the item raises.
            RuntimeError: in a process that the rank has started.
        """
        self._upward.send("item", pickle.dumps(item, pickle.HIGHEST_PROTOCOL))

    def put_nowait(self, item: Any) -> None:
        """Put an item, as `put`."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Refuse: items go from ranks to their parent.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "queue: get was called on a rank; ranks put items, and the process that called fit "
            "gets them, from trainer.queue"
        )
