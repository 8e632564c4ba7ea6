"""Reading checkpoints: nothing is parsed before its digest holds, and what is broken is named.

The manifest says what the bytes must be. A checkpoint whose bytes are others is passed over for
the one before it, with a warning that names it, and stays on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import torch

from helios.core.safe_load import UNREADABLE
from helios.errors import CheckpointError, CheckpointVersionError, CorruptCheckpointError
from helios.trainer.store.commit import load_manifest
from helios.trainer.store.content import check_parts
from helios.trainer.store.fs import Fs, OsFs
from helios.trainer.store.guard import check_archive, check_content
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.names import is_stem, parse_counters

_CHUNK = 1 << 20


class Found(msgspec.Struct, frozen=True):
    """A checkpoint that was read, or could not be.

    Args:
        stem: its name without the extension.
        manifest: its manifest, None if that is broken.
        error: what is wrong with it, None if nothing is known to be.
    """

    stem: str
    manifest: Manifest | None
    error: CheckpointError | None = None


def committed(fs: Fs, folder: Path, save_name: str) -> list[Found]:
    """Return the checkpoints of a folder that have a manifest, the newest first.

    Only manifests are read.

    Args:
        fs: the disk.
        folder: the folder of a run's checkpoints.
        save_name: the model's name.

    Raises:
        OSError: if the folder cannot be listed.
    """
    names = set(fs.listdir(folder))
    found = []
    for name in names:
        stem = name.removesuffix(".json")
        if stem != name and f"{stem}.pth" in names and is_stem(stem, save_name):
            try:
                found.append(Found(stem, load_manifest(fs, folder, stem)))
            except CheckpointError as error:
                found.append(Found(stem, None, error))
            except OSError as error:
                found.append(Found(stem, None, _unreadable(folder / name, error)))
    return sorted(found, key=lambda entry: _position(entry, save_name), reverse=True)


def last_valid(
    fs: Fs,
    folder: Path,
    save_name: str,
    broken: set[str] | None = None,
    *,
    joined: bool = True,
) -> tuple[dict[str, Any], Path] | None:
    """Return the content and the path of the newest checkpoint that is whole.

    Args:
        fs: the disk.
        folder: the folder of a run's checkpoints.
        save_name: the model's name.
        broken: (optional) is given the stems that were passed over.
        joined: whether tensors that are in parts are read too; their digests are checked in any
            case.

    Returns:
        None if no checkpoint was ever committed there.

    Raises:
        CheckpointVersionError: if a newer helios wrote it; older ones beside it are not used.
        CorruptCheckpointError: if there are checkpoints, and none of them is whole; or if there
            are only files that were never committed.
    """
    problems: dict[str, str] = {}
    for entry in _candidates(fs, folder, save_name):
        try:
            content = _read(fs, folder, entry, joined=joined)
        except CheckpointVersionError:
            raise
        except CheckpointError as error:
            warnings.warn(
                f"the checkpoint {entry.stem}.pth is passed over for the one before it: {error}",
                stacklevel=2,
            )
            problems[entry.stem] = f"{entry.stem}.pth: {error}"
            if broken is not None:
                broken.add(entry.stem)
            continue
        return content, folder / f"{entry.stem}.pth"
    if problems:
        if {entry.stem for entry in _list(fs, folder, save_name)} != problems.keys():
            return last_valid(
                fs, folder, save_name, broken, joined=joined
            )  # a run has gone on meanwhile
        shown = "\n  ".join(problems.values())
        raise CorruptCheckpointError(
            f"none of the {len(problems)} checkpoints in {str(folder)!r} is whole:\n  {shown}\n"
            "Restore them from a copy, or move them away to begin anew."
        )
    return None


def read_checkpoint(path: Path, fs: Fs | None = None, *, joined: bool = True) -> dict[str, Any]:
    """Read a checkpoint's content onto the CPU, running no code from it.

    Its manifest stands beside it; the digest is verified before a byte is parsed.

    Args:
        path: the ``.pth`` file.
        fs: (optional) the disk.
        joined: whether tensors that are in parts are read too, and are whole. Without it the parts
            are not looked at at all: whoever reads them has seen to it that their digests hold.

    Raises:
        CheckpointError: if there is no such checkpoint, or it cannot be read.
        CorruptCheckpointError: if its bytes are not those that were committed.
        CheckpointVersionError: if a newer helios wrote it.
    """
    fs = OsFs() if fs is None else fs
    try:
        manifest = load_manifest(fs, path.parent, path.stem)
    except FileNotFoundError as error:
        if not path.exists():
            raise CheckpointError(f"there is no checkpoint at {str(path)!r}") from error
        raise CheckpointError(
            f"{str(path)!r} has no manifest, {path.stem}.json, beside it. Either it is no "
            "checkpoint of helios: load its weights with helios.load_pretrained(). Or it was "
            "copied without its manifest, which belongs to it: copy both."
        ) from error
    except OSError as error:
        raise _unreadable(path.with_suffix(".json"), error) from error
    return _read(fs, path.parent, Found(path.stem, manifest), joined=joined, parts=joined)


def verify(fs: Fs, folder: Path, manifest: Manifest) -> None:
    """Compare the bytes of a checkpoint with its manifest; nothing is parsed.

    Raises:
        CheckpointError: if there is no such file, or it cannot be read.
        CorruptCheckpointError: if its bytes are not those that were committed.
    """
    path = folder / manifest.file
    try:
        with fs.open(path) as file:
            _verify(file, manifest.size, manifest.sha256, path)
    except OSError as error:
        raise _unreadable(path, error) from error
    _verify_parts(fs, folder, manifest)


def _verify_parts(fs: Fs, folder: Path, manifest: Manifest) -> None:
    for part in manifest.files:
        path = folder / part.name
        try:
            with fs.open(path) as file:
                _verify(file, part.size, part.sha256, path)
        except FileNotFoundError as error:
            raise CorruptCheckpointError(
                f"{str(folder / manifest.file)!r} lacks its part {part.name}. Restore it from a "
                "copy, or move the checkpoint away to go on from the one before it."
            ) from error
        except OSError as error:
            raise _unreadable(path, error) from error


def _list(fs: Fs, folder: Path, save_name: str) -> list[Found]:
    try:
        return committed(fs, folder, save_name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _candidates(fs: Fs, folder: Path, save_name: str) -> Iterator[Found]:
    entries = _list(fs, folder, save_name)
    try:
        names = set(fs.listdir(folder))
    except OSError as error:
        raise _unreadable(folder, error) from error
    # A hidden manifest says that its file is being committed or removed, and is no stranger.
    strangers = sorted(
        name
        for name in names
        if name.endswith(".pth")
        and not {f"{name[:-4]}.json", f".{name[:-4]}.json"} & names
        and is_stem(name[:-4], save_name)
    )
    if strangers:
        message = (
            f"{', '.join(strangers)} in {str(folder)!r} has no manifest (.json) beside it: it was "
            "copied without, or written by something else. Copy both files; load weights of other "
            "origin with helios.load_pretrained(); or move it away to begin anew"
        )
        if not entries:
            raise CheckpointError(message)
        warnings.warn(f"{message}. It is not used.", stacklevel=3)
    yield from entries


def _read(
    fs: Fs, folder: Path, entry: Found, *, joined: bool, parts: bool = True
) -> dict[str, Any]:
    if entry.error is not None:
        raise entry.error
    manifest = entry.manifest
    assert manifest is not None
    path = folder / manifest.file
    try:
        with fs.open(path) as file:
            _verify(file, manifest.size, manifest.sha256, path)
            check_archive(file, manifest.size)
            content = _load(file)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint at {str(path)!r}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except _NotLoadableError as error:
        raise CorruptCheckpointError(
            f"{str(path)!r} cannot be read as a checkpoint: {error}. Move it away to go on from "
            "the checkpoint before it."
        ) from error.__cause__
    check_content(content, manifest.size)
    check_parts(content, path)
    _check_agreement(content, manifest, path)
    if parts:
        _verify_parts(fs, folder, manifest)
    if joined and manifest.files:
        # Imported here: it takes half a second, and hardly any run has parts.
        from helios.trainer.store.sharded import join

        return join(fs, folder, manifest, content)
    return dict(content)


def _verify(file: IO[bytes], expected: int, digest: str, path: Path) -> None:
    """Check size and digest, and go back to the start."""
    size = os.fstat(file.fileno()).st_size
    if size != expected:
        raise CorruptCheckpointError(
            f"{str(path)!r} has {size} bytes, and {expected} were written: it was cut short "
            "or changed. Restore it from a copy, or move it away to go on from the one before it."
        )
    sha256 = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        sha256.update(chunk)
    if sha256.hexdigest() != digest:
        raise CorruptCheckpointError(
            f"{str(path)!r} does not hold its digest: its bytes were changed since they were "
            "written. Restore it from a copy, or move it away to go on from the one before it."
        )
    file.seek(0)


class _NotLoadableError(Exception):
    """The bytes of a file are not those of ``torch.save``."""


class _Remembering:
    """A file to read that remembers how a read of it failed: torch shows errors of its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file: Any = file
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        return bytes(self._try(self._file.read, size))

    def readinto(self, buffer: Any) -> int:
        return int(self._try(self._file.readinto, buffer))

    def readline(self) -> bytes:
        return bytes(self._try(self._file.readline))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._try(self._file.seek, offset, whence))

    def tell(self) -> int:
        return int(self._try(self._file.tell))

    def _try(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except BaseException as error:
            if self.error is None:  # torch reads on after the first
                self.error = error
            raise


def _load(file: IO[bytes]) -> Any:
    """Load a file, telling bytes that make no sense from a disk that fails."""
    remembering: Any = _Remembering(file)
    try:
        return torch.load(remembering, map_location="cpu", weights_only=True)
    except (*UNREADABLE, OSError, SystemError) as error:
        failure = remembering.error
        if isinstance(failure, OSError) and failure.errno == errno.EINVAL:
            raise _NotLoadableError("it points to places outside of itself") from error
        if failure is not None:
            raise failure from None
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise _NotLoadableError(first_line) from error


def _check_agreement(content: dict[str, Any], manifest: Manifest, path: Path) -> None:
    """Check that manifest and content speak of the same state."""
    numbers = {**manifest.counters, "seed": manifest.seed, "window_iter": manifest.window_iter}
    expected = {**numbers, "plan": msgspec.to_builtins(manifest.plan)}
    saved = {**content["training_state"], "plan": content["plan"]}
    if saved != expected:
        wrong = sorted(k for k in {*saved, *expected} if saved.get(k) != expected.get(k))
        raise CorruptCheckpointError(
            f"{str(path)!r} and its manifest disagree on {', '.join(wrong)}: they do not belong "
            "together. Restore both from a copy."
        )


def _position(entry: Found, save_name: str) -> tuple[int, int, int, int]:
    if entry.manifest is not None:
        return entry.manifest.position
    epoch, update, micro = parse_counters(entry.stem, save_name) or (0, 0, 0)
    return epoch, update, micro, 0


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {str(path)!r}: {error.strerror or error}")
