"""Reading the named tensors of a file that something else may have written, without running code.

Two formats are read: files of ``torch.save`` with ``weights_only=True``, and safetensors. There is
no fall-back to a load that could run code.
"""

from __future__ import annotations

import os
import reprlib
from pathlib import Path
from typing import Any

import torch

from helios.core.safe_load import safe_torch_load
from helios.errors import CheckpointError, CorruptCheckpointError, PretrainedError

TORCH_SUFFIXES = (".pt", ".pth")
SAFETENSORS_SUFFIX = ".safetensors"
SHOWN = 20
_DEPTH = 4
_CHECKPOINT = ("schema", "model", "training_state")


def read_weights(path: str | os.PathLike[str], key: str | None = None) -> dict[str, Any]:
    """Return the entries of a file by name, tensors on the CPU.

    Args:
        path: a ``.pt`` or ``.pth`` of ``torch.save``, a ``.safetensors``, or a checkpoint of
            helios, of which the model's entries are taken.
        key: (optional) where they are in a nested file, with a dot between levels.

    Returns:
        A dict with strings as keys; its values are tensors, but for what a user has put beside
        them.

    Raises:
        CheckpointError: if there is no such file, or reading it could run code.
        CorruptCheckpointError: if its bytes are no such file.
        PretrainedError: if its name has another ending, or it holds no dict of named tensors at
            ``key``.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path: received {path!r}; expected a string or a pathlib.Path")
    if key is not None and not isinstance(key, str):
        raise TypeError(f"key: received {key!r}; expected a string such as 'state_dict', or None")
    path = Path(path)
    content = _read(path)
    if key is not None:
        found = _at(content, key)
        if found is None:
            raise PretrainedError(
                f"key: received {key!r}, which {str(path)!r} does not have{_where(content)}"
            )
        return _checked(found, f"{str(path)!r} at key {key!r}", _where(content))
    if isinstance(content, dict) and all(part in content for part in _CHECKPOINT):
        return _checked(content["model"], f"the model of {str(path)!r}", "")
    if _state_dicts(content):
        raise PretrainedError(f"{str(path)!r} is no flat dict of tensors{_where(content)}")
    return _checked(content, repr(str(path)), "")


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    if suffix not in (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX):
        raise PretrainedError(
            f"path: received {str(path)!r}; expected a .pt or .pth that torch.save wrote, a "
            ".safetensors, or a checkpoint of helios. If torch.save wrote it under another name, "
            "rename it."
        )
    try:
        # A pipe or a device would make the reader wait, so only a regular file is opened.
        if not path.is_file():
            what = "does not exist"
            if path.is_dir():
                what = "is a folder"
            elif path.exists():
                what = "is not a regular file"
            elif path.is_symlink():
                what = "is a link to a file that does not exist"
            raise CheckpointError(f"{str(path)!r} {what}; expected a file of weights")
        if suffix == SAFETENSORS_SUFFIX:
            return _read_safetensors(path)
        return safe_torch_load(path, map_location="cpu")
    except OSError as error:
        raise CheckpointError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise PretrainedError(
            f"reading {str(path)!r} needs the package safetensors, which is not installed. "
            "Install it with: pip install 'helios[safetensors]'"
        ) from error
    try:
        return dict(load_file(path))
    except (SafetensorError, RuntimeError, ValueError, LookupError, AttributeError) as error:
        raise CorruptCheckpointError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as safetensors: {error}. It was "
            "cut short or changed, or holds a dtype that this safetensors does not know. Use "
            "another copy of it, or a newer safetensors."
        ) from error


def _checked(content: Any, what: str, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise PretrainedError(
            f"{what} holds {reprlib.repr(type(content).__name__)}; expected a dict of tensors by "
            f"name, such as a module's state_dict(){where}"
        )
    if not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise PretrainedError(
            f"{what} is a dict of {len(content)} entries, none of them a tensor; expected tensors "
            f"by name, such as a module's state_dict(){where}"
        )
    strange = [name for name in content if not isinstance(name, str)]
    if strange:
        raise PretrainedError(
            f"{what} has {reprlib.repr(strange[0])} ({type(strange[0]).__name__}) as a name"
            f"{f' and {len(strange) - 1} more like it' if strange[1:] else ''}; expected strings, "
            "as in a module's state_dict()"
        )
    return content


def _at(content: Any, key: str) -> Any:
    """Return what is at a dotted path, None if nothing is; a name may have dots of its own."""
    if not isinstance(content, dict):
        return None
    if key in content:
        return content[key]
    for end, character in enumerate(key):
        if character == ".":
            found = _at(content.get(key[:end]), key[end + 1 :])
            if found is not None:
                return found
    return None


def _where(content: Any) -> str:
    """Return the part of a message that says which keys would do."""
    found = _state_dicts(content)
    if not found:
        return "; it has no nested dict of tensors, so leave key out"
    shown = ", ".join(map(repr, found[:SHOWN]))
    more = f" and {len(found) - SHOWN} more" if found[SHOWN:] else ""
    return f". Say where the tensors are: key= one of {shown}{more}"


def _state_dicts(content: Any) -> list[str]:
    """Return the dotted paths of the nested dicts that hold tensors by name."""
    found: list[str] = []
    opened: set[int] = set()  # each dict once: a pickle may hold a dict that holds itself

    def visit(node: Any, path: str, depth: int) -> None:
        if not isinstance(node, dict) or depth > _DEPTH:
            return
        if path and any(isinstance(value, torch.Tensor) for value in node.values()):
            found.append(path)
        if id(node) in opened:
            return
        opened.add(id(node))
        for name, value in node.items():
            # A module's extra state is part of a flat state dict, whatever it holds.
            if isinstance(name, str) and not name.endswith("_extra_state"):
                visit(value, f"{path}.{name}" if path else name, depth + 1)

    visit(content, "", 0)
    return found
