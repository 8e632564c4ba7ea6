"""Disks that fail: at one operation, for good, or by losing what was not synced."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol

from helios.trainer.store.fs import Fs, OsFs
from tests.trainer.store.tiny import UnsyncedFs

BLOCK = 512
"""Bytes that a disk writes whole or not at all."""

Site = tuple[str, int]
"""The module and the line of a call."""


class PowerCut(BaseException):
    """The process is dead: nothing after this may reach the disk."""


class CountingFs:
    """Numbers the operations of a disk, from 1, and lets one of them go wrong.

    A read of an opened file is an operation too.

    Args:
        inner: the disk.
        at: the operation that goes wrong; 0 for none.
        fault: what it raises. After a `PowerCut`, every other operation raises one as well.
        after: whether the operation is done nevertheless.
        lasting: whether all operations from there on go wrong.
        watch: (optional) is called before every operation, with its name.
    """

    def __init__(
        self,
        inner: Fs | None = None,
        at: int = 0,
        fault: Callable[[], BaseException] = PowerCut,
        *,
        after: bool = False,
        lasting: bool = False,
        watch: Callable[[str], None] | None = None,
    ) -> None:
        self.inner: Fs = OsFs() if inner is None else inner
        self.at, self.fault, self.after, self.lasting = at, fault, after, lasting
        self.watch = watch
        self.log: list[str] = []
        self.failed: list[str] = []
        self._dead = False
        self._opened: set[int] = set()

    @property
    def count(self) -> int:
        return len(self.log)

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self.at = 0

    def bury(self) -> None:
        """Do what the kernel does for a dead process: close its files, and so free its locks."""
        for descriptor in self._opened:
            with contextlib.suppress(OSError):
                self.inner.close(descriptor)
        self._opened.clear()

    def run(self, name: str, act: Callable[[], Any], undo: Callable[[Any], object] | None = None):
        """Do an operation, or let it go wrong; ``undo`` gives back what nobody will receive."""
        if self._dead:
            raise PowerCut
        if self.watch is not None:
            self.watch(name)
        self.log.append(name)
        hit = self.at and (self.count == self.at or (self.lasting and self.count > self.at))
        if not hit:
            return act()
        self.failed.append(name)
        fault = self.fault()
        self._dead = isinstance(fault, PowerCut)
        if self.after or name == "close":  # a close that fails has closed
            result = act()
            if undo is not None:
                undo(result)
        raise fault

    def create(self, path: Path) -> int:
        descriptor = self.run("create", lambda: self.inner.create(path), self.inner.close)
        self._opened.add(descriptor)
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        return self.run("write", lambda: self.inner.write(descriptor, data))

    def fsync(self, descriptor: int) -> None:
        self.run("fsync", lambda: self.inner.fsync(descriptor))

    def close(self, descriptor: int) -> None:
        if not self._dead:
            self._opened.discard(descriptor)
        self.run("close", lambda: self.inner.close(descriptor))

    def open(self, path: Path) -> IO[bytes]:
        file = self.run("open", lambda: self.inner.open(path), lambda file: file.close())
        return _CountedFile(self, file)  # type: ignore[return-value]

    def replace(self, source: Path, target: Path) -> None:
        self.run("replace", lambda: self.inner.replace(source, target))

    def unlink(self, path: Path) -> None:
        self.run("unlink", lambda: self.inner.unlink(path))

    def listdir(self, folder: Path) -> list[str]:
        return self.run("listdir", lambda: self.inner.listdir(folder))

    def mkdir(self, folder: Path) -> None:
        self.run("mkdir", lambda: self.inner.mkdir(folder))

    def fsync_dir(self, folder: Path) -> None:
        self.run("fsync_dir", lambda: self.inner.fsync_dir(folder))

    def lock(self, path: Path) -> int:
        descriptor = self.run("lock", lambda: self.inner.lock(path), self.inner.close)
        self._opened.add(descriptor)
        return descriptor


class _CountedFile:
    """A file whose reads are operations of a `CountingFs`."""

    def __init__(self, fs: CountingFs, file: IO[bytes]) -> None:
        self._fs, self._file = fs, file

    def read(self, *size: int) -> bytes:
        return self._fs.run("read", lambda: self._file.read(*size))

    def readinto(self, buffer: Any) -> int:
        return self._fs.run("read", lambda: self._file.readinto(buffer))  # type: ignore[attr-defined]

    def readline(self, *size: int) -> bytes:
        return self._fs.run("read", lambda: self._file.readline(*size))

    def __enter__(self) -> _CountedFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class MutedFs:
    """Leaves out the syncs of one place in the code, and notes all of them.

    Args:
        inner: the disk.
        muted: the place; None for none.
    """

    def __init__(self, inner: Fs, muted: Site | None = None) -> None:
        self._inner, self._muted = inner, muted
        self.seen: set[Site] = set()

    def _sync(self, sync: Callable[[Any], None], what: Any) -> None:
        frame = sys._getframe(2)
        site = (Path(frame.f_code.co_filename).name, frame.f_lineno)
        self.seen.add(site)
        if site != self._muted:
            sync(what)

    def fsync(self, descriptor: int) -> None:
        self._sync(self._inner.fsync, descriptor)

    def fsync_dir(self, folder: Path) -> None:
        self._sync(self._inner.fsync_dir, folder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Loss(Protocol):
    """What is lost in a power failure, of what was not synced."""

    def keeps(self) -> bool:
        """Tell whether one change of a folder has reached the disk."""
        ...

    def tear(self, old: bytes, new: bytes) -> bytes:
        """Return what is on the disk of a file that was ``old`` and was to be ``new``."""
        ...


class Everything:
    """All that was not synced is lost."""

    def keeps(self) -> bool:
        return False

    def tear(self, old: bytes, new: bytes) -> bytes:
        return old


class Nothing:
    """All of it has reached the disk."""

    def keeps(self) -> bool:
        return True

    def tear(self, old: bytes, new: bytes) -> bytes:
        return new


class Random:
    """Some of it is lost, files by blocks; a block that is lost is as before, or zeros."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(repr(seed))
        self._share = self._random.choice([0.1, 0.5, 0.5, 0.9])

    def keeps(self) -> bool:
        return self._random.random() < self._share

    def tear(self, old: bytes, new: bytes) -> bytes:
        length = self._random.choice([len(old), self._random.randint(0, len(new)), len(new)])
        length = max(length, min(len(old), len(new)))
        parts = []
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            source = new if self.keeps() else old
            parts.append(source[start:end].ljust(end - start, b"\0"))
        return b"".join(parts)


