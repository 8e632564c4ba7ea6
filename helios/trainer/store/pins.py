"""Pinned checkpoints: kept by every retention until they are unpinned.

A pin is an empty file ``<stem>.pin`` beside the checkpoint, so that a running fit sees it, and
that ``touch`` and ``rm`` do as well.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from helios.errors import CheckpointError
from helios.trainer.store.fs import Fs, OsFs, write_file


def pin_checkpoint(path: str | Path) -> None:
    """Keep a checkpoint, whatever the retention of its run.

    Args:
        path: the ``.pth`` file of a committed checkpoint.

    Raises:
        CheckpointError: if there is no such checkpoint, or its folder cannot be written into.
    """
    _pin(OsFs(), _committed(Path(path)))


def unpin_checkpoint(path: str | Path) -> None:
    """Leave a checkpoint to the retention of its run again; one that is not pinned stays as it is.

    Raises:
        CheckpointError: if there is no such checkpoint, or its folder cannot be written into.
    """
    marker = _committed(Path(path)).with_suffix(".pin")
    try:
        with contextlib.suppress(FileNotFoundError):
            OsFs().unlink(marker)
        OsFs().fsync_dir(marker.parent)  # in any case: who removed it may not have come so far
    except OSError as error:
        raise CheckpointError(
            f"cannot remove {str(marker)!r}: {error.strerror or error}"
        ) from error


def pinned(fs: Fs, folder: Path) -> set[str]:
    """Return the stems of the pinned checkpoints in a folder."""
    return {name.removesuffix(".pin") for name in fs.listdir(folder) if name.endswith(".pin")}


def _pin(fs: Fs, path: Path) -> None:
    marker = path.with_suffix(".pin")
    try:
        with contextlib.suppress(FileExistsError):
            write_file(fs, marker, b"")
        fs.fsync_dir(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {str(marker)!r}: {error.strerror or error}. Check the permissions."
        ) from error


def _committed(path: Path) -> Path:
    if path.suffix != ".pth" or not path.with_suffix(".json").is_file() or not path.is_file():
        raise CheckpointError(
            f"there is no committed checkpoint at {str(path)!r}; expected a .pth file with its "
            "manifest, .json, beside it"
        )
    return path
