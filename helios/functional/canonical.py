"""Canonical reduction: gradients whose bits know nothing of the number of ranks.

A micro-batch is cut in a fixed number of pieces. Every piece is computed by itself, from the same
parameters and buffers and under a random key of its own, and what the pieces give is added in the
fixed order of a `TreeSum`, on whichever ranks they were. The exchange between ranks is injected.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from helios.errors import LossError, ModelError
from helios.functional import metrics
from helios.functional.binding import Binding
from helios.functional.gradients import Gradients, Turn, differentiate
from helios.functional.loss import Loss, Objective, loss_metrics
from helios.functional.norms import Norms
from helios.functional.precision import Policy
from helios.functional.share import Piece
from helios.functional.state import Accumulator
from helios.functional.streams import Streams
from helios.functional.transformation import Tensors
from helios.functional.tree import same_bits
from helios.functional.tree_sum import TreeSum

_PADDING, _MEAN, _SUM = 0.0, 1.0, 2.0  # what a piece's loss was, as a number for the exchange


class Exchange(Protocol):
    """What ranks tell each other. Every rank calls the same in the same order."""

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the total over the ranks of their nodes of the tree; may overwrite them."""
        ...

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return ``f64[world_size, k]``, the ``f64[k]`` of every rank in their order."""
        ...


class CanonicalEngine:
    """``loss.backward()`` on every piece, added in a fixed order.

    A mean loss of a piece counts by the piece's share of the samples, so the sum is the mean over
    the micro-batch; a `Loss` with a weight is summed as it is. Every trained parameter gets a
    gradient, zero where it took no part. Statistics of batch normalisation are each piece's own,
    and the running ones become the mean of the pieces', by their share; to the count of batches, a
    micro-batch is one.

    The loss given back is of the whole micro-batch, in float64; the metrics are of this rank's
    pieces.

    Args:
        binding: of the model.
        policy: which dtype the loss computes in.
        exchange: what ranks tell each other.

    Raises:
        ModelError: if a module normalises over all ranks by itself.

    Law:
        Parameters and buffers have the same bits on any number of ranks that
        `helios.functional.tree_sum.check_pieces` allows, and one piece has those of
        ``AutogradEngine`` (``tests/functional/test_canonical.py``).
    """

    def __init__(self, binding: Binding, policy: Policy, exchange: Exchange) -> None:
        self._binding = binding
        self._policy = policy
        self._exchange = exchange
        self._norms = Norms(binding.module)
        self._streams = Streams()
        self._kinds: dict[str, float] = {}  # whether an objective's loss is a mean or a sum

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
            window: the window so far.
            batch: this rank's pieces, in their order.
            scale: the factor on the loss before it is differentiated.
            turn: where in the run it stands.

        Raises:
            LossError: if some pieces have a mean loss and others one with a weight.
            ModelError: if the forward pass changed what cannot be put together again.
        """
        binding, norms = self._binding, self._norms
        binding.lend(params, buffers)
        before = norms.copied(buffers)
        first = objective.name not in self._kinds
        fixed = _Fixed(binding, params, buffers, norms.names, copy=first)
        device = params[trained[0]].device
        flags = norms.none_changed(buffers, device)
        numbers: list[torch.Tensor] = []
        recorded: metrics.Metrics = {}
        sums = TreeSum()
        self._streams.begin(turn, objective.name)
        for piece in batch:
            share = piece.count / piece.of
            if piece.count == 0:
                sums.add([*_dense({}, trained, params), *norms.zeros(buffers)], donate=True)
                numbers.extend(_numbers(None, share, device))
                continue
            binding.lend(params, buffers)
            norms.restore(buffers, before)
            self._streams.enter(piece.index)
            loss, grads = differentiate(
                binding, self._policy, objective, trained, piece.batch, scale=scale, share=share
            )
            self._streams.leave(piece.index)
            self._check_kind(objective.name, loss)
            after = binding.buffers(buffers)
            fixed.check(objective.name, after)
            flags = torch.maximum(flags, norms.changed(before, after, device))
            sums.add([*_dense(grads, trained, params), *norms.leaf(after, share)], donate=True)
            numbers.extend(_numbers(loss, share, device))
            recorded = metrics.merge(recorded, loss_metrics(objective.metric, loss, piece.count))
        table = self._exchange.gather(torch.cat([torch.stack(numbers), flags]))
        whole = self._whole(objective.name, table[:, : len(numbers)].reshape(-1, 3))
        totals = self._exchange(sums.total())
        binding.lend(params, buffers)
        norms.write(buffers, before, totals[len(trained) :], table[:, len(numbers) :].amax(0))
        self._streams.end()
        summed = dict(zip(trained, totals, strict=False))
        return Gradients(whole, _added(window.grads, summed), params, buffers, recorded)

    def _check_kind(self, name: str, loss: Loss) -> None:
        kind = _MEAN if loss.weight is None else _SUM
        if self._kinds.get(name, kind) != kind:
            raise _mixed(name)

    def _whole(self, name: str, rows: torch.Tensor) -> Loss:
        """Return the loss of the micro-batch from ``f64[pieces, 3]``, in the order of the pieces.

        Only the first micro-batch waits for the device: what kind of loss it is stays the same.
        """
        totals, weights, kinds = rows.unbind(1)
        if name not in self._kinds:
            found = set(kinds.tolist()) - {_PADDING}
            if len(found) != 1:
                raise _mixed(name)
            self._kinds[name] = found.pop()
        total = _in_order(totals)
        return Loss(total, None if self._kinds[name] == _MEAN else _in_order(weights))


