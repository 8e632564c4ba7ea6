"""The weights of a checkpoint by name, and files of them that other programs open."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from helios.errors import ModelError

_SAFE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def network_weights(
    content: Mapping[str, Any], *, average: bool = False, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint by their names in the ``state_dict``.

    Args:
        content: what ``read_checkpoint`` returned.
        average: whether to take the average in the place of each parameter that it has.
        prefix: only names that begin with this are taken, without it.

    Returns:
        Tensors on the CPU, each in memory of its own.

    Raises:
        ModelError: if no average was kept, or no name begins so.
    """
    weights = {k: v for k, v in content["model"].items() if isinstance(v, torch.Tensor)}
    if average:
        weights |= _averaged(content["carry"], weights)
    chosen = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
    if not chosen:
        raise ModelError(
            f"prefix: received {prefix!r}, with which no weight begins; there are "
            f"{', '.join(sorted(weights)[:20]) or 'none'}"
        )
    if "" in chosen:
        raise ModelError(
            f"prefix: received {prefix!r}, the name of a weight; expected a part of it"
        )
    return {name: tensor.detach().clone().contiguous() for name, tensor in chosen.items()}


def _averaged(carry: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    average = carry.get("average") if isinstance(carry, dict) else None
    if not isinstance(average, dict):
        raise ModelError(
            "average: received True, and the checkpoint has none; expected one of a model with an "
            "average, such as self.average = helios.optim.average(0.999)"
        )
    params: Mapping[str, torch.Tensor] = carry["params"]
    # A tied parameter has one path, and several names: they share their memory.
    paths = {_place(tensor): path for path, tensor in params.items() if path in average}
    found = {}
    for name, tensor in weights.items():
        path = name if name in average else paths.get(_place(tensor))
        if path is not None:
            found[name] = average[path]
    return found


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def write_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write named tensors into a file; it is there whole or not at all.

    Args:
        weights: the tensors.
        path: a ``.safetensors``, or a ``.pt`` for ``torch.load(weights_only=True)``.

    Raises:
        ValueError: if the name has another ending.
        ModelError: if a tensor has a dtype that safetensors does not know.
        OSError: if it cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"path: received {str(path)!r}; expected a .safetensors or a .pt")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            if path.suffix == ".pt":
                torch.save(dict(weights), file)
            else:
                _write_safetensors(weights, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_safetensors(weights: Mapping[str, torch.Tensor], file: Any) -> None:
    """Write the format: the length of a header in JSON, the header, and the bytes of tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # The widest first, so that each begins where its dtype may.
    ordered = sorted(weights.items(), key=lambda item: (-item[1].itemsize, item[0]))
    offset = 0
    for name, tensor in ordered:
        if tensor.dtype not in _SAFE_NAMES:
            raise ModelError(
                f"{name}: received {tensor.dtype}, which safetensors does not know; write a .pt"
            )
        end = offset + tensor.nbytes
        header[name] = {
            "dtype": _SAFE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)
    file.write(len(data).to_bytes(8, "little") + data)
    for _, tensor in ordered:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        file.write(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
