"""Loading files of ``torch.save`` without running code from them."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import torch

from helios.errors import CheckpointError, CorruptCheckpointError

_UNSAFE = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")

UNREADABLE = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    struct.error,
)
"""What ``torch.load`` raises on bytes that make no sense, beside ``OSError``."""


def safe_torch_load(path: str | os.PathLike[str], map_location: Any = None) -> Any:
    """Load a file that ``torch.save`` wrote, with ``weights_only=True``.

    Args:
        path: the file.
        map_location: (optional) where its tensors go, as in ``torch.load``.

    Returns:
        What was saved.

    Raises:
        CheckpointError: if there is no such file, if it holds types that are not allowed, or if
            its tensors are on a device that is not here.
        CorruptCheckpointError: if it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path} {what}; expected a file that torch.save wrote")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = _unsafe_types(path, str(error))
        if not unsafe:
            raise _corrupt(path, error) from error
        raise CheckpointError(
            f"{path} holds {', '.join(unsafe)}, which may run code when loaded. If you trust the "
            "file, import each of them, allow them with "
            f"torch.serialization.add_safe_globals([{', '.join(map(_last, unsafe))}]), and load "
            "again; better, save tensors, numbers and strings instead."
        ) from error
    except UNREADABLE as error:
        if "on a CUDA device" in str(error) or "Attempting to deserialize" in str(error):
            raise CheckpointError(
                f"{path} holds tensors of a device that is not here ({error}). Load it with "
                'map_location="cpu".'
            ) from error
        raise _corrupt(path, error) from error


def _unsafe_types(path: Path, message: str) -> list[str]:
    found = _UNSAFE.findall(message)
    if found:
        # torch names the first of them; this lists them all, but reads zip files only.
        with contextlib.suppress(Exception):
            found = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) or found
    return found


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _corrupt(path: Path, error: Exception) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"{path} ({path.stat().st_size} bytes) cannot be read: {error}. It was cut short or "
        "changed, or torch.save did not write it. Use another copy of it."
    )
