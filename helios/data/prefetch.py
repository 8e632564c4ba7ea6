"""The next batch is on its way to the device while the current step runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from helios.data.device import as_it_is, each_tensor, move_to_device, pinned_tensor


class Lane(Protocol):
    """What carries tensors to a device beside the work that is under way there.

    Attributes:
        device: the target.
    """

    device: torch.device

    def sending(self) -> AbstractContextManager[Any]:
        """Surround copies that are to run beside the work."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy a tensor to the device, and return the copy at once."""

    def join(self) -> None:
        """Let the work that is asked for from now on wait for the copies begun so far."""

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Let the memory of a copy outlive the work that reads it; return the copy."""


class CudaLane:
    """A stream of a CUDA device for copies alone.

    Args:
        device: the target.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def sending(self) -> AbstractContextManager[Any]:
        """Make the stream the current one."""
        return torch.cuda.stream(self._stream)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy by way of page-locked memory: from any other the host would wait."""
        return pinned_tensor(tensor).to(self.device, non_blocking=True)

    def join(self) -> None:
        """Let the current stream wait for the copies begun so far."""
        torch.cuda.current_stream(self.device).wait_stream(self._stream)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Tell the allocator that the current stream reads the tensor."""
        if tensor.device == self.device:
            tensor.record_stream(torch.cuda.current_stream(self.device))
        return tensor


def lane_to(device: torch.device | str) -> Lane | None:
    """Return what prefetches to a device; None for one that is not CUDA, where nothing does."""
    target = torch.device(device)
    if target.type != "cuda":
        return None
    return CudaLane(torch.empty(0, device=target).device)  # with its index


def prefetched(batches: Iterator[Any], lane: Lane) -> Generator[Any, None, None]:
    """Yield batches on a device; the copy of each begins before the one before it is yielded.

    The batches, their order and their number are those of ``batches``, of which one more is taken
    than is yielded. If taking it raises, that comes out where that batch would have. What has a
    ``.to`` of its own is not looked into: it is moved when its batch is yielded.

    Law: the batches are those of a move one by one (``tests/data/test_prefetch.py``).

    Args:
        batches: batches on the host; closed with the iterator that is returned.
        lane: what carries them.
    """
    closing: Any = getattr(batches, "close", None)
    with contextlib.ExitStack() as stack:
        if closing is not None:
            stack.callback(closing)
        following = _next(batches, lane)
        while True:
            sent = following()
            if sent is _END:
                return
            lane.join()
            kept = each_tensor(sent, _ordinary(lane.keep), as_it_is)
            ready = [move_to_device(kept, lane.device)]
            del sent, kept
            following = _next(batches, lane)
            yield ready.pop()  # no reference is left here: its memory is the caller's to free


_END = object()


def _next(batches: Iterator[Any], lane: Lane) -> Callable[[], Any]:
    """Take a batch and send it; return what gives it, or raises what taking it raised."""
    try:
        batch = next(batches, _END)
        with lane.sending():
            sent = each_tensor(batch, _ordinary(lane.copy), as_it_is)
    except Exception as error:
        return _raising(error)
    return lambda: sent


def _raising(error: Exception) -> Callable[[], Any]:
    def again() -> Any:
        raise error

    return again


def _ordinary(function: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    """Leave subclasses and other layouts alone: not all of them know of streams."""

    def apply(tensor: torch.Tensor) -> Any:
        if type(tensor) is torch.Tensor and tensor.layout is torch.strided:
            return function(tensor)
        return tensor

    return apply
