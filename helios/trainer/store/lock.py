"""One writer to a folder: the second one is told who holds it."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import msgspec

from helios.errors import RunLockedError
from helios.trainer.store.fs import Fs, read_all, write_all

NAME = ".lock"
_LIMIT = 1 << 12
_TRIES, _PAUSE = 50, 0.02
"""How often to try, and how many seconds to wait between, where nobody is known to hold it."""


class Holder(msgspec.Struct, frozen=True):
    """Who holds a lock, as its file says.

    Args:
        pid: the process.
        host: its machine.
        since: when it took the lock, in local time.
    """

    pid: int
    host: str
    since: str


def acquire(fs: Fs, folder: Path) -> int:
    """Take the lock of a folder, and say in its file who has it.

    Returns:
        The descriptor that holds the lock; closing it, or the end of the process, gives it back.

    Raises:
        RunLockedError: if somebody holds it.
        OSError: if it cannot be taken for another reason.
    """
    path = folder / NAME
    descriptor = _lock(fs, path)
    try:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        text = msgspec.json.encode(Holder(os.getpid(), socket.gethostname(), now)) + b"\n"
        write_all(fs, descriptor, text.ljust(256))  # over whatever the last holder wrote
    except BaseException:
        fs.close(descriptor)
        raise
    return descriptor


def _lock(fs: Fs, path: Path) -> int:
    """Take a lock, with some patience where nobody is known to have it.

    Who has just taken it writes its name next: until then, the file is empty, or names one that
    held it before. And a process that was killed may be gone for a moment before its lock is.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return fs.lock(path)
        except BlockingIOError as error:
            holder = _read(fs, path)
            if tries == _TRIES or (holder is not None and not _has_ended(holder)):
                raise RunLockedError(
                    f"{str(path.parent)!r} is in use: {_name(holder)} is writing checkpoints "
                    "there. Wait until it ends or stop it, or give this run another save_name or "
                    "chkpt_root."
                ) from error
        time.sleep(_PAUSE)


def _name(holder: Holder | None) -> str:
    if holder is None:
        return "another process"
    return f"process {holder.pid} on {holder.host} (since {holder.since})"


def _read(fs: Fs, path: Path) -> Holder | None:
    try:
        with fs.open(path) as file:
            return msgspec.json.decode(read_all(file, _LIMIT), type=Holder)
    except (OSError, msgspec.MsgspecError):
        return None


def _has_ended(holder: Holder) -> bool:
    """Tell whether a holder is known to be gone; nothing is known of other machines."""
    if holder.host != socket.gethostname() or holder.pid <= 0:
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
