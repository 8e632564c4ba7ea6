"""Putting checkpoints into a folder and taking them out: each is there whole or not at all.

A checkpoint is two files: ``<stem>.pth``, and ``<stem>.json``, its manifest. It counts from the
moment at which the manifest has its name, and no longer than that:

    commit                                   remove
    1  write .<stem>.pth.tmp, sync it        1  rename <stem>.json to .<stem>.json
    2  write .<stem>.json, sync it           2  remove <stem>.pth
    3  sync the folder                       3  sync the folder
    4  rename .<stem>.pth.tmp to <stem>.pth  4  remove .<stem>.json
    5  rename .<stem>.json to <stem>.json
    6  sync the folder

A checkpoint of parameters that are sharded over ranks has parts beside these two, which the ranks
have written and synced under hidden names before. They get their names, and the folder is synced,
between 3 and 4; and they are removed with the file, once the folder is synced after the manifest
was hidden. The manifest lists them.

Wherever this is cut off, what `recover` finds says what to do: a hidden manifest means that the
file of its name is ours and does not count. No name is ever used twice, so that nothing which was
committed is opened again to write.

Law:
    ``tests/trainer/store/test_crash_at_every_operation.py`` and ``test_power_loss.py``: after a
    crash at any operation, with any loss of what was not synced, the newest checkpoint is the last
    one acknowledged or the one in flight, bit for bit, and recovery leaves nothing half behind.
    Without any one of the syncs, this fails.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from msgspec.structs import replace

from helios.errors import CheckpointError, CheckpointVersionError
from helios.trainer.store.fs import Fs, read_all, write_all, write_file
from helios.trainer.store.manifest import LIMIT, Manifest, PartFile, decode, encode, part_names
from helios.trainer.store.names import is_stem

_PART = re.compile(r"\.(.+)\.(?:index|[0-9]+\.shard)\.tmp")


class Part(NamedTuple):
    """A part of a checkpoint that is written and synced, but has not its name yet."""

    temporary: Path
    size: int
    sha256: str


def part_temporary(folder: Path, stem: str, number: int | None) -> Path:
    """Return the hidden name under which a part is written; None is the index."""
    return folder / (f".{stem}.index.tmp" if number is None else f".{stem}.{number}.shard.tmp")


class DigestingFile:
    """A file to write into that knows the size and the digest of what was written."""

    def __init__(self, fs: Fs, descriptor: int) -> None:
        self._fs = fs
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        view = memoryview(data).cast("B")
        try:
            write_all(self._fs, self._descriptor, view)
        except OSError as error:
            self.error = error  # torch.save shows an error of its own in its place
            raise
        self._sha256.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def hexdigest(self) -> str:
        """Return the digest so far."""
        return self._sha256.hexdigest()


def commit(
    fs: Fs,
    folder: Path,
    stem: str,
    write: Callable[[Any], None],
    describe: Callable[[str, int, str], Manifest],
    check: Callable[[IO[bytes], int], None] = lambda file, size: None,
    parts: Sequence[Part] = (),
) -> Manifest:
    """Write a checkpoint and its manifest; see the module.

    Args:
        fs: the disk.
        folder: where to.
        stem: the name that the checkpoint is to have; if it is taken, a number follows it.
        write: writes the content into a file.
        describe: ``(file name, size, sha256) -> manifest``.
        check: ``(file, size)``: raises if what was written would be refused when it is read.
        parts: what else belongs to it, the index first; taken over, whether or not this succeeds.

    Returns:
        The manifest, once the checkpoint is on the disk.

    Raises:
        CheckpointError: if it cannot be written; ``__cause__`` is the system's error. Nothing is
            left behind, and what was committed before is as it was.
    """
    try:
        stem = _free(stem, set(fs.listdir(folder)))
    except BaseException:
        _discard(fs, parts)
        raise
    names = part_names(stem, len(parts))
    file, manifest_file = folder / f"{stem}.pth", folder / f"{stem}.json"
    temporary, hidden = folder / f".{stem}.pth.tmp", folder / f".{stem}.json"
    named = False
    try:
        size, digest = write_digested(fs, temporary, write)
        with fs.open(temporary) as written:
            check(written, size)
        manifest = describe(file.name, size, digest)
        if parts:
            named_parts = zip(names, parts, strict=True)
            files = tuple(PartFile(name, part.size, part.sha256) for name, part in named_parts)
            manifest = replace(manifest, parts=files)
        write_file(fs, hidden, encode(manifest))
        fs.fsync_dir(folder)
        named = True  # or about to be: a rename that fails may have happened
        for name, part in zip(names, parts, strict=True):
            fs.replace(part.temporary, folder / name)
        if parts:
            fs.fsync_dir(folder)  # where the manifest has its name, all parts have theirs
        fs.replace(temporary, file)
        fs.replace(hidden, manifest_file)
    except BaseException as error:
        with contextlib.suppress(OSError):
            fs.unlink(temporary)
        _discard(fs, parts)
        if named:
            # As in a removal: a file without any manifest could not be told from a stranger's.
            with contextlib.suppress(OSError):
                fs.replace(manifest_file, hidden)
            with contextlib.suppress(OSError):
                _finish_removal(fs, folder, stem, names)
        else:
            with contextlib.suppress(OSError):
                fs.unlink(hidden)
        if isinstance(error, OSError):
            raise unwritable(file, error) from error
        raise
    try:
        fs.fsync_dir(folder)
    except OSError as error:
        # It has its name, but is not known to be on the disk; it is whole, and stays.
        raise unwritable(file, error) from error
    return manifest


def remove(fs: Fs, folder: Path, stem: str, parts: Sequence[str] = ()) -> None:
    """Remove a committed checkpoint; see the module.

    Args:
        fs: the disk.
        folder: where it is.
        stem: its name.
        parts: the names of its parts, as its manifest has them.

    Raises:
        OSError: if the system does; `recover` finishes what was begun.
    """
    fs.replace(folder / f"{stem}.json", folder / f".{stem}.json")
    _finish_removal(fs, folder, stem, parts)


def _discard(fs: Fs, parts: Sequence[Part]) -> None:
    for part in parts:
        with contextlib.suppress(OSError):
            fs.unlink(part.temporary)


def recover(fs: Fs, folder: Path, save_name: str) -> list[str]:
    """Finish or undo what a process that ended in the middle of it has left.

    Call it with the lock of the folder held. Files of other names are not touched.

    Args:
        fs: the disk.
        folder: the folder of a run's checkpoints.
        save_name: the model's name.

    Returns:
        The hidden names that were removed, and manifests without a file.
    """
    names = set(fs.listdir(folder))
    removed = []
    for name in sorted(names):
        part = _PART.fullmatch(name)
        if part is not None and is_stem(part[1], save_name):
            fs.unlink(folder / name)
            removed.append(name)
            continue
        stem = name.removeprefix(".").removesuffix(".pth.tmp").removesuffix(".json")
        if not is_stem(stem, save_name):
            continue
        if name == f".{stem}.pth.tmp":
            fs.unlink(folder / name)
            removed.append(name)
        elif name == f".{stem}.json":
            parts = _parts_of(fs, folder, stem, hidden=True)
            if f"{stem}.json" not in names and parts is not None:
                _finish_removal(fs, folder, stem, parts)
            else:  # it was cut off before the file could have its name
                fs.unlink(folder / name)
            removed.append(name)
        elif name == f"{stem}.json" and f"{stem}.pth" not in names:
            parts = _parts_of(fs, folder, stem)
            if parts is not None:
                _remove_parts(fs, folder, parts)
                fs.unlink(folder / name)
                removed.append(name)
    return removed


def _parts_of(fs: Fs, folder: Path, stem: str, *, hidden: bool = False) -> list[str] | None:
    """Return the parts that a manifest lists, None if it is not one of ours or a newer helios'."""
    try:
        manifest = load_manifest(fs, folder, stem, hidden=hidden)
    except CheckpointVersionError:
        return []
    except CheckpointError:
        return None
    return [part.name for part in manifest.files]


