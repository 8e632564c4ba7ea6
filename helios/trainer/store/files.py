"""Writing a file so that it is in place or absent, never half."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from helios.errors import CheckpointError


def make_folder(path: Path, purpose: str) -> Path:
    """Create a folder and its parents, and check that it can be written into.

    Args:
        path: the folder.
        purpose: the argument that names it, for the error.

    Raises:
        CheckpointError: if it cannot be made, or not be written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"{purpose}: cannot write into {str(path)!r}: {error.strerror or error}. Give a folder "
            "that exists or can be made, on a file system with room, with write permission."
        ) from error
    return path


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file under a private name, sync it, then give it its name and sync the folder.

    At every moment the file is absent, or the old one, or the new one whole.

    Args:
        path: where the file is to be.
        write: writes the content to an open binary file.

    Raises:
        CheckpointError: if it cannot be written; nothing is left behind, and a file that was there
            before is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        failure = _os_error(error)
        if failure is None:
            raise
        raise CheckpointError(
            f"cannot write {str(path)!r}: {failure.strerror or failure}. What was saved before is "
            "as it was; make room or check the permissions, and run again."
        ) from failure


def _os_error(error: BaseException | None) -> OSError | None:
    """Return the error of the disk behind an error.

    ``torch.save`` raises a ``RuntimeError`` of its own while it handles one.
    """
    while isinstance(error, (OSError, RuntimeError)):
        if isinstance(error, OSError):
            return error
        error = error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