class _File:
    """A file's bytes, as the processes see them and as they are on the disk."""

    def __init__(self, data: bytes = b"") -> None:
        self.now, self.durable = bytearray(data), data

    def crash(self, loss: Loss) -> bytes:
        now = bytes(self.now)
        return now if now == self.durable else loss.tear(self.durable, now)


class _Folder:
    """A folder's names, as processes see them and on the disk, and the changes in between."""

    def __init__(self, image: Image | None = None) -> None:
        self.now: dict[str, _File | _Folder] = {
            name: _Folder(part) if isinstance(part, dict) else _File(part)
            for name, part in (image or {}).items()
        }
        self.durable = dict(self.now)
        self.changes: list[dict[str, _File | _Folder | None]] = []

    def change(self, names: dict[str, _File | _Folder | None]) -> None:
        """Give names new files, or none, in one go."""
        self.changes.append(names)
        _apply(self.now, names)

    def sync(self) -> None:
        self.durable, self.changes = dict(self.now), []

    def crash(self, loss: Loss) -> Image:
        names = dict(self.durable)
        for change in self.changes:
            if loss.keeps():
                _apply(names, change)
        return {name: node.crash(loss) for name, node in sorted(names.items())}


Image = dict[str, Any]
"""What is in a folder: bytes by name, and images of the folders in it."""