def load_manifest(fs: Fs, folder: Path, stem: str, *, hidden: bool = False) -> Manifest:
    """Return a manifest.

    Raises:
        OSError: if it cannot be read.
        CorruptCheckpointError: if it is not one.
        CheckpointVersionError: if a newer helios wrote it.
    """
    with fs.open(folder / f"{'.' if hidden else ''}{stem}.json") as file:
        data = read_all(file, LIMIT + 1)
    return decode(data, f"{stem}.pth")


def unwritable(path: Path, error: OSError) -> CheckpointError:
    """Return the error for a file that cannot be written."""
    return CheckpointError(
        f"cannot write {str(path)!r}: {error.strerror or error}. What was saved before is as it "
        "was; make room or check the permissions, and run again."
    )


def write_digested(fs: Fs, path: Path, write: Callable[[Any], None]) -> tuple[int, str]:
    """Write a file and sync it; return its size and digest. What had its name before is gone."""
    with contextlib.suppress(FileNotFoundError):  # of a save that failed before
        fs.unlink(path)
    descriptor = fs.create(path)
    try:
        file = DigestingFile(fs, descriptor)
        try:
            write(file)
        except BaseException as error:
            if file.error is not None and error is not file.error:
                raise file.error from error
            raise
        fs.fsync(descriptor)
    finally:
        fs.close(descriptor)
    return file.size, file.hexdigest()


def _finish_removal(fs: Fs, folder: Path, stem: str, parts: Sequence[str]) -> None:
    if parts:
        fs.fsync_dir(folder)  # a manifest that had its name again would lack some of them
    with contextlib.suppress(FileNotFoundError):
        fs.unlink(folder / f"{stem}.pth")
    for name in parts:
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(folder / name)
    # Were the hidden manifest gone from the disk before the file, nobody could tell whose it is.
    fs.fsync_dir(folder)
    fs.unlink(folder / f".{stem}.json")


def _remove_parts(fs: Fs, folder: Path, parts: Sequence[str]) -> None:
    for name in parts:
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(folder / name)
    if parts:
        fs.fsync_dir(folder)


def _free(stem: str, names: set[str]) -> str:
    """Return a name that nothing has: a checkpoint that did not hold its digest may stand there."""
    number, free = 1, stem
    while {f"{free}.pth", f"{free}.json", f".{free}.json", f"{free}.index"} & names:
        number += 1
        free = f"{stem}_{number}"
    return free
