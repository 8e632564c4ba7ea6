"""The file operations of the store, all in one small object, so that tests can make each one fail.

Nothing else in the store touches the disk. `OsFs` is the real one. A test passes another one that
raises at the n-th operation, ends the process there, or loses whatever was not synced.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO, Protocol

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing to lock with
    fcntl = None  # type: ignore[assignment]

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # opening a FIFO would wait for its other end
_locked: set[int] = set()


class Fs(Protocol):
    """What the store does to files. Every method raises ``OSError`` where the system does."""

    def create(self, path: Path) -> int:
        """Create a file that must not exist, for its owner alone; return a descriptor to write."""
        ...

    def append(self, path: Path, size: int) -> int:
        """Open a regular file, never through a link; return a descriptor to write after ``size``.

        What the file has beyond that is cut off.
        """
        ...

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of ``data``, and return how many bytes that were."""
        ...

    def fsync(self, descriptor: int) -> None:
        """Wait until what was written to a file is on the disk."""
        ...

    def close(self, descriptor: int) -> None:
        """Close a descriptor."""
        ...

    def open(self, path: Path) -> IO[bytes]:
        """Open a regular file to read, never through a link."""
        ...

    def replace(self, source: Path, target: Path) -> None:
        """Give a file another name in its folder, in the place of what has that name."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        ...

    def listdir(self, folder: Path) -> list[str]:
        """Return the names in a folder."""
        ...

    def mkdir(self, folder: Path) -> None:
        """Create a folder for its owner alone; its parent must exist."""
        ...

    def fsync_dir(self, folder: Path) -> None:
        """Wait until the names in a folder are on the disk."""
        ...

    def lock(self, path: Path) -> int:
        """Lock a file for this process, creating it; return the descriptor that holds the lock.

        Raises:
            BlockingIOError: if another process, or another descriptor of this one, holds it.
        """
        ...


class OsFs:
    """The operating system's files."""

    def create(self, path: Path) -> int:
        """Create a file; see `Fs`."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _CLOEXEC, 0o600)

    def append(self, path: Path, size: int) -> int:
        """Open a file to write after some bytes of it; see `Fs`."""
        flags = os.O_WRONLY | os.O_APPEND | _NOFOLLOW | _NONBLOCK | _CLOEXEC
        descriptor = os.open(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            if os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, size)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of ``data``; see `Fs`."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Sync a file; see `Fs`."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a descriptor, and with it give up a lock that it holds; see `Fs`."""
        if descriptor in _locked:
            _locked.discard(descriptor)
            if fcntl is not None:  # a child that was forked just now still has a copy
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)

    def open(self, path: Path) -> IO[bytes]:
        """Open a regular file to read; see `Fs`."""
        descriptor = os.open(path, os.O_RDONLY | _NOFOLLOW | _NONBLOCK | _CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file; see `Fs`."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name; see `Fs`."""
        os.unlink(path)

    def listdir(self, folder: Path) -> list[str]:
        """Return the names in a folder; see `Fs`."""
        return os.listdir(folder)

    def mkdir(self, folder: Path) -> None:
        """Create a folder; see `Fs`."""
        os.mkdir(folder, 0o700)

    def fsync_dir(self, folder: Path) -> None:
        """Sync a folder; see `Fs`."""
        descriptor = os.open(folder, os.O_RDONLY | _CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def lock(self, path: Path) -> int:
        """Lock a file; see `Fs`. The kernel gives the lock back when the process ends."""
        flags = os.O_RDWR | os.O_CREAT | _NOFOLLOW | _NONBLOCK | _CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        _locked.add(descriptor)
        return descriptor


def _forget_locks() -> None:
    """In a forked child, close its copies of the locks, or it would hold them past its parent."""
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def write_file(fs: Fs, path: Path, data: bytes) -> None:
    """Create a small file and sync it. The name is synced with its folder, not here."""
    descriptor = fs.create(path)
    try:
        write_all(fs, descriptor, data)
        fs.fsync(descriptor)
    finally:
        fs.close(descriptor)


def write_all(fs: Fs, descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of ``data``: a write may be short, or be interrupted by a signal."""
    rest = memoryview(data).cast("B")
    while rest:
        try:
            rest = rest[fs.write(descriptor, rest) :]
        except InterruptedError:
            continue


def read_all(file: IO[bytes], limit: int) -> bytes:
    """Read up to ``limit`` bytes."""
    parts = []
    while limit > 0 and (part := file.read(limit)):
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)
