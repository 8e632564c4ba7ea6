"""The engine of several ranks: each computes its piece, and gradients are added as they come."""

from __future__ import annotations

from typing import Any

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
from helios.trainer.ranks.options import DDP
from helios.trainer.ranks.reduction import (
    Broadcast,
    Reduction,
    Sum,
    counting,
    mixed_losses,
    reaches,
)


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
        self._before: dict[str, Any] = {}  # weights in windows that one rank alone began

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
        self._streams.begin(turn, objective.name)
        self._streams.enter(piece.index)
        started: list[Any] = []
        if objective.name not in self._reductions and not self._ranks.is_first:
            # A window that was begun before, on one rank, is the same on all of them. The mean of
            # its gradients over the ranks is right, and the sum of its weights is not.
            self._before[objective.name] = -window.weight

        def between(loss: Loss, total: torch.Tensor) -> tuple[torch.Tensor, Any]:
            reduction = self._reduction(objective, trained, loss, total)
            if not turn.update:
                return total, ()
            # All of these are under way during the backward pass.
            sent = Broadcast(binding.buffers(buffers)) if buffers else None
            weight = None
            if loss.weight is not None:
                known = self._before.pop(objective.name, 0)
                numbers = (
                    window.weight,
                    known,
                    counting(loss, piece, self._ranks.world_size).weight,
                )
                weight = Sum(numbers, total.device)
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
        loss = counting(loss, piece, self._ranks.world_size)
        params = binding.parameters_after(params) if binding.frozen else params
        if not turn.update:
            buffers = binding.buffers(buffers) if buffers else buffers
            return Gradients(loss, grads, params, buffers, counted)
        reduction, sent, weight = started
        votes, flag = reduction.finish(trained)
        self._ballot.count(votes)
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
