"""What a spawned rank runs around its work: where it comes from, and how it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import torch

from helios.errors import RankError
from helios.trainer.ranks.forward import release
from helios.trainer.ranks.pipe import RankQueue, Upward, unpickle

UNGUARDED = 79
"""The status of a rank whose main module would start ranks again; no other status means anything.
"""

_NAME = "helios-rank-"


class Start(msgspec.Struct, frozen=True):
    """What a rank is told at its start.

    Args:
        rank: which one it is.
        world_size: how many there are.
        host: of the parent's store.
        port: of the parent's store.
        name: of the run.
        threads: number of threads for computing on the CPU.
    """

    rank: int
    world_size: int
    host: str
    port: int
    name: str
    threads: int

    @property
    def process_name(self) -> str:
        """The name of the rank's process; it is known before anything of the user's runs."""
        return f"{_NAME}{self.rank}"


def check_may_start_ranks() -> None:
    """Check that this process is one that may start ranks.

    Raises:
        RankError: if it is just importing the main module to become a process itself, or is one of
            those processes that may start none.
    """
    process: Any = multiprocessing.current_process()
    if getattr(process, "_inheriting", False):
        if process.name.startswith(_NAME):
            sys.exit(UNGUARDED)  # the parent says it, once
        raise RankError(unguarded())
    if process.name.startswith(_NAME):
        raise RankError(
            f"ranks: {process.name} was about to start ranks of its own; expected fit and test to "
            "start them from the main process alone: do not call them within a hook"
        )
    if process.daemon:
        raise RankError(
            "ranks: received a process that is a daemon, which may start no others; expected the "
            "main process: call fit there, or start the process with daemon=False"
        )


def unguarded() -> str:
    """Return what to say about a script that starts ranks when it is imported."""
    return (
        "ranks: the main script starts ranks as it is imported, and every rank has to import it; "
        "expected it to do so only as the main program. Put the call into\n\n"
        '    if __name__ == "__main__":\n'
        "        main()\n\n"
        "or start the script with torchrun."
    )


def run_rank(connection: Connection[Any, Any], start: Start) -> None:
    """Be a rank: receive the work, do it, and report how it ended.

    Args:
        connection: the pipe to the parent.
        start: which rank this is.

    Raises:
        SystemExit: if the work has not returned.
    """
    threading.Thread(target=_end_with_parent, name="helios-orphan", daemon=True).start()
    # A process that this one forks must not keep the pipe open when this one is no more.
    os.register_at_fork(after_in_child=connection.close)
    upward = Upward(connection)
    try:
        _begin(start)
        work, args = _receive(connection)
        upward.send("began")
        result = work(
            start.rank,
            start.rank,
            start.world_size,
            start.host,
            start.port,
            start.name,
            RankQueue(upward),
            *args,
        )
        upward.send("done", _checked(result) if start.rank == 0 else b"")
    except BaseException as error:
        with contextlib.suppress(OSError):  # the parent is no more
            upward.send("failed", _pickled(error), _formatted(error))
        sys.exit(_status(error))


def _begin(start: Start) -> None:
    # A session of its own: the terminal's Ctrl-C reaches the parent alone, which forwards it, so
    # that it comes once. Held back until now, they find somebody who can answer.
    if hasattr(os, "setsid"):
        os.setsid()
    release()
    torch.set_num_threads(start.threads)


def _end_with_parent() -> None:
    """Wait, at no cost, for the end of the parent, and end with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _receive(connection: Connection[Any, Any]) -> Any:
    data = connection.recv_bytes()
    try:
        return unpickle(data)
    except Exception as error:
        raise TypeError(
            f"the model, the datamodule or the trainer cannot be rebuilt in the process of a rank "
            f"({type(error).__name__}: {error}); expected their classes and functions in a module "
            "that can be imported, not in a notebook or an interactive session: move them there, "
            "or see that what __init__ and __setstate__ do can be done in another process"
        ) from error


def _checked(result: Any) -> Any:
    if result is None:
        return b""
    if not isinstance(result, bytes | bytearray | memoryview):
        raise TypeError(
            f"work: received {type(result).__name__} from rank 0; expected bytes or None"
        )
    return result


def _pickled(error: BaseException) -> bytes:
    try:
        return pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
    except Exception:
        return pickle.dumps(None)


def _formatted(error: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # a __str__ that fails
        text = type(error).__name__
    return text.encode("utf-8", "backslashreplace").decode()


def _status(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 1
