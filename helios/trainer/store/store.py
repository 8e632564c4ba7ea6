"""The checkpoints of one run: a folder that one process writes."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from helios.errors import CheckpointError
from helios.trainer.store import lock
from helios.trainer.store.commit import Part, commit, recover, remove
from helios.trainer.store.fs import Fs, OsFs
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.names import is_stem
from helios.trainer.store.pins import pinned
from helios.trainer.store.reading import committed, last_valid, verify
from helios.trainer.store.retention import Retention, superfluous


class Store:
    """A folder of checkpoints, locked for this process as long as the store is open.

    Args:
        folder: ``<chkpt_root>/<save_name>``; it is made if it is missing, for its owner alone.
        retention: (optional) which checkpoints to keep; all by default.
        fs: (optional) the disk.

    Raises:
        RunLockedError: if another run writes there.
        CheckpointError: if the folder cannot be made or written into, is a link, or is another
            user's.

    Attributes:
        newest: the file name of the checkpoint that was read or committed last, None before.
    """

    def __init__(self, folder: Path, retention: Retention | None = None, fs: Fs | None = None):
        self.folder = folder
        self.save_name = folder.name
        self._retention = retention
        self._fs: Fs = OsFs() if fs is None else fs
        self._broken: set[str] = set()
        self._verified: set[str] = set()
        self._manifests: dict[str, Manifest] = {}
        self._listed = False  # whether the manifests are those on the disk
        self._lock: int | None = None
        self.newest: str | None = None
        try:
            _make(self._fs, folder)
            _check_owner(folder)
            self._lock = lock.acquire(self._fs, folder)
            recover(self._fs, folder, self.save_name)
            self._list()
        except OSError as error:
            self.close()
            raise CheckpointError(
                f"chkpt_root: cannot write into {str(folder)!r}: {error.strerror or error}. Give a "
                "folder that exists or can be made, on a file system with room, with write "
                "permission."
            ) from error
        except BaseException:
            self.close()
            raise
        self._sequence = max((m.sequence for m in self._manifests.values()), default=0)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            descriptor, self._lock = self._lock, None
            with contextlib.suppress(OSError):
                self._fs.close(descriptor)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def fs(self) -> Fs:
        """The disk."""
        return self._fs

    def last_valid(self, *, joined: bool = True) -> tuple[dict[str, Any], Path] | None:
        """Return the content and the path of the newest checkpoint that is whole.

        See `helios.trainer.store.reading.last_valid`.
        """
        found = last_valid(self._fs, self.folder, self.save_name, self._broken, joined=joined)
        if found is not None:
            self.newest = found[1].name
            self._verified.add(found[1].stem)
        return found

    def save(
        self,
        name: str,
        write: Callable[[Any], None],
        describe: Callable[[str, int, str, int], Manifest],
        check: Callable[[IO[bytes], int], None] = lambda file, size: None,
        parts: Sequence[Part] = (),
    ) -> Manifest:
        """Commit a checkpoint, and then remove those that need not be kept.

        Args:
            name: the file name that it is to have.
            write: writes the content into a file.
            describe: ``(file name, size, sha256, sequence) -> manifest``.
            check: ``(file, size)``: raises if what was written would be refused when it is read.
            parts: what else belongs to it, written by the ranks; see `commit`.

        Returns:
            The manifest, once the checkpoint is on the disk.

        Raises:
            CheckpointError: if it cannot be written. What could not be removed is a warning.
        """
        listed, self._listed = self._listed, False
        self._sequence += 1  # a failed save has used its number: it may yet be on the disk
        stem = name.removesuffix(".pth")
        if not is_stem(stem, self.save_name):
            raise CheckpointError(
                f"a checkpoint cannot have the name {name!r}; expected letters, digits and "
                "'._=+-', with the epoch and the update in it"
            )
        try:
            manifest = commit(
                self._fs,
                self.folder,
                stem,
                write,
                lambda file, size, digest: describe(file, size, digest, self._sequence),
                check,
                parts,
            )
        except OSError as error:
            raise CheckpointError(
                f"cannot write into {str(self.folder)!r}: {error.strerror or error}"
            ) from error
        self._manifests[manifest.stem] = manifest
        self._verified.add(manifest.stem)
        self.newest = manifest.file
        self._listed = listed
        self._collect(manifest)
        return manifest

    def _list(self) -> None:
        """Read which checkpoints there are."""
        entries = committed(self._fs, self.folder, self.save_name)
        self._manifests = {e.stem: e.manifest for e in entries if e.manifest is not None}
        self._broken |= {e.stem for e in entries if e.manifest is None}
        self._listed = True

    def _collect(self, newest: Manifest) -> None:
        """Remove what the retention does not keep; never what is broken, that is for people."""
        if self._retention is None:
            return
        try:
            if not self._listed:  # a save or a removal failed: nobody knows how far it came
                self._list()
            for stem in self._superfluous(self._retention, newest):
                doomed = self._manifests.pop(stem)
                names = [part.name for part in doomed.files]
                remove(self._fs, self.folder, stem, names)
        except OSError as error:
            self._listed = False
            warnings.warn(
                f"a checkpoint that is no longer needed could not be removed from "
                f"{str(self.folder)!r}: {error.strerror or error}",
                stacklevel=2,
            )

    def _superfluous(self, retention: Retention, newest: Manifest) -> list[str]:
        """Return what need not be kept, once what is kept in its place is known to be whole."""
        pins = pinned(self._fs, self.folder)
        while True:
            whole = [m for stem, m in self._manifests.items() if stem not in self._broken]
            doomed = superfluous(retention, whole, newest.stem, pins)
            unsure = [m for m in whole if m.stem not in {*doomed, *self._verified}]
            if not doomed or not unsure:
                return doomed
            for manifest in unsure:
                self._verify(manifest)

    def _verify(self, manifest: Manifest) -> None:
        """Read a checkpoint of an earlier process once, before another is removed for it."""
        try:
            verify(self._fs, self.folder, manifest)
            self._verified.add(manifest.stem)
        except CheckpointError as error:
            self._broken.add(manifest.stem)
            warnings.warn(f"a checkpoint takes nobody's place: {error}", stacklevel=2)


def _make(fs: Fs, folder: Path) -> None:
    """Make a folder and its parents, so that they stay.

    The process that made the last one that is there may have ended before it had synced it.
    """
    missing = []
    path = folder
    while not path.exists():
        missing.append(path)
        path = path.parent
    with contextlib.suppress(PermissionError):  # then the folder above is not ours, nor what it has
        fs.fsync_dir(path.parent)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):  # another run makes its own beside it
            fs.mkdir(path)
        fs.fsync_dir(path.parent)


def _check_owner(folder: Path) -> None:
    """Refuse a folder into which somebody else could have put what is then loaded."""
    status = os.lstat(folder)
    if stat.S_ISLNK(status.st_mode) or not stat.S_ISDIR(status.st_mode):
        raise CheckpointError(
            f"chkpt_root: cannot write into {str(folder)!r}: it is a link or a file. Give a "
            "chkpt_root in which the model's folder is a real one; the root itself may be a link."
        )
    if hasattr(os, "geteuid") and os.geteuid() not in (0, status.st_uid):
        raise CheckpointError(
            f"chkpt_root: {str(folder)!r} belongs to user {status.st_uid}, who could put anything "
            "there. Copy it to a folder of your own, and resume from that."
        )
