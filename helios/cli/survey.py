"""The checkpoints of a folder, and whether the bytes of each are those that were committed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from helios.errors import CheckpointError, CheckpointVersionError, CorruptCheckpointError
from helios.trainer.store.fs import Fs
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.names import is_stem
from helios.trainer.store.pins import pinned
from helios.trainer.store.reading import Found, committed, verify

VALID = "valid"


class Surveyed(msgspec.Struct, frozen=True):
    """A checkpoint that was compared with its manifest.

    Args:
        file: its name.
        status: ``valid``; ``broken``, if its bytes or those of its manifest are others; ``newer``,
            if this helios does not know the format; ``unreadable``, if the disk fails or does not
            allow it; ``uncommitted``, if it has no manifest.
        problem: what is wrong, None if nothing is.
        pinned: whether it is kept by every retention.
        size: the bytes of all its files, None without a manifest that can be read.
    """

    file: str
    status: str
    problem: str | None
    pinned: bool
    size: int | None


def survey(fs: Fs, folder: Path) -> Iterator[Surveyed]:
    """Yield the checkpoints of a folder, the newest first and those without a manifest last.

    Every byte of each is read, when it is its turn. What a run removes meanwhile is left out.

    Args:
        fs: the disk.
        folder: the folder of a run's checkpoints.

    Raises:
        CheckpointError: if the folder cannot be listed.
    """
    name = folder.resolve().name
    try:
        found = committed(fs, folder, name)
        names, pins = set(fs.listdir(folder)), pinned(fs, folder)
    except OSError as error:
        raise CheckpointError(f"cannot read {str(folder)!r}: {error.strerror or error}") from error
    for entry in found:
        problem = _problem(fs, folder, entry)
        if problem is None or (folder / f"{entry.stem}.json").exists():
            size = None if entry.manifest is None else size_of(entry.manifest)
            yield _surveyed(entry.stem, problem, size, pins)
    seen = {entry.stem for entry in found}
    for stem in sorted({Path(n).stem for n in names if n.endswith((".pth", ".json"))} - seen):
        if not is_stem(stem, name) or f".{stem}.json" in names:  # it is being written or removed
            continue
        if {f"{stem}.pth", f"{stem}.json"} <= names or _is_settled(folder, stem):  # by now
            continue
        if f"{stem}.pth" not in names:
            lost = CorruptCheckpointError(f"{stem}.json is there, and {stem}.pth is not")
            yield _surveyed(stem, lost, None, pins)
        else:
            stranger = (
                f"it has no manifest, {stem}.json: it was copied without, or written by something "
                "else, and no run goes on from it"
            )
            yield Surveyed(f"{stem}.pth", "uncommitted", stranger, stem in pins, None)


def _is_settled(folder: Path, stem: str) -> bool:
    """Tell whether a checkpoint is whole or gone by now: a run saved or removed it meanwhile."""
    files = [(folder / f"{stem}{suffix}").exists() for suffix in (".pth", ".json")]
    return all(files) or not any(files)


def size_of(manifest: Manifest) -> int:
    """Return the bytes of a checkpoint, its parts included."""
    return manifest.size + sum(part.size for part in manifest.files)


def status_of(problem: CheckpointError | OSError) -> str:
    """Return the word for what is wrong with a checkpoint."""
    if isinstance(problem, CheckpointVersionError):
        return "newer"
    return "broken" if isinstance(problem, CorruptCheckpointError) else "unreadable"


def _problem(fs: Fs, folder: Path, entry: Found) -> CheckpointError | None:
    if entry.manifest is None:
        return entry.error
    try:
        verify(fs, folder, entry.manifest)
    except CheckpointError as error:
        return error
    return None


def _surveyed(
    stem: str, problem: CheckpointError | None, size: int | None, pins: set[str]
) -> Surveyed:
    status = VALID if problem is None else status_of(problem)
    said = None if problem is None else str(problem)
    return Surveyed(f"{stem}.pth", status, said, stem in pins, size)


def nothing_there(folder: Path) -> str:
    """Return what to say of a folder without checkpoints."""
    try:
        inside = sorted(p.name for p in folder.iterdir() if p.is_dir() and any(p.glob("*.pth")))
    except OSError:
        inside = []
    if inside:
        return (
            f"{str(folder)!r} has no checkpoints itself; expected the folder of one run. Those in "
            f"it: {', '.join(inside[:20])}"
        )
    return f"{str(folder)!r} has no checkpoints; expected <chkpt_root>/<save_name>"


def at(path: Path) -> str | None:
    """Return why there is nothing to look at under a path, None if there is."""
    try:
        path.stat()
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            return f"there is nothing at {str(path)!r}"
        reason = error.strerror if isinstance(error, OSError) else error
        return f"cannot read {str(path)!r}: {reason}"
    return None