class _Fixed:
    """Buffers and frozen parameters that the forward pass of a piece must leave as they are.

    Changes in place are told by the version of a tensor, at no cost. The first micro-batch
    compares bits too, for kernels that write without counting.
    """

    def __init__(
        self,
        binding: Binding,
        params: Tensors,
        buffers: Tensors,
        known: Sequence[str],
        *,
        copy: bool,
    ) -> None:
        self._binding = binding
        self._params = params
        self._buffers = {name: b for name, b in buffers.items() if name not in known}
        self._versions = {name: b._version for name, b in self._buffers.items()}
        self._frozen = {name: p._version for name, p in binding.frozen.items()}
        self._copies: Tensors = {}
        if copy:
            self._copies = {name: b.clone() for name, b in self._buffers.items()}
            self._copies.update((name, params[name].clone()) for name in binding.frozen)

    def check(self, objective: str, after: Tensors) -> None:
        """Raise if a forward pass changed one of them.

        Raises:
            ModelError: if it did.
        """
        moved = self._binding.parameters_after(self._params)
        for name, parameter in self._binding.frozen.items():
            same = moved is self._params or moved[name] is self._params[name]
            if not same or parameter._version != self._frozen[name] or self._differs(name, moved):
                raise _unknown("frozen parameter", name, objective)
        for name, buffer in self._buffers.items():
            same = after[name] is buffer or same_bits(after[name], buffer)
            if not same or buffer._version != self._versions[name] or self._differs(name, after):
                raise _unknown("buffer", name, objective)

    def _differs(self, name: str, after: Tensors) -> bool:
        return name in self._copies and not same_bits(self._copies[name], after[name])


def _dense(grads: Tensors, trained: tuple[str, ...], params: Tensors) -> list[torch.Tensor]:
    """Return a gradient for every trained parameter: a leaf of the tree."""
    found = []
    for name in trained:
        grad = grads.get(name)
        if grad is None:
            grad = torch.zeros_like(params[name])
        elif grad.layout is not torch.strided:
            raise ModelError(
                f"parameter {name!r}: received a gradient of layout {grad.layout}; canonical "
                "reduction adds dense gradients: build the module with sparse=False"
            )
        found.append(grad)
    return found


def _numbers(loss: Loss | None, share: float, device: torch.device) -> list[torch.Tensor]:
    """Return ``f64[]`` total, weight and kind of a piece's loss; None for padding."""

    def number(value: Any) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            return value.detach().to(device, torch.float64).reshape(())
        # A fill is queued like any kernel; a copy from the host would wait for the queue.
        return torch.full((), float(value), dtype=torch.float64, device=device)

    if loss is None:
        return [number(0.0), number(0.0), number(_PADDING)]
    if loss.weight is None:
        return [number(loss.total) * share, number(0.0), number(_MEAN)]
    return [number(loss.total), number(loss.weight), number(_SUM)]


def _in_order(numbers: torch.Tensor) -> torch.Tensor:
    """Return the sum of ``f64[n]`` from the first to the last, as ``f64[]`` of its own."""
    total: torch.Tensor = functools.reduce(operator.add, numbers.unbind())
    return total.clone()


def _added(window: Tensors, grads: Tensors) -> Tensors:
    """Add gradients to those of the window, in place."""
    for name, earlier in window.items():
        grads[name] = earlier.add_(grads[name])
    return grads


def _mixed(name: str) -> LossError:
    return LossError(
        f"{name}: some pieces of a run returned a mean and others a helios.Loss with a weight; "
        "expected the same for every piece, since a mean counts by samples and a Loss by its weight"
    )


def _unknown(what: str, name: str, objective: str) -> ModelError:
    return ModelError(
        f"{what} {name!r} changed in the forward pass of {objective!r}. Every piece of a "
        "micro-batch starts from the same values, and canonical reduction does not know how to put "
        "such changes together: it knows the running statistics of batch normalisation alone. "
        "Change it in a hook after the update, or choose another reduction."
    )
