"""The engine for models beyond one device: parameters and what goes with them lie on all ranks."""

from __future__ import annotations

from typing import Any

import msgspec
import torch
import torch.distributed as dist
from msgspec.structs import replace

from helios.errors import ModelError
from helios.functional import accumulate
from helios.functional.binding import Binding
from helios.functional.gradients import Gradients, Turn, without_graph
from helios.functional.loss import Loss, Objective, check_differentiable, loss_metrics, read_loss
from helios.functional.precision import Policy
from helios.functional.share import Piece
from helios.functional.state import Accumulator
from helios.functional.streams import Streams
from helios.functional.transformation import Tensors
from helios.trainer.ranks.ballot import Ballot
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.options import FSDP
from helios.trainer.ranks.reduction import Broadcast, counting, mixed_losses
from helios.trainer.ranks.sharding import ShardedBinding
from helios.trainer.ranks.wrapping import shard

__all__ = ["FSDP", "FSDPEngine", "shard"]


class FSDPEngine:
    """``loss.backward()`` on this rank's piece, with gradients added where their rows are kept.

    Every micro-batch adds its gradients over the ranks, and each rank keeps the sums of its rows.
    At the end of a window one small reduction follows, in which travels what all ranks have to
    decide alike: whether losses and gradients are finite, which parameters took part, the weight of
    the window, and wishes to stop. A model with buffers sends those of rank 0.

    What a forward pass changes in a frozen parameter is lost: keep such a thing in a buffer.

    Args:
        binding: of the model, from `shard`.
        policy: which dtype the loss computes in.
        ranks: the ranks.
        ballot: where wishes are cast and counted.

    Raises:
        ModelError: if the model is not sharded, or has a loss scale and so few rows that a rank has
            none.

    Law:
        Two and four ranks are one to rounding, and a resumed run has the bits of an uninterrupted
        one on the same number of ranks (``tests/trainer/ranks/test_fsdp.py``).
    """

    def __init__(self, binding: Binding, policy: Policy, ranks: Ranks, ballot: Ballot) -> None:
        if not isinstance(binding, ShardedBinding):
            raise ModelError(
                f"{type(binding.module).__name__} is not sharded; call "
                "helios.trainer.ranks.fsdp.shard() on it before helios.make_step()"
            )
        if policy.initial_scale() is not None and not all(ranks.exchange(binding.has_elements)):
            raise ModelError(
                "precision: received a loss scale, and some rank keeps no row of any parameter; "
                "expected a larger model, fewer ranks, or a precision without a loss scale"
            )
        self._binding = binding
        self._policy = policy
        self._ranks = ranks
        self._ballot = ballot
        self._streams = Streams()
        self._kinds: dict[str, bool] = {}  # whether an objective's loss is a sum
        self._reached: dict[str, tuple[int, set[str]]] = {}

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
            params: this rank's shards of the parameters, by path.
            buffers: the buffers by path.
            window: the window so far; its gradients are this rank's rows of the sums of all.
            batch: the one piece of this rank.
            scale: the factor on the loss before it is differentiated.
            turn: where in the run it stands.

        Raises:
            LossError: if some ranks have a mean loss and others one with a weight.
        """
        [piece] = batch
        binding = self._binding
        binding.lend(params, buffers)
        self._streams.begin(turn, objective.name)
        self._streams.enter(piece.index)
        loss, total = self._forward(objective, piece, scale)
        self._check_kind(objective.name, loss)
        binding.watch()
        # It is under way during the backward pass.
        sent = Broadcast(binding.buffers(buffers)) if buffers and turn.update else None
        torch.autograd.backward(total)
        fresh, reached = binding.gradients()
        grads = _sum(window.grads, fresh, trained)
        self._streams.end()
        reached = self._reached_so_far(objective.name, turn, window, reached & {*trained})
        counted = loss_metrics(objective.metric, loss, piece.count) if piece.count else {}
        loss = counting(without_graph(loss), piece, self._ranks.world_size)
        if binding.frozen:
            params = binding.parameters_after(params)
        if not turn.update:
            buffers = binding.buffers(buffers) if buffers else buffers
            return Gradients(loss, grads, params, buffers, counted)
        told = self._tell(window, loss, grads, trained, reached)
        if sent is not None:
            buffers = sent.finish()
        self._ballot.count(told.votes)
        absent = told.absent()
        grads = {name: grad for name, grad in grads.items() if name not in absent}
        if scale != 1.0:
            # A gradient that is not finite may come of the scale alone, and is found on all ranks
            # by theirs; it says nothing against the loss.
            _poison(grads, told.bad_gradient)
            loss = replace(loss, total=loss.total + told.bad_loss.to(loss.total.dtype))
        else:
            bad = told.bad_loss + told.bad_gradient
            loss = replace(loss, total=loss.total + bad.to(loss.total.dtype))
        return Gradients(loss, grads, params, buffers, counted, told.weight)

    def _forward(self, objective: Objective, piece: Piece, scale: float) -> tuple[Loss, Any]:
        """Return the loss, and what of it is to be differentiated."""
        losses = []

        def compute(batch: Any) -> torch.Tensor:
            device = self._binding.mesh.device_type
            with self._policy.context(device):
                output = objective.loss(batch)
            loss = read_loss(output, objective.name)
            check_differentiable(loss, objective.name)
            losses.append(loss)
            share = piece.count / piece.of if loss.weight is None else float(piece.count > 0)
            return loss.total * (scale * share)

        with torch.enable_grad():
            total = self._binding.run(compute, piece.batch)
        return losses[0], total

    def _check_kind(self, name: str, loss: Loss) -> None:
        is_sum = loss.weight is not None
        if name not in self._kinds:
            if any(other != is_sum for other in self._ranks.exchange(is_sum)):
                raise mixed_losses(name)
            self._kinds[name] = is_sum
        if self._kinds[name] != is_sum:
            raise mixed_losses(name)

    def _reached_so_far(
        self, name: str, turn: Turn, window: Accumulator, reached: set[str]
    ) -> set[str]:
        """Return the parameters that took part on this rank in the window so far."""
        iteration, earlier = self._reached.get(name, (0, set()))
        if window.grads:
            # Of a window that was begun elsewhere it is not known, and all are taken to have.
            reached = reached | (earlier if iteration == turn.iteration - 1 else {*window.grads})
        self._reached[name] = turn.iteration, reached
        return reached

    def _tell(
        self,
        window: Accumulator,
        loss: Loss,
        grads: Tensors,
        trained: tuple[str, ...],
        reached: set[str],
    ) -> _Told:
        device = loss.total.device
        numbers = torch.zeros(4 + len(trained), dtype=torch.float64)
        numbers[2] = self._ballot.vote()
        for index, name in enumerate(trained, 4):
            numbers[index] = float(name in reached)
        numbers = numbers.to(device, non_blocking=True)
        numbers[0] = (window.total + loss.total) * 0
        numbers[1] = accumulate.unscale(grads, device, 1.0)
        if loss.weight is not None:
            numbers[3] = window.weight + loss.weight
        dist.all_reduce(numbers, group=self._binding.mesh.get_group())
        return _Told(
            bad_loss=numbers[0],
            bad_gradient=torch.where(numbers[1] == 0, 0.0, torch.nan),
            votes=numbers[2],
            weight=None if loss.weight is None else numbers[3].clone(),
            took_part=numbers[4:],
            trained=trained,
            all_reached=len(reached) == len(trained),
        )


class _Told(msgspec.Struct, frozen=True, eq=False):
    """What all ranks know at the end of a window; ``bad_`` is 0, or NaN if something is."""

    bad_loss: torch.Tensor
    bad_gradient: torch.Tensor
    votes: torch.Tensor
    weight: torch.Tensor | None
    took_part: torch.Tensor
    trained: tuple[str, ...]
    all_reached: bool

    def absent(self) -> set[str]:
        """Return the parameters that took no part on any rank; waits only if some were absent."""
        if self.all_reached:
            return set()
        flags: list[float] = self.took_part.tolist()
        return {name for name, flag in zip(self.trained, flags, strict=True) if not flag}


def _sum(earlier: Tensors, fresh: Tensors, names: tuple[str, ...]) -> Tensors:
    """Add gradients to those of the window so far, in place; of other names they are let go of."""
    total = {}
    with torch.no_grad():
        for name in names:
            if name in earlier:
                total[name] = earlier[name].add_(fresh[name]) if name in fresh else earlier[name]
            elif name in fresh:
                total[name] = fresh[name]
    return total


def _poison(grads: Tensors, bad: torch.Tensor) -> None:
    """Make some gradient NaN if ``bad`` is; otherwise leave every bit."""
    grad = next(grad for grad in grads.values() if grad.numel())
    grad.mul_((bad + 1).to(grad.dtype))
