"""The step of all members: one forward and backward pass, and one update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from msgspec.structs import replace

from helios.errors import NonFiniteError
from helios.functional import accumulate, metrics
from helios.functional.gradients import NOTHING, backward, taken
from helios.functional.loss import Loss, Objective, check_differentiable, read_loss
from helios.functional.precision import Policy
from helios.functional.stacked import SKIPPED, along, loss_metrics, rows
from helios.functional.state import Accumulator, Carry, TrainingState
from helios.functional.transformation import Tensors
from helios.functional.vmapped import Vmapped, explain
from helios.optim.average import Average
from helios.trainer.many.rules import Rules

Trained = Sequence[tuple[Objective, tuple[str, ...]]]
"""The objectives of a member, each with the paths of the parameters that it trains."""


class Fold:
    """Folds micro-batches over the stacked carry of all members.

    It follows `helios.functional.step.Step`, with a number for each member where that has one.

    Args:
        vmapped: the module of the first member.
        trained: the objectives of every member.
        names: the names of the members.
        policy: which dtype the losses compute in.
        average: what averages the parameters, None for nothing.
        device_type: where they compute.
        skip: whether a member's update that is not finite is left out, or raises.
    """

    def __init__(
        self,
        vmapped: Vmapped,
        trained: Sequence[Trained],
        names: Sequence[str],
        policy: Policy,
        average: Average | None,
        *,
        device_type: str,
        skip: bool,
    ) -> None:
        self._vmapped = vmapped
        self._trained = trained[0]
        self._names = tuple(names)
        self._policy = policy
        self._device_type = device_type
        self._average = average
        self._skip = skip
        self._everyone = list(range(len(self._names)))
        self._found = torch.zeros(())
        self.rules = {
            objective.name: Rules(
                [pairs[index][0].optimizer for pairs in trained], f"objective {objective.name!r}"
            )
            for index, (objective, _) in enumerate(trained[0])
        }

    def __call__(self, state: TrainingState, leaves: dict[str, Any], batch: Any) -> TrainingState:
        """Run one micro-batch; the carry of ``state`` may be overwritten.

        Args:
            state: with the counters of this micro-batch.
            leaves: parameters of a module, which hold the tensors of the carry.
            batch: the micro-batch.

        Raises:
            NonFiniteError: if the update of a member is not finite, unless that is skipped.
        """
        carry = state.carry
        update = state.window_iter == 0
        buffers, windows, recorded = carry.buffers, dict(carry.accumulators), carry.metrics
        samples = metrics.batch_size(batch)
        bad: set[int] = set()
        for objective, names in self._trained:
            loss, grads, buffers = self._differentiate(
                objective, names, leaves, buffers, windows[objective.name].grads, batch
            )
            recorded = metrics.merge(recorded, loss_metrics(objective.metric, loss, samples))
            window = accumulate.add(windows[objective.name], loss, grads)
            windows[objective.name] = accumulate.EMPTY if update else window
            if update:
                grads = _divide(window)
                found = self._not_finite(state, objective, window, grads)
                bad |= found
                self.rules[objective.name].update(
                    grads,
                    carry.opt_state[objective.name],
                    carry.params,
                    [k for k in self._everyone if k not in found] if found else self._everyone,
                )
        average, skipped = carry.average, carry.skipped
        if update:
            if average is not None:
                average = self._averaged(carry, state.current_iteration, bad)
            for member in bad:
                carry.opt_state[SKIPPED][member] += 1
            skipped += len(bad)
        after = Carry(
            carry.params,
            buffers,
            carry.opt_state,
            windows,
            None,
            average,
            recorded,
            carry.best,
            skipped,
        )
        return replace(state, carry=after)

    def _differentiate(
        self,
        objective: Objective,
        names: tuple[str, ...],
        leaves: dict[str, Any],
        buffers: Tensors,
        window: Tensors,
        batch: Any,
    ) -> tuple[Loss, Tensors, Tensors]:
        """Return the loss of every member, the gradients of the window, and the buffers."""
        before = {n: b.clone() for n, b in buffers.items()} if self._skip else {}
        wanted = [leaves[name] for name in names]
        for name, leaf in zip(names, wanted, strict=True):
            leaf.grad = window.get(name)
        try:
            with NOTHING if torch.is_grad_enabled() else torch.enable_grad():
                (total, weight, counted), buffers = self._vmapped(
                    self._loss, list(leaves.values()), buffers, objective, batch
                )
                loss = Loss(total, weight, counted)
                check_differentiable(loss, objective.name)
                self._backward(total, wanted)
        finally:
            grads = taken(names, wanted)
        if before:
            buffers = _kept_finite(before, buffers)
        if isinstance(weight, torch.Tensor):
            weight = weight.detach()
        return Loss(total.detach(), weight, counted), grads, buffers

    def _backward(self, total: torch.Tensor, leaves: list[Any]) -> None:
        """Add the gradients of every member's loss to those of its rows."""
        try:
            backward(total, tuple(leaves))
        except RuntimeError as error:
            if (explained := explain(error, len(total))) is None:
                raise
            raise explained from error

    def _loss(self, objective: Objective, batch: Any) -> Any:
        """Return the parts of a loss, of which no tensor but the first has its graph."""
        with self._policy.context(self._device_type) if self._policy.lowers else NOTHING:
            loss = read_loss(objective.loss(batch), objective.name)
        return loss.total, loss.weight, dict(loss.metrics)

    def _not_finite(
        self, state: TrainingState, objective: Objective, window: Accumulator, grads: Tensors
    ) -> set[int]:
        """Return the members whose update is not finite. Waits for the device.

        Raises:
            NonFiniteError: if there are any, unless they are skipped.
        """
        total = window.total
        into = self._found if total.is_cpu else None
        found = accumulate.unscale(grads, total.device, 1.0, into=into)
        totals, count = _host(total), _host(found)
        if count == 0 and all(map(math.isfinite, totals)):
            return set()
        finite = torch.isfinite(total)
        for grad in grads.values():
            finite &= torch.isfinite(grad.reshape(len(grad), -1)).all(1).to(finite.device)
        bad = {k for k, sound in enumerate(finite.tolist()) if not sound}
        if self._skip:
            return bad
        member = min(bad)
        weight = window.weight
        weight = float(weight[member] if isinstance(weight, torch.Tensor) else weight)
        value = totals[member] / weight if weight else math.nan
        others = f" and of {len(bad) - 1} more" if len(bad) > 1 else ""
        raise NonFiniteError(
            f"update {state.current_iteration} (global iteration {state.global_iteration}, epoch "
            f"{state.global_epoch}) of member {self._names[member]!r}{others}: "
            f"{objective.metric} = {value}, window weight {weight}: the loss or a gradient is NaN "
            "or infinite. No parameter of any member was updated with it. Look at the batch, the "
            "member's learning rate, and divisions or logarithms in the loss; or let "
            'non_finite="skip" leave out the updates of that member alone',
            update=state.current_iteration,
            global_iteration=state.global_iteration,
            epoch=state.global_epoch,
        )

    def _averaged(self, carry: Carry, update: int, bad: set[int]) -> Tensors:
        """Return the average after an update of all members but some."""
        assert self._average is not None
        average: Any = carry.average
        skipped = carry.opt_state[SKIPPED]
        if not bad and skipped.count(skipped[0]) == len(skipped):
            return self._average.update(average, carry.params, update - 1 - skipped[0], donate=True)
        for member in range(len(skipped)):
            if member not in bad:
                done = update - 1 - skipped[member]
                self._average.update(
                    rows(average, member), rows(carry.params, member), done, donate=True
                )
        return dict(average)


def _host(tensor: torch.Tensor) -> Any:
    """Return a tensor on the host. Waits for the device, if there is one to wait for."""
    return tensor.tolist()


def _divide(window: Accumulator) -> Tensors:
    """Divide the gradients of each member by its weight, in place, and return them."""
    weight = window.weight
    if not isinstance(weight, torch.Tensor):
        return accumulate.divide(window)
    for grad in window.grads.values():
        grad.div_(along(weight.to(grad.device), grad))
    return window.grads


def _kept_finite(before: Tensors, after: Tensors) -> Tensors:
    """Return the buffers, as they were for the members where the forward pass made one NaN."""
    spoilt: set[int] = set()
    for name, buffer in after.items():
        if not buffer.is_floating_point() or name not in before:
            continue
        finite = torch.isfinite(buffer)
        if not finite.all().tolist():
            new = ~finite & torch.isfinite(before[name])
            members = new.reshape(len(new), -1).any(1).tolist()
            spoilt.update(k for k, is_new in enumerate(members) if is_new)
    for name, buffer in after.items():
        for member in spoilt:
            buffer[member] = before[name][member]
    return after