def _apply(names: dict[str, _File | _Folder], change: dict[str, _File | _Folder | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class CrashDiskFs:
    """A disk that keeps only what was synced: files by ``fsync``, names by ``fsync_dir``.

    Processes see a real folder. Beside it, this knows what of it is on the disk for certain, and
    which changes are not: `crash` returns what the disk may hold after a power failure. Every
    change of a folder, a rename included, is lost or kept as a whole, and in any combination.

    Args:
        root: an existing folder, whose content is on the disk.
        before: (optional) is called before every operation that changes something.
    """

    def __init__(self, root: Path, before: Callable[[str], None] | None = None) -> None:
        self.root = root
        self.before = before
        self._top = _Folder(image_of(root))
        self._real = UnsyncedFs()
        self._files: dict[int, tuple[_File, int]] = {}

    def crash(self, loss: Loss) -> Image:
        """Return what the disk may hold if the power fails now."""
        return self._top.crash(loss)

    def _enter(self, name: str) -> None:
        if self.before is not None:
            self.before(name)

    def _folder(self, path: Path) -> _Folder | None:
        """Return a folder; None for one above the root, which is not of this disk."""
        if path != self.root and self.root not in path.parents:
            return None
        folder = self._top
        for name in path.relative_to(self.root).parts:
            inner = folder.now[name]
            assert isinstance(inner, _Folder)
            folder = inner
        return folder

    def _of(self, path: Path) -> _Folder:
        folder = self._folder(path.parent)
        assert folder is not None
        return folder

    def create(self, path: Path) -> int:
        self._enter("create")
        descriptor = self._real.create(path)
        file = _File()
        self._of(path).change({path.name: file})
        self._files[descriptor] = file, 0
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self._enter("write")
        count = self._real.write(descriptor, data)
        file, position = self._files[descriptor]
        file.now[position : position + count] = data[:count]
        self._files[descriptor] = file, position + count
        return count

    def fsync(self, descriptor: int) -> None:
        self._enter("fsync")
        file, _ = self._files[descriptor]
        file.durable = bytes(file.now)

    def close(self, descriptor: int) -> None:
        self._real.close(descriptor)
        del self._files[descriptor]

    def open(self, path: Path) -> IO[bytes]:
        return self._real.open(path)

    def replace(self, source: Path, target: Path) -> None:
        self._enter("replace")
        self._real.replace(source, target)
        folder = self._of(source)
        assert folder is self._of(target)
        folder.change({source.name: None, target.name: folder.now[source.name]})

    def unlink(self, path: Path) -> None:
        self._enter("unlink")
        self._real.unlink(path)
        self._of(path).change({path.name: None})

    def listdir(self, folder: Path) -> list[str]:
        return self._real.listdir(folder)

    def mkdir(self, folder: Path) -> None:
        self._enter("mkdir")
        self._real.mkdir(folder)
        self._of(folder).change({folder.name: _Folder()})

    def fsync_dir(self, folder: Path) -> None:
        self._enter("fsync_dir")
        synced = self._folder(folder)
        if synced is not None:
            synced.sync()

    def lock(self, path: Path) -> int:
        self._enter("lock")
        descriptor = self._real.lock(path)
        folder = self._of(path)
        if path.name not in folder.now:
            folder.change({path.name: _File()})
        file = folder.now[path.name]
        assert isinstance(file, _File)
        self._files[descriptor] = file, 0
        return descriptor


class FullFs(UnsyncedFs):
    """A disk without room: its files can be created, and hold nothing."""

    def write(self, descriptor: int, data: memoryview) -> int:
        full = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
        try:
            return os.write(full, data)
        finally:
            os.close(full)


def image_of(folder: Path) -> Image:
    """Return what is in a folder."""
    return {
        path.name: image_of(path) if path.is_dir() else path.read_bytes()
        for path in sorted(folder.iterdir())
    }


def materialise(image: Image, folder: Path) -> None:
    """Put an image into an empty folder."""
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, part in image.items():
        if isinstance(part, dict):
            materialise(part, folder / name)
        else:
            (folder / name).write_bytes(part)


def signature(image: Image) -> Any:
    """Return a key for an image; who held the lock does not matter."""
    return tuple(
        (name, signature(part) if isinstance(part, dict) else b"" if name == ".lock" else part)
        for name, part in image.items()
    )
