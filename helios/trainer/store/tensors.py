"""Which tensors a checkpoint may hold: a few dtypes, each tensor the whole of its memory."""

from __future__ import annotations

import torch

MAX_DIMS = 64
"""How many dimensions a tensor may have: torch's own kernels take no more."""

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
"""The dtypes that torch stores by the class of their storage."""

NAMED_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("complex32", "float4_e2m1fn_x2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
        *("float8_e5m2fnuz", "float8_e8m0fnu", "uint16", "uint32", "uint64"),
    )
}
"""The dtypes that torch stores by their name."""

DTYPES = frozenset({*STORAGE_DTYPES.values(), *NAMED_DTYPES.values()})
"""The dtypes that a checkpoint may have: those of `helios.TrainingState.to_bytes`."""


def is_dense(sizes: tuple[int, ...], strides: tuple[int, ...], numel: int) -> bool:
    """Return whether a tensor reaches every element of its storage once, in any order of its axes.

    Args:
        sizes: the length of every axis, not negative.
        strides: the stride of every axis, in elements, not negative.
        numel: the size of the storage, in elements.

    Example:
        >>> is_dense((2, 3), (1, 2), 6), is_dense((2, 3), (0, 1), 3), is_dense((2, 3), (3, 1), 7)
        (True, False, False)
    """
    if 0 in sizes:
        return numel == 0
    expected = 1
    for stride, length in sorted(zip(strides, sizes, strict=True)):
        if length > 1:
            if stride != expected:
                return False
            expected *= length
    return expected == numel
