"""One writer to a folder: the second one is told who holds it."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import msgspec

from helios.errors import RunLockedError
from helios.trainer.store.commit import read_all
from helios.trainer.store.fs import Fs, write_all

NAME = ".lock"
_LIMIT = 1 << 12
_TRIES, _PAUSE = 50, 0.02
"""How often, and after how many seconds each, to look again for the name of a new holder."""


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
    try:
        descriptor = fs.lock(path)
    except BlockingIOError as error:
        raise RunLockedError(
            f"{str(folder)!r} is in use: {_describe(fs, path)} is writing checkpoints there. Wait "
            "until it ends or stop it, or give this run another save_name or chkpt_root."
        ) from error
    try:
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        text = msgspec.json.encode(Holder(os.getpid(), socket.gethostname(), now)) + b"\n"
        write_all(fs, descriptor, text.ljust(256))  # over whatever the last holder wrote
    except BaseException:
        fs.close(descriptor)
        raise
    return descriptor


def _describe(fs: Fs, path: Path) -> str:
    """Say who holds a lock.

    Who has just taken it writes its name next: until then, the file is empty, or names one that
    held it before and has ended.
    """
    holder = _read(fs, path)
    for _ in range(_TRIES):
        if holder is not None and not _has_ended(holder):
            break
        time.sleep(_PAUSE)
        holder = _read(fs, path)
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
