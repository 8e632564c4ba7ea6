"""The exchange of canonical reduction: collectives that move bytes and never add."""

from __future__ import annotations

import torch
import torch.distributed as dist

from helios.functional.tree_sum import combine
from helios.trainer.ranks.ballot import Ballot

# Torch renamed it in 2.13; the old name warns there, and is the only one before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class TreeExchange:
    """Adds the ranks' nodes of a `TreeSum` in the order of the tree.

    Every rank adds one shard of all nodes, and the sums are gathered. That moves what a ring
    all-reduce moves, and the order of the additions is ours: the bits are the same on every rank
    and for any number of ranks. Tensors travel as bytes, so any dtype does.

    Args:
        group: (optional) the process group; by default the one of all ranks. Without
            ``torch.distributed``, or with one rank, nothing is exchanged.
        ballot: (optional) where this rank's wish is cast; it travels with the gathered numbers.

    Attributes:
        world_size: number of ranks.
        collectives: collectives run so far.
        bytes_sent: bytes sent to other ranks so far.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, ballot: Ballot | None = None
    ) -> None:
        self._group = group
        self._ballot = ballot
        alone = group is None and not (dist.is_available() and dist.is_initialized())
        self.world_size: int = 1 if alone else dist.get_world_size(group)
        self.collectives = 0
        self.bytes_sent = 0

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the total over the ranks, in the tensors given.

        Args:
            tensors: this rank's node, dense tensors of the same shapes and dtypes on every rank;
                they are overwritten.
        """
        if self.world_size == 1:
            return tensors
        groups: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
        for tensor in tensors:
            groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
        for group in groups.values():
            self._total(group)
        return tensors

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return the numbers of every rank.

        Args:
            numbers: f64[k], of the same size on every rank.

        Returns:
            f64[world_size, k], in the order of the ranks.
        """
        if self.world_size == 1:
            return numbers.unsqueeze(0)
        width = len(numbers)
        if self._ballot is not None:
            numbers = torch.cat([numbers, numbers.new_full((1,), self._ballot.vote())])
        table = numbers.new_empty(self.world_size, len(numbers))
        self._gather(table, numbers)
        if self._ballot is not None:
            self._ballot.count(table[:, width].sum())
        return table[:, :width]

    def _total(self, tensors: list[torch.Tensor]) -> None:
        """Total tensors of one device and dtype, in place."""
        size = sum(tensor.numel() for tensor in tensors)
        if size == 0:
            return
        shard = -(-size // self.world_size)
        flat = tensors[0].new_zeros(shard * self.world_size)
        torch.cat([tensor.reshape(-1) for tensor in tensors], out=flat[:size])
        nodes = torch.empty_like(flat)
        dist.all_to_all_single(_bytes(nodes), _bytes(flat), group=self._group)
        self._count(_bytes(flat).numel() // self.world_size)
        total = combine(nodes.view(self.world_size, shard).unbind())
        self._gather(flat, total)
        parts = torch.split(flat[:size], [tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))

    def _gather(self, table: torch.Tensor, row: torch.Tensor) -> None:
        own = _bytes(row.contiguous())
        _all_gather(_bytes(table), own, group=self._group)
        self._count(own.numel())

    def _count(self, sent_to_each: int) -> None:
        self.collectives += 1
        self.bytes_sent += sent_to_each * (self.world_size - 1)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)
