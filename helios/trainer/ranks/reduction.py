"""What `DistributedDataParallel` does for one loss, and what travels beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from msgspec.structs import replace
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from helios.errors import LossError, ModelError
from helios.functional.loss import Loss
from helios.functional.share import Piece
from helios.functional.transformation import Tensors


class Reduction:
    """Adds the gradients of some parameters over the ranks, in the backward pass of a loss.

    `DistributedDataParallel` chooses its buckets by the first backward pass that it sees. Two
    discarded ones are run here, over a graph that has every parameter in the order of its
    registration: a resumed run then has the buckets of an uninterrupted one, and its bits.

    Args:
        leaves: the parameters.
        unused: whether some may take no part in a loss.
        bucket_cap_mb: MiB of gradients that travel together, None for the default.
        hook: ``(state, function)`` to replace the all-reduce of a bucket, None for none.
    """

    def __init__(
        self,
        leaves: Sequence[nn.Parameter],
        *,
        unused: bool,
        bucket_cap_mb: float | None = None,
        hook: tuple[Any, Any] | None = None,
    ) -> None:
        self._leaves = leaves
        self._unused = unused
        self._module = _Ballot(leaves)
        ballot = self._module.ballot
        self._own = [ballot]
        # The parameters have the same bits on every rank: nothing is to be sent before.
        self._ddp: Any = DistributedDataParallel(
            self._module,
            find_unused_parameters=unused,
            bucket_cap_mb=bucket_cap_mb,
            init_sync=False,
        )
        self._warm_up()
        if hook is not None:
            self._ddp.register_comm_hook(*hook)

    def cast(
        self, total: torch.Tensor, vote: float, flag: torch.Tensor
    ) -> tuple[torch.Tensor, list[nn.Parameter]]:
        """Let the ballot take part in the backward pass of a loss.

        Args:
            total: f[], the loss.
            vote: this rank's vote.
            flag: f[], 0 or NaN.

        Returns:
            The loss to differentiate, and the leaf to differentiate it for as well.
        """
        ballot = self._module.ballot
        numbers = torch.empty(2, dtype=ballot.dtype, device=ballot.device)
        numbers[0].fill_(vote)
        numbers[1].copy_(flag)
        return self._ddp(total, numbers), self._own

    def finish(self, names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the votes, f[], and the flag, f[] that is 0 or NaN, over all ranks.

        Args:
            names: of the parameters, for the error.

        Raises:
            ModelError: if a parameter took no part in the loss, and that was not expected.
        """
        numbers, self._module.ballot.grad = self._module.ballot.grad, None
        if not self._unused:
            try:
                self._ddp._check_reducer_finalized()
            except RuntimeError as error:
                raise ModelError(
                    "a parameter that took part in the loss of the first micro-batch took no part "
                    f"in this one (one of {', '.join(names[:8])}"
                    f"{', ...' if len(names) > 8 else ''}). Give the trainer "
                    "parallel=helios.DDP(find_unused_parameters=True), or freeze what is not "
                    "used with requires_grad_(False)"
                ) from error
        assert numbers is not None
        return numbers[0], numbers[1]

    def close(self) -> None:
        """Let go of the process group, which must not outlive this by much.

        The reducer that holds it is freed while Python's lock is held. Were it the last to hold
        the group, the group would wait there for its threads, and they for the lock.
        """
        for name in ("logger", "reducer", "process_group"):
            setattr(self._ddp, name, None)

    def _warm_up(self) -> None:
        if self._unused:
            return  # the buckets then stay what they are
        leaves = [*self._leaves, self._module.ballot]
        held = [leaf.grad for leaf in leaves]
        for _ in range(2):
            total: Any = 0
            for leaf in self._leaves:
                total = total + leaf.sum() * 0
            for leaf in leaves:
                leaf.grad = None
            with torch.enable_grad():
                numbers = torch.zeros_like(self._module.ballot)
                torch.autograd.backward(self._ddp(total, numbers), inputs=leaves)
        for leaf, grad in zip(leaves, held, strict=True):
            leaf.grad = grad


