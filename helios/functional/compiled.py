"""The whole step as one compiled graph: forward, backward, accumulation, clipping, update, average.

`Compiled` stands in the place of the eager kernel. It hands the tensors of a carry to
`helios.functional.traced.traced_step`, through ``torch.compile``, and puts together the next carry
from what comes back. Its results equal the eager ones up to rounding: fused operators round less
often.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from msgspec.structs import replace

from helios.errors import NotTraceableError
from helios.functional import accumulate, metrics, nonfinite
from helios.functional.binding import Binding
from helios.functional.compiler import Compiler
from helios.functional.loss import Objective
from helios.functional.metrics import Mean
from helios.functional.observe import Observer, Seen
from helios.functional.precision import Policy
from helios.functional.recomputed import is_recomputed
from helios.functional.state import Accumulator, Carry, TrainingState
from helios.functional.traced import Outcome, Part, Recipe, Window
from helios.functional.tree import leaves, map_leaves

_HEAD = 4  # numbers of an objective in a report


class Compiled:
    """Runs the micro-batches of a model as compiled graphs.

    One graph is compiled for each place in a window (its first micro-batch, its last, those
    between) and each shape of a batch; see `helios.functional.compiler.Compiler`. What an optimizer
    makes at the first gradient it makes in an eager step, so the first update of a run is one.

    Args:
        binding: of the model.
        trained: the objectives, and the paths of the parameters that each trains.
        policy: which dtype the losses compute in.
        average: the average to keep of the parameters, if any.
        skip: whether updates that are not finite are left out; if not, they are an error.
        deferred: takes what the check found, where the device is not to be waited for.
        observe: is told of updates, if anyone is.
        backend: what ``torch.compile`` compiles with.

    Raises:
        NotTraceableError: if something is known beforehand not to compile.
    """

    def __init__(
        self,
        binding: Binding,
        trained: tuple[tuple[Objective, tuple[str, ...]], ...],
        policy: Policy,
        average: Any,
        *,
        skip: bool = False,
        deferred: nonfinite.Deferred | None = None,
        observe: Observer | None = None,
        backend: str,
    ) -> None:
        if average is not None and not hasattr(average, "weight"):
            raise NotTraceableError(
                f"the average {type(average).__name__} has no weight(count), which a compiled "
                "step needs"
            )
        if is_recomputed(binding.module):
            raise NotTraceableError(
                "some activations are computed again in the backward pass "
                "(checkpoint_activations), which one graph of both passes does not do"
            )
        self._binding = binding
        self._compiler = Compiler(binding.module, backend)
        self._deferred = deferred
        self._observe = observe
        self._skip = skip
        self._average = average
        self._device = next(iter(binding.parameters.values())).device
        parts = [Part(binding.module, objective, names) for objective, names in trained]
        self._recipe = Recipe(parts, policy, self._device.type, skip, average, observe is not None)
        self._known: list[Any] = []
        self._slots: dict[str, Any] = {}
        self._fixed: Any = None
        self._kind: Any = None

    def is_ready(self, carry: Carry) -> bool:
        """Tell whether the optimizers have made the state that they make at a first gradient."""
        parts = self._recipe.parts
        now = [carry.params, carry.average, *(carry.opt_state[part.name] for part in parts)]
        if len(now) == len(self._known) and all(map(operator.is_, now, self._known)):
            return True
        self._known = []
        for part in parts:
            part.started = part.optimizer.started(carry.opt_state[part.name])
            if not part.started:
                return False
            self._slots[part.name] = part.optimizer.slots(carry.opt_state[part.name], part.names)
        self._known = now
        self._fixed = carry.params, self._slots, carry.average
        self._kind = tuple(map(_kind_of, leaves(self._fixed)))
        if self._device.type == "cuda":
            self._fixed = map_leaves(_kept_in_place, self._fixed)
        return True

    def __call__(self, state: TrainingState, carry: Carry, batch: Any) -> Carry:
        """Run one micro-batch on a carry that `is_ready`, which may be overwritten.

        Args:
            state: the state, with the counters of the micro-batch.
            carry: its carry.
            batch: one micro-batch.

        Raises:
            NotTraceableError: if the step cannot be compiled; the carry is as it was.
            NonFiniteError: if the loss or a gradient is not finite, unless that is skipped.
        """
        update = state.window_iter == 0
        params, slots, average = self._fixed
        outcome = self._compiler(
            self._kind,
            self._recipe,
            params,
            carry.buffers,
            slots,
            {name: self._opened(w) for name, w in carry.accumulators.items() if w.grads},
            average if update else None,
            self._numbers(state, carry, batch),
            batch,
            update,
        )
        return self._carry_after(state, carry, outcome, update)

    def _opened(self, window: Accumulator) -> Window:
        weight, total = window.weight, window.total
        if not isinstance(weight, torch.Tensor):
            weight = torch.tensor(float(weight), dtype=torch.float64, device=self._device)
        return Window(window.grads, weight.double(), total)

    def _numbers(self, state: TrainingState, carry: Carry, batch: Any) -> torch.Tensor:
        """Return what changes from step to step, in the order that `traced` names."""
        scale = 1.0 if carry.scale is None else carry.scale.scale
        weight = 0.0
        if self._average is not None:
            weight = self._average.weight(state.current_iteration - 1 - carry.skipped)
        numbers = [float(metrics.batch_size(batch)), scale, weight]
        for part in self._recipe.parts:
            numbers += part.optimizer.inputs(carry.opt_state[part.name])
        host = torch.tensor(numbers, dtype=torch.float64)
        if self._device.type == "cpu":
            return host
        return host.pin_memory().to(self._device, non_blocking=True)

    def _carry_after(
        self, state: TrainingState, carry: Carry, outcome: Outcome, update: bool
    ) -> Carry:
        parts = self._recipe.parts
        report: Any = outcome.report
        if report.is_cpu:
            report = report.tolist()
        heads = [report[_HEAD * i : _HEAD * (i + 1)] for i in range(len(parts))]
        sums = report[_HEAD * len(parts) :]
        counted = {
            name: Mean(sums[2 * i], sums[2 * i + 1]) for i, name in enumerate(outcome.metrics)
        }
        buffers, scale, skipped = carry.buffers, carry.scale, carry.skipped
        if outcome.buffers:
            buffers = {**buffers, **outcome.buffers}
        self._binding.lend_buffers(buffers)
        windows = {
            part.name: accumulate.EMPTY if update else Accumulator(*outcome.windows[part.name])
            for part in parts
        }
        if update:
            applied = [
                self._was_applied(state, carry, outcome, index, head)
                for index, head in enumerate(heads)
            ]
            self._tell(state, heads, applied)
            for part, was in zip(parts, applied, strict=True):
                if was:
                    part.optimizer.advance(carry.opt_state[part.name])
            scale = None if scale is None else scale.adjust(finite=all(applied))
            skipped += not all(applied)
        recorded = metrics.merge(carry.metrics, counted)
        return replace(
            carry,
            buffers=buffers,
            accumulators=windows,
            scale=scale,
            metrics=recorded,
            skipped=skipped,
        )

    def _tell(self, state: TrainingState, heads: list[Any], applied: list[bool]) -> None:
        observe = self._observe
        if observe is None or not observe.wants(state):
            return
        for part, head, was in zip(self._recipe.parts, heads, applied, strict=True):
            _, total, weight, norm = head
            observe.see(state, Seen(part.metric, total, weight, norm, was))

    def _was_applied(
        self, state: TrainingState, carry: Carry, outcome: Outcome, index: int, head: Any
    ) -> bool:
        """Tell whether an objective's update was finite, and so applied; raise if it had to be."""
        part = self._recipe.parts[index]
        if self._deferred is not None and carry.scale is None:
            if index == 0:
                self._deferred.check()
            ok, total, weight, _ = outcome.report[_HEAD * index : _HEAD * (index + 1)].unbind()
            self._deferred.expect(state, part.metric, Accumulator({}, weight, total), 1.0 - ok)
            return True
        ok, total, weight, _ = head if isinstance(head, list) else head.tolist()
        if ok:
            return True
        window = Accumulator({}, weight, total)
        overflow = carry.scale is not None and math.isfinite(total)
        if not (self._skip or overflow):
            probes = dict(zip(outcome.names[index], outcome.probes[index].unbind(), strict=True))
            raise nonfinite.error(state, part.metric, window, probes)
        return False


def _kind_of(tensor: Any) -> Any:
    if not isinstance(tensor, torch.Tensor):
        return tensor
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _kept_in_place(tensor: Any) -> Any:
    """Return an alias that torch knows to stay where it is: a CUDA graph may write to it."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    alias = tensor.detach()
    torch._dynamo.mark_static_address(alias, guard=False)
    return alias
