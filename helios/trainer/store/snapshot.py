"""One copy of what a checkpoint holds, so that training can go on while it is written."""

from __future__ import annotations

from typing import Any

import torch

_Place = tuple[int, torch.device, torch.dtype, tuple[int, ...], tuple[int, ...]]


class Snapshot:
    """Takes copies of contents in host memory, one at a time.

    The memory of the last copy is used again for the next, as long as tensors have the shapes that
    they had; fresh memory would cost several times the copy itself. So a copy is good until the
    next one is taken.

    Law:
        A copy has the bits of the content at the call, whatever training does afterwards
        (``tests/trainer/store/test_async_saving.py``).
    """

    def __init__(self) -> None:
        self._spare: dict[tuple[object, ...], list[torch.Tensor]] = {}

    def take(self, content: Any) -> Any:
        """Return a copy of a tree of builtins and tensors.

        Tensors that are the same memory, such as a parameter in the model and in the carry, are
        copied once, and are the same memory in the copy.
        """
        spare, self._spare = self._spare, {}
        copies: dict[_Place, torch.Tensor] = {}
        copy = self._copy(content, spare, copies)
        for device in {device for _, device, *_ in copies if device.type == "cuda"}:
            torch.cuda.current_stream(device).synchronize()  # copies from a device are queued
        return copy

    def _copy(
        self, node: Any, spare: dict[tuple[object, ...], list[torch.Tensor]], copies: Any
    ) -> Any:
        if isinstance(node, torch.Tensor):
            return self._copy_tensor(node.detach(), spare, copies)
        if isinstance(node, dict):
            return {key: self._copy(value, spare, copies) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return type(node)(self._copy(value, spare, copies) for value in node)
        return node

    def _copy_tensor(
        self,
        tensor: torch.Tensor,
        spare: dict[tuple[object, ...], list[torch.Tensor]],
        copies: dict[_Place, torch.Tensor],
    ) -> torch.Tensor:
        shape, strides = tuple(tensor.shape), tensor.stride()
        place = tensor.data_ptr(), tensor.device, tensor.dtype, shape, strides
        if place in copies and tensor.numel() > 0:
            return copies[place]
        kind = (tensor.device, tensor.dtype, shape, strides)
        if spare.get(kind):
            copy = spare[kind].pop()
            copy.copy_(tensor, non_blocking=True)
        else:
            copy = _fresh(tensor)
        copies[place] = copy
        self._spare.setdefault(kind, []).append(copy)
        return copy


def compact(content: Any) -> Any:
    """Return a tree in which no tensor has more memory than its elements, as a file should hold it.

    Others, such as expanded tensors and slices of larger ones, are replaced by copies.
    """
    if isinstance(content, torch.Tensor):
        size = content.numel() * content.element_size()
        if content.untyped_storage().nbytes() == size and content.storage_offset() == 0:
            return content
        return content.detach().clone(memory_format=torch.contiguous_format)
    if isinstance(content, dict):
        return {key: compact(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(compact(value) for value in content)
    return content


def _fresh(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "cpu":
        return tensor.clone()
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
    return pinned.copy_(tensor, non_blocking=True)