class _Ballot(nn.Module):
    """The identity of a loss that has more gradients: those of the ballot are what was cast."""

    def __init__(self, leaves: Sequence[nn.Parameter]) -> None:
        super().__init__()
        for number, leaf in enumerate(leaves):
            self.register_parameter(f"parameter{number}", leaf)
        self.ballot = nn.Parameter(leaves[0].new_zeros(2))

    def forward(self, total: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        function: Any = _Cast
        cast: torch.Tensor = function.apply(total, self.ballot, numbers)
        return cast


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, total: torch.Tensor, ballot: torch.Tensor, numbers: torch.Tensor
    ) -> torch.Tensor:
        ctx.numbers = numbers
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], ctx.numbers, None


class Broadcast:
    """Sends the buffers of rank 0 to the others, while something else is computed.

    Args:
        buffers: the buffers by path; of the same shapes and dtypes on every rank.
    """

    def __init__(self, buffers: Tensors) -> None:
        self._buffers = buffers
        groups: dict[torch.device, list[torch.Tensor]] = {}
        # Wide ones first, so that each lies in the bytes where its dtype may begin.
        for buffer in sorted(buffers.values(), key=lambda b: -b.itemsize):
            groups.setdefault(buffer.device, []).append(buffer)
        self._sent = [(group, *_send(group)) for group in groups.values()]

    def finish(self) -> Tensors:
        """Return the buffers, which have rank 0's values now."""
        for group, flat, work in self._sent:
            work.wait()
            parts = torch.split(flat, [buffer.nbytes for buffer in group])
            for buffer, part in zip(group, parts, strict=True):
                buffer.copy_(part.view(buffer.dtype).view(buffer.shape))
        return self._buffers


def _send(buffers: list[torch.Tensor]) -> tuple[torch.Tensor, Any]:
    flat = torch.cat([buffer.reshape(-1).view(torch.uint8) for buffer in buffers])
    return flat, dist.broadcast(flat, 0, async_op=True)


class Sum:
    """Adds one number over the ranks, in float64, while something else is computed.

    Args:
        numbers: f[] or numbers, of which this rank's is the sum.
        device: where to.
    """

    def __init__(self, numbers: Sequence[Any], device: torch.device) -> None:
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        for number in numbers:
            self._total += number.detach() if isinstance(number, torch.Tensor) else number
        self._work: Any = dist.all_reduce(self._total, async_op=True)

    def finish(self) -> torch.Tensor:
        """Return f64[], the sum over all ranks."""
        self._work.wait()
        return self._total


def reaches(total: torch.Tensor, leaves: Sequence[nn.Parameter]) -> bool:
    """Tell whether the gradient of a loss reaches every one of some parameters."""
    wanted = {id(leaf) for leaf in leaves}
    seen: set[Any] = set()
    waiting: list[Any] = [total.grad_fn]
    while waiting and wanted:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        wanted.discard(id(getattr(node, "variable", None)))
        waiting.extend(following for following, _ in node.next_functions)
    return not wanted


def counting(loss: Loss, piece: Piece, ranks: int) -> Loss:
    """Return the loss of a piece as it counts: what is there for its shape alone has no weight.

    The mean over the ranks of their mean losses is then that over all samples.

    Args:
        loss: the loss of the piece.
        piece: which.
        ranks: how many ranks there are, with a piece each.
    """
    if loss.weight is None:
        factor = piece.count * ranks / piece.of
        return loss if factor == 1.0 else replace(loss, total=loss.total * factor)
    if piece.count:
        return loss
    return replace(loss, total=loss.total * 0, weight=loss.weight * 0)


def mixed_losses(name: str) -> LossError:
    """Return the error of an objective whose loss is a mean here and a sum there."""
    return LossError(
        f"{name}: on some ranks or at some micro-batches the loss was a mean, on others a "
        "helios.Loss with a weight; expected the same always, since a mean counts by samples and a "
        "Loss by its weight"
    )
