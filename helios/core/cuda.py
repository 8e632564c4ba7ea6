"""CUDA, cuDNN and determinism switches, set for a block and put back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import TracebackType

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def requires_cuda_support() -> None:
    """Raise if CUDA cannot be used.

    Raises:
        RuntimeError: if torch has no CUDA, or finds no device.
    """
    if torch.cuda.is_available():
        return
    if torch.version.cuda is None:
        reason = f"this torch ({torch.__version__}) was built without it: install a CUDA build"
    else:
        reason = (
            f"torch was built for CUDA {torch.version.cuda} but finds no device: look at the "
            "driver and at CUDA_VISIBLE_DEVICES"
        )
    raise RuntimeError(f"CUDA is needed, and {reason}")


class DisableCuDNNBenchmarkContext:
    """Turn the cuDNN benchmark off for a block, and put it back as it was on entry.

    Example:
        >>> with DisableCuDNNBenchmarkContext():
        ...     torch.backends.cudnn.benchmark
        False
    """

    def __init__(self) -> None:
        self._previous: list[bool] = []

    def __enter__(self) -> None:
        self._previous.append(torch.backends.cudnn.benchmark)
        torch.backends.cudnn.benchmark = False

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        exc_traceback: TracebackType | None,
    ) -> None:
        torch.backends.cudnn.benchmark = self._previous.pop()


@contextlib.contextmanager
def determinism(benchmark: bool = False, deterministic: bool = False) -> Iterator[None]:
    """Set the switches of cuDNN and of deterministic algorithms for a block, and put them back.

    Args:
        benchmark: whether cuDNN tries out which algorithm is fastest.
        deterministic: whether only deterministic algorithms run; operations that have none raise.
            False allows the others for the block, even if they were forbidden before.
            ``CUBLAS_WORKSPACE_CONFIG`` is set for the block unless it is set already; cuBLAS reads
            it once a process, when it is first used.

    Raises:
        ValueError: if both are asked for: the benchmark chooses by the clock.

    Example:
        >>> with determinism(deterministic=True):
        ...     torch.are_deterministic_algorithms_enabled()
        True
        >>> torch.are_deterministic_algorithms_enabled()
        False
    """
    if benchmark and deterministic:
        raise ValueError(
            "received benchmark=True and deterministic=True; expected one of them at most: the "
            "cuDNN benchmark chooses algorithms by the clock"
        )
    cudnn = torch.backends.cudnn
    switches = cudnn.benchmark, cudnn.deterministic
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(_WORKSPACE)
    try:
        cudnn.benchmark, cudnn.deterministic = benchmark, deterministic
        _use_deterministic(deterministic, warn_only=False)
        if deterministic and workspace is None:
            os.environ[_WORKSPACE] = ":4096:8"
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = switches
        _use_deterministic(enabled, warn_only=warn_only)
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace


def _use_deterministic(mode: bool, *, warn_only: bool) -> None:
    # Setting what is set already would import the whole compiler, which takes seconds.
    if (mode, warn_only) != (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ):
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
