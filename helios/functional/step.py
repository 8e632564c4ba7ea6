"""The pure step: ``(state, batch) -> state``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from msgspec.structs import replace

from helios.errors import ModelError, NotTraceableError
from helios.functional import accumulate, metrics, nonfinite, rng
from helios.functional.binding import Binding, bind, in_mode
from helios.functional.compiled import Compiled
from helios.functional.compiler import backend_of
from helios.functional.gradients import ENGINES, Engine, MakeEngine, Turn, trained_names
from helios.functional.loss import Objective, loss_metrics
from helios.functional.observe import Observer, Seen
from helios.functional.precision import LossScale
from helios.functional.schedule import Plan, closes_window
from helios.functional.state import (
    COUNTERS,
    Accumulator,
    Carry,
    TrainingState,
    begin_batch,
    consume,
    end_batch,
    take_carry,
)
from helios.functional.trainable import Averaging, custom_step
from helios.functional.transformation import Tensors
from helios.functional.tree import clone


def make_step(
    model: Any,
    plan: Plan | None = None,
    *,
    engine: str | MakeEngine = "autograd",
    non_finite: str = "raise",
    deferred: nonfinite.Deferred | None = None,
    compile: bool | str = False,
    tell: Callable[[str], None] | None = None,
    observe: Observer | None = None,
) -> Step:
    """Return the step of a model as a function of a state and a batch.

    With ``non_finite="skip"``, an update whose loss or gradient is NaN or infinite is left out:
    parameters, optimizer state (and with it the count that the learning rate follows) and average
    keep their bits, the window is closed, and ``carry.skipped`` counts it. Of several objectives,
    only the one that is not finite is left out; the average then stays as it is, too. A forward
    pass that makes a buffer non-finite leaves all buffers as they were before it. Metrics are
    recorded as they are, and stop nothing.

    On a GPU, ``"skip"`` and a loss scale wait for the device at each update (and ``"skip"`` at each
    micro-batch, if the model has floating-point buffers): the next rate hangs on the answer.
    ``"raise"`` without a loss scale waits too, unless there is a
    `helios.functional.nonfinite.Deferred`.

    Args:
        model: a `helios.Model`.
        plan: (optional) where accumulation windows end. Without one, every micro-batch is a window.
        engine: ``"autograd"`` or ``"func"``; see `helios.functional.gradients`. Or what makes one
            of a binding and a policy, as a run of several ranks has it.
        non_finite: ``"raise"`` or ``"skip"``: what to do about an update that is not finite. A
            model with a step of its own sees to that itself.
        deferred: (optional) takes what the check found, to be looked at before the next update is
            applied; by default it is looked at before its own. Without effect where the answer is
            needed at once: under ``"skip"``, and with a loss scale.
        compile: whether the whole step is compiled to one graph with ``torch.compile``, forward,
            backward, update and all; or the name of the backend to do it with. The first update
            runs uncompiled; so does everything, with a sentence that says why, where something
            cannot be compiled.
        tell: (optional) takes that sentence; by default it is a warning.
        observe: (optional) is told the loss and the norm of the gradients of every update.

    Returns:
        The step.

    Raises:
        ModelError: if the model has no parameters, or no optimizer.
        ValueError: if there is no such engine, or no such ``non_finite``.

    Law:
        The inputs keep their bits, and the outputs share no storage with them
        (``property_tests/test_step_purity.py``). A skipped update changes no bit of what it would
        have updated (``property_tests/test_non_finite.py``).
    """
    plan = Plan() if plan is None else plan
    step = Step(model, plan, engine, non_finite, deferred, observe)
    backend = backend_of(compile)
    if backend is not None:
        step.compile(backend, tell)
    return step


class Step:
    """A pure function from ``(state, batch)`` to the next state.

    Calling it leaves the state, the model, the global random generators, the gradient mode and the
    modules' training flags as they were. With ``donate=True`` it computes the same bits without the
    copies: the state given is consumed, and the model holds the tensors of the state returned.
    """

    def __init__(
        self,
        model: Any,
        plan: Plan,
        engine: str | MakeEngine = "autograd",
        non_finite: str = "raise",
        deferred: nonfinite.Deferred | None = None,
        observe: Observer | None = None,
    ) -> None:
        if isinstance(engine, str) and engine not in ENGINES:
            raise ValueError(f"engine: received {engine!r}; expected one of {sorted(ENGINES)}")
        if non_finite not in nonfinite.POLICIES:
            raise ValueError(
                f"non_finite: received {non_finite!r}; expected one of {list(nonfinite.POLICIES)}"
            )
        self._skip = non_finite == "skip"
        self._deferred = None if self._skip else deferred
        self._observe = observe
        model.prepare(rng.DEFAULT_SEED)
        self.plan = plan
        self._model = model
        self._is_plain = isinstance(engine, str)
        self._compiled: Compiled | None = None
        self._tell: Callable[[str], None] = _warn
        self._custom = custom_step(model)
        self._is_pure = getattr(self._custom, "is_pure", True)
        self._average: Averaging | None = model.average
        self._binding: Binding | None = None
        if self._custom is None or any(True for _ in model.parameters()):
            self._binding = bind(model)
        self._trained = () if self._custom is not None else trained_names(model)
        self._all = tuple(self._binding.parameters) if self._binding is not None else ()
        self._engine: Engine | None = None
        if self._custom is None and self._binding is not None:
            make = ENGINES[engine] if isinstance(engine, str) else engine
            self._engine = make(self._binding, model.precision)
        self._alike = {
            objective.name: _of_one_kind([self._binding.parameters[name] for name in names])
            for objective, names in self._trained
            if self._binding is not None
        }
        self._found = torch.zeros(())
        self._subsets: tuple[Tensors | None, dict[str, Tensors]] = (None, {})

    def compile(self, backend: str, tell: Callable[[str], None] | None = None) -> None:
        """Run compiled from now on, if it can be; see `make_step`."""
        self._tell = _warn if tell is None else tell
        if self._custom is not None:
            self._tell(_UNCOMPILED.format("the model has a step of its own"))
            return
        if not self._is_plain:
            self._tell(_UNCOMPILED.format("its gradients are put together over ranks or pieces"))
            return
        assert self._binding is not None
        try:
            self._compiled = Compiled(
                self._binding,
                self._trained,
                self._model.precision,
                self._average,
                skip=self._skip,
                deferred=self._deferred,
                observe=self._observe,
                backend=backend,
            )
        except NotTraceableError as error:
            self._tell(_UNCOMPILED.format(error))

    def __call__(
        self, state: TrainingState, batch: Any, *, donate: bool = False, last: bool | None = None
    ) -> TrainingState:
        """Run one micro-batch.

        Args:
            state: the state after the previous micro-batch.
            batch: one micro-batch, on the device of the state.
            donate: whether the state may be consumed.
            last: whether this is the last micro-batch of its epoch; by default the plan tells.

        Returns:
            The state after this micro-batch.

        Raises:
            ConsumedStateError: if the state was given to a donated step before.
            LossError: if the loss is not a scalar tensor that requires grad.
            NonFiniteError: if the loss or a gradient is NaN or infinite, unless that is skipped;
                with a `Deferred`, one update later.
        """
        if last is None:
            last = state.dataset_iter + 1 == self.plan.batches_per_epoch
        begun = begin_batch(state, update=closes_window(self.plan, state, last))
        try:
            return end_batch(self.compute(begun, batch, donate=donate))
        finally:
            if donate:
                consume(state)

    def compute(self, state: TrainingState, batch: Any, *, donate: bool = False) -> TrainingState:
        """Run the micro-batch that ``state``'s counters have already been advanced for.

        The window closes here if ``state.window_iter`` is 0.
        """
        carry = take_carry(state)
        if donate:
            rng.seed_generators(rng.train_key(state.seed, state.global_iteration))
            try:
                if self._binding is None or self._binding.module.training:
                    return self._kernel(state, carry, batch)
                with in_mode(self._binding.module, training=True):
                    return self._kernel(state, carry, batch)
            finally:
                consume(state)  # after a failure too: its tensors may be half way
        if not self._is_pure:
            raise ModelError(
                f"{type(self._model).__name__} trains by side effect: a step of it changes the "
                "model, and the old state is gone. Train it with helios.Trainer, or write its loss "
                "as that of a helios.Model, which has a pure step."
            )
        saved = rng.generator_states()
        rng.seed_generators(rng.train_key(state.seed, state.global_iteration))
        try:
            if self._binding is None:
                return self._kernel(state, clone(carry), batch)
            with self._binding.borrowed(), in_mode(self._binding.module, training=True):
                return self._kernel(state, clone(carry), batch)
        finally:
            rng.restore_generators(saved)

    def _kernel(self, state: TrainingState, carry: Any, batch: Any) -> TrainingState:
        """Fold the objectives over ``carry``, which may be overwritten."""
        if self._custom is not None:
            return _check_custom(state, self._custom(replace(state, carry=carry), batch))
        if self._compiled is not None and self._compiled.is_ready(carry):
            try:
                return replace(state, carry=self._compiled(state, carry, batch))
            except NotTraceableError as error:
                self._compiled = None
                self._tell(_UNCOMPILED.format(error))
                rng.seed_generators(rng.train_key(state.seed, state.global_iteration))
        assert self._engine is not None
        assert self._binding is not None
        update = state.window_iter == 0
        turn = Turn(update, state.seed, state.global_iteration)
        params, buffers, scale = carry.params, carry.buffers, carry.scale
        opt_state, windows = dict(carry.opt_state), dict(carry.accumulators)
        recorded = carry.metrics
        observe = self._observe if update else None
        if observe is not None and not observe.wants(state):
            observe = None
        updated = True
        for objective, names in self._trained:
            name = objective.name
            window: Accumulator = windows[name]
            factor = 1.0 if scale is None else scale.scale
            before = nonfinite.copied(buffers) if self._skip and buffers else {}
            result = self._engine(objective, names, params, buffers, window, batch, factor, turn)
            params, buffers = result.params, result.buffers
            if before and nonfinite.became_non_finite(before, buffers):
                buffers = before
                self._binding.lend(params, buffers)
            counted = result.metrics
            if counted is None:
                counted = loss_metrics(objective.metric, result.loss, metrics.batch_size(batch))
            recorded = metrics.merge(recorded, counted)
            windows[name] = accumulate.add(window, result.loss, result.grads)
            if not update:
                continue
            window, windows[name] = windows[name], accumulate.EMPTY
            if result.weight is not None:
                window = replace(window, weight=result.weight)
            grads = accumulate.divide(window)
            applied = self._sound(state, objective, window, grads, scale)
            if observe is not None:
                norm = observe.norm(grads)
                seen = Seen(objective.metric, window.total, window.weight, norm, applied)
                observe.see(state, seen)
            if applied:
                params, opt_state[name] = self._update(
                    objective, names, grads, opt_state[name], params
                )
            else:
                updated = False
        average, skipped = carry.average, carry.skipped
        if update:
            scale = None if scale is None else scale.adjust(finite=updated)
            if average is not None and self._average is not None and updated:
                done = state.current_iteration - 1 - skipped
                average = self._average.update(average, params, done, donate=True)
            skipped += not updated
        after = Carry(
            params, buffers, opt_state, windows, scale, average, recorded, carry.best, skipped
        )
        return replace(state, carry=after)

    def _sound(
        self,
        state: TrainingState,
        objective: Objective,
        window: Accumulator,
        grads: Tensors,
        scale: LossScale | None,
    ) -> bool:
        """Unscale and check the gradients of an update; tell whether it is to be applied."""
        total = window.total
        factor = 1.0 if scale is None else scale.scale
        alike = self._alike[objective.name]
        # On the CPU it is read at once, so one tensor serves every update.
        into = self._found if total.is_cpu else None
        found = accumulate.unscale(grads, total.device, factor, alike=alike, into=into)
        if self._deferred is not None and scale is None:
            if objective is self._trained[0][0]:  # the others belong to the same update
                self._deferred.check()
            self._deferred.expect(state, objective.metric, window, found)
            return True
        if nonfinite.is_finite(found, total):
            return True
        overflow = scale is not None and bool(torch.isfinite(total))
        if not (self._skip or overflow):
            raise nonfinite.error(state, objective.metric, window, grads)
        return False

    def _update(
        self,
        objective: Objective,
        names: tuple[str, ...],
        grads: Tensors,
        opt: Any,
        params: Tensors,
    ) -> tuple[Tensors, Any]:
        """Apply one update to the parameters that an objective trains."""
        if names == self._all:
            return objective.optimizer.update(grads, opt, params, donate=True)
        # The subset is the same dict from step to step, so that an optimizer bound to it stays so.
        if self._subsets[0] is not params:
            self._subsets = (
                params,
                {o.name: {n: params[n] for n in ns} for o, ns in self._trained},
            )
        subset = self._subsets[1][objective.name]
        new, opt = objective.optimizer.update(grads, opt, subset, donate=True)
        if all(new[n] is subset[n] for n in names):
            return params, opt
        return {**params, **new}, opt


_UNCOMPILED = "The step runs uncompiled: {}."


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _of_one_kind(tensors: list[Any]) -> bool:
    return len({(tensor.device, tensor.dtype) for tensor in tensors}) == 1


def _check_custom(before: TrainingState, after: Any) -> TrainingState:
    if not isinstance(after, TrainingState):
        raise ModelError(
            f"step() returned a {type(after).__name__}; expected the next TrainingState, such as "
            "msgspec.structs.replace(state, carry=new_carry)"
        )
    changed = [
        n for n in (*COUNTERS, "seed", "window_iter") if getattr(before, n) != getattr(after, n)
    ]
    if changed:
        raise ModelError(
            f"step() changed {changed}; expected it to change the carry alone: the counters are "
            "already advanced when it is called"
        )
    return after
