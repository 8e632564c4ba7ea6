"""The engine of several ranks: each computes its piece, and gradients are added as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch
from msgspec.structs import replace

from helios.functional.binding import Binding
from helios.functional.gradients import Gradients, Turn, differentiate
from helios.functional.loss import Loss, Objective, loss_metrics
from helios.functional.precision import Policy
from helios.functional.share import Piece
from helios.functional.state import Accumulator
from helios.functional.streams import Streams
from helios.functional.transformation import Tensors
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.reduction import Broadcast, Reduction, Sum, mixed_losses, reaches


class DDP(msgspec.Struct, frozen=True):
    """How gradients are added over ranks, by ``torch.nn.parallel.DistributedDataParallel``.

    Args:
        bucket_cap_mb: (optional) how many MiB of gradients travel together; by default 25.
        find_unused_parameters: (optional) whether to look in every backward pass for parameters
            that take no part in it. By default the first micro-batch tells; a parameter that is
            left out later is then an error.
        comm_hook: (optional) replaces the all-reduce of a bucket, as those of
            ``torch.distributed.algorithms.ddp_comm_hooks`` do. It is given ``comm_state`` and the
            bucket. What is 1-d in it has to arrive as its mean: stop requests travel in it.
        comm_state: (optional) what the hook is given.

    Raises:
        ValueError: if an option has a wrong value.

    Example:
        >>> DDP(bucket_cap_mb=50).bucket_cap_mb
        50
    """

    bucket_cap_mb: float | None = None
    find_unused_parameters: bool | None = None
    comm_hook: Callable[[Any, Any], Any] | None = None
    comm_state: Any = None

    def __post_init__(self) -> None:
        """Check what was given."""
        size, hook, unused = self.bucket_cap_mb, self.comm_hook, self.find_unused_parameters
        if size is not None and (
            isinstance(size, bool) or not isinstance(size, (int, float)) or not size > 0
        ):
            raise _value("bucket_cap_mb", size, "a number of MiB above 0, or None")
        if unused is not None and not isinstance(unused, bool):
            raise _value("find_unused_parameters", unused, "True, False or None")
        if hook is not None and not callable(hook):
            raise _value("comm_hook", hook, "a function of a state and a bucket, or None")


class DDPEngine:
    """``loss.backward()`` on this rank's piece, with the gradients added over the ranks.

    Inside a window every rank keeps its own sums, and nothing is sent; the micro-batch that closes
    it adds them up while the backward pass goes on. With them travel a rank's wish to stop and
    whether its loss is finite, so that all decide the same without another collective. A loss with
    a weight sends one more number, and a model with buffers those of rank 0, once for each update.

    It is the loss that goes through ``DistributedDataParallel``, not the model: it stands between
    the forward and the backward pass, and knows the parameters that are trained.

    Args:
        binding: of the model.
        policy: which dtype the loss computes in.
        options: how gradients are added.
        ranks: the ranks.
        ballot: where wishes are cast and counted.

    Law:
        A resumed run has the bits of an uninterrupted one on the same number of ranks, and two
        ranks are one to rounding (``tests/trainer/ranks/test_ddp.py``).
    """

    def __init__(
        self, binding: Binding, policy: Policy, options: DDP, ranks: Ranks, ballot: Ballot
    ) -> None:
        self._binding = binding
        self._policy = policy
        self._options = options
        self._ranks = ranks
        self._ballot = ballot
        self._streams = Streams()
        self._reductions: dict[str, tuple[Reduction, bool]] = {}
        self._counted: dict[str, Any] = {}

    def __call__(
        self,
        objective: Objective,
        trained: tuple[str, ...],
        params: Tensors,
        buffers: Tensors,
        window: Accumulator,
        batch: list[Piece],
        scale: float,
        turn: Turn,
    ) -> Gradients:
        """Run one micro-batch; see `Engine`.

        Args:
            objective: whose loss to compute.
            trained: the paths of the parameters to differentiate for.
            params: the parameters by path.
            buffers: the buffers by path.
            window: the window so far; its gradients are this rank's own.
            batch: the one piece of this rank.
            scale: the factor on the loss before it is differentiated.
            turn: where in the run it stands.

        Raises:
            LossError: if some ranks have a mean loss and others one with a weight.
            ModelError: if a parameter took no part in the loss that took part before.
        """
        [piece] = batch
        binding = self._binding
        binding.lend(params, buffers)
        if objective.name not in self._reductions and not self._ranks.is_first:
            # One rank alone may have left a window open. All ranks take it up from the checkpoint:
            # its gradients are averaged, but its weight is to be added once.
            self._counted[objective.name] = window.weight
        self._streams.begin(turn, objective.name)
        self._streams.enter(piece.index)
        started: list[Any] = []

        def between(loss: Loss, total: torch.Tensor) -> tuple[torch.Tensor, Any]:
            reduction = self._reduction(objective, trained, loss, total)
            if not turn.update:
                return total, ()
            # All of these are under way during the backward pass.
            sent = Broadcast(binding.buffers(buffers)) if buffers else None
            weight = None
            if loss.weight is not None:
                earlier = window.weight - self._counted.pop(objective.name, 0)
                weight = Sum((earlier, _weight(loss, piece)), total.device)
            started.extend((reduction, sent, weight))
            flag = (window.total + loss.total.detach()) * 0
            return reduction.cast(total, self._ballot.vote(), flag)

        loss, grads = differentiate(
            binding,
            self._policy,
            objective,
            trained,
            piece.batch,
            scale=scale,
            share=piece.count / piece.of,
            times=float(self._ranks.world_size) if piece.count else 0.0,
            window=window.grads,
            through=between,
        )
        self._streams.end()
        counted = loss_metrics(objective.metric, loss, piece.count) if piece.count else {}
        loss = replace(loss, weight=_weight(loss, piece))
        if not turn.update:
            return Gradients(loss, grads, *self._held(params, buffers), counted)
        reduction, sent, weight = started
        votes, flag = reduction.finish(trained)
        self._ballot.count(votes)
        params, buffers = self._held(params, buffers)
        if sent is not None:
            buffers = sent.finish()
        # What is not finite on one rank is not finite on all.
        loss = replace(loss, total=loss.total + flag)
        whole = None if weight is None else weight.finish()
        return Gradients(loss, grads, params, buffers, counted, whole)

    def close(self) -> None:
        """Let go of the process group, before it is left."""
        while self._reductions:
            self._reductions.popitem()[1][0].close()

    def _held(self, params: Tensors, buffers: Tensors) -> tuple[Tensors, Tensors]:
        binding = self._binding
        return (
            binding.parameters_after(params) if binding.frozen else params,
            binding.buffers(buffers) if buffers else buffers,
        )

    def _reduction(
        self, objective: Objective, trained: tuple[str, ...], loss: Loss, total: torch.Tensor
    ) -> Reduction:
        """Return what adds the gradients of an objective; its first loss tells what it needs."""
        is_sum = loss.weight is not None
        if objective.name not in self._reductions:
            leaves = [self._binding.parameters[name] for name in trained]
            told = self._ranks.exchange([is_sum, reaches(total, leaves)])
            if any(other != is_sum for other, _ in told):
                raise mixed_losses(objective.name)
            options = self._options
            unused = options.find_unused_parameters
            reduction = Reduction(
                leaves,
                unused=not all(every for _, every in told) if unused is None else unused,
                bucket_cap_mb=options.bucket_cap_mb,
                hook=None if options.comm_hook is None else (options.comm_state, options.comm_hook),
            )
            self._reductions[objective.name] = reduction, is_sum
        reduction, was_sum = self._reductions[objective.name]
        if is_sum != was_sum:
            raise mixed_losses(objective.name)
        return reduction


def _weight(loss: Loss, piece: Piece) -> Any:
    """Return the weight of a piece's loss; what is there for its shape alone has none."""
    return loss.weight if loss.weight is None or piece.count else loss.weight * 0


def _value(name: str, received: Any, expected: str) -> ValueError:
    return ValueError(f"{name}: received {received!r}; expected {expected}")
