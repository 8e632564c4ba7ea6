"""The running statistics of batch normalisation, put together from the pieces of a micro-batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from helios.errors import ModelError
from helios.functional.transformation import Tensors


class Norms:
    """The buffers of a module's batch normalisation.

    A running statistic becomes the mean over the pieces, by their share of the samples; a count of
    batches advances as it did in each piece. What no piece changed keeps its bits.

    Args:
        module: the module.

    Raises:
        ModelError: if a module in it normalises over all ranks by itself.
    """

    def __init__(self, module: nn.Module) -> None:
        self.names: list[str] = []
        for prefix, submodule in module.named_modules():
            if isinstance(submodule, nn.SyncBatchNorm):
                raise ModelError(
                    f"module {prefix!r} is a SyncBatchNorm: it talks to all ranks in the forward "
                    "pass, and canonical reduction does not know how to put its statistics "
                    "together. Use nn.BatchNorm, which normalises over each piece, or choose "
                    "another reduction."
                )
            if isinstance(submodule, _BatchNorm):
                owner = f"{prefix}." if prefix else ""
                keys = ("running_mean", "running_var", "num_batches_tracked")
                self.names.extend(owner + key for key in keys if key in submodule._buffers)

    def copied(self, buffers: Tensors) -> Tensors:
        """Return copies of the statistics."""
        return {name: buffers[name].clone() for name in self._held(buffers)}

    def restore(self, buffers: Tensors, before: Tensors) -> None:
        """Put the statistics back to what they were, in place."""
        for name in self._held(buffers):
            buffers[name].copy_(before[name])

    def none_changed(self, buffers: Tensors, device: torch.device) -> torch.Tensor:
        """Return the flags of `changed` for a piece that was not computed."""
        return torch.zeros(len(self._held(buffers)), dtype=torch.float64, device=device)

    def changed(self, before: Tensors, after: Tensors, device: torch.device) -> torch.Tensor:
        """Return ``f64[n]``: by how much a count grew, and whether a statistic changed."""
        held = self._held(before)
        if not held:
            return self.none_changed(before, device)
        flags = []
        for name in held:
            old, new = before[name], after[name]
            grown = (new != old).any() if new.is_floating_point() else new - old
            flags.append(grown.to(device, torch.float64).reshape(()))
        return torch.stack(flags)

    def leaf(self, after: Tensors, share: float) -> list[torch.Tensor]:
        """Return what a piece adds to the means.

        Args:
            after: the buffers after its forward pass.
            share: the part of the micro-batch's samples that it has.
        """
        return [after[name] * share for name in self._means(after)]

    def zeros(self, buffers: Tensors) -> list[torch.Tensor]:
        """Return what a piece without samples adds to the means."""
        return [torch.zeros_like(buffers[name]) for name in self._means(buffers)]

    def write(
        self, buffers: Tensors, before: Tensors, means: list[torch.Tensor], flags: torch.Tensor
    ) -> None:
        """Write the statistics of the micro-batch.

        Args:
            buffers: where to, in place.
            before: the buffers before the micro-batch.
            means: the means over the pieces, those that `leaf` gave, added up.
            flags: f64[n], the maximum over the pieces of what `changed` gave.
        """
        after = dict(zip(self._means(buffers), means, strict=True))
        for name, flag in zip(self._held(buffers), flags.unbind(), strict=True):
            old = before[name]
            flag = flag.to(old.device)
            if name in after:
                buffers[name].copy_(torch.where(flag != 0, after[name], old))
            else:
                buffers[name].copy_(old + flag.to(old.dtype))

    def _held(self, buffers: Tensors) -> list[str]:
        # A module without running statistics has None in these places.
        return [name for name in self.names if name in buffers]

    def _means(self, buffers: Tensors) -> list[str]:
        return [name for name in self._held(buffers) if buffers[name].is_floating_point()]
