"""Validation and testing: batches in, metrics out, and the model as it was."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from helios.core.rng import preserved_rng
from helios.data import EpochSource
from helios.functional import metrics, rng
from helios.functional.binding import bind, own_binding
from helios.functional.share import is_shared
from helios.functional.state import Carry, TrainingState
from helios.functional.streams import each_piece_drawing
from helios.functional.tree import clone
from helios.model.hooks import ModelHooks, overridden
from helios.model.model import Model, read_metrics
from helios.trainer.agreement import Agreement, Tally
from helios.trainer.hooks import Hooks


def validate(
    state: TrainingState,
    hooks: Hooks,
    source: EpochSource,
    move: Callable[[Any], Any],
    agreement: Agreement,
) -> dict[str, float]:
    """Run a validation and return its metrics, which are the model's ``valid_metrics`` too.

    It changes nothing of the training that follows: modes, random generators and parameters are
    put back, after an exception too.

    Args:
        state: the state to validate; its counters do not yet count this validation.
        hooks: the plugins and the model.
        source: the validation batches.
        move: moves a batch to the device.
        agreement: asked before each batch whether to leave, and for what all ranks measured.
    """
    model, cycle = hooks.model, state.validation_cycles
    with evaluating(model, state):
        key = rng.fold(state.seed, "valid", cycle)
        hooks.call("on_validation_start", key, cycle)
        process = hooks.plugins.process_validation_batch
        model.valid_metrics = _run(
            source,
            move,
            process,
            _runner(model, model.valid_step),
            _batch_hooks(model, "validation"),
            agreement,
            key,
        )
        hooks.call("on_validation_end", rng.fold(state.seed, "valid_end", cycle), cycle)
        model.after_validation()
    return model.valid_metrics


def test(
    state: TrainingState,
    hooks: Hooks,
    source: EpochSource,
    move: Callable[[Any], Any],
    agreement: Agreement,
) -> dict[str, float]:
    """Run the test batches and return the metrics, which are the model's ``test_metrics`` too."""
    model = hooks.model
    with evaluating(model, state):
        key = rng.fold(state.seed, "test")
        hooks.call("on_testing_start", key)
        process = hooks.plugins.process_testing_batch
        model.test_metrics = _run(
            source,
            move,
            process,
            _runner(model, model.test_step),
            _batch_hooks(model, "testing"),
            agreement,
            key,
        )
        hooks.call("on_testing_end", rng.fold(state.seed, "test_end"))
        model.after_testing()
    return model.test_metrics


@contextlib.contextmanager
def evaluating(model: Model, state: TrainingState) -> Iterator[None]:
    """Put a model in evaluation mode on copies of its buffers, and then back as it was.

    The parameters are the average, if the model keeps one to evaluate with.
    """
    carry = state.carry
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserved_rng())
        if isinstance(carry, Carry) and carry.params:
            use_average = carry.average is not None and getattr(model.average, "evaluate", False)
            params = carry.average if use_average and carry.average else carry.params
            binding = bind(model)
            stack.enter_context(binding.borrowed())
            binding.lend(params, clone(carry.buffers))
        stack.enter_context(model.in_evaluation())
        stack.enter_context(torch.no_grad())
        yield


def _runner(model: Model, step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step of a model, run as the binding of a sharded one wants it."""
    own = own_binding(model)
    return step if own is None else functools.partial(own.run, step)


def _batch_hooks(model: Model, stage: str) -> tuple[Any, Any]:
    start = overridden(model, f"on_{stage}_batch_start", ModelHooks)
    return start, overridden(model, f"on_{stage}_batch_end", ModelHooks)


def _run(
    source: EpochSource,
    move: Callable[[Any], Any],
    process: Callable[..., Any] | None,
    step: Callable[[Any, int], Any],
    batch_hooks: tuple[Any, Any],
    agreement: Agreement,
    key: int,
) -> dict[str, float]:
    start, end = batch_hooks
    tally = Tally(agreement.in_order)
    for index, fetched in enumerate(source.open(epoch=0)):
        if agreement.check_inside():
            break
        batch = move(fetched)
        shared = is_shared(batch)
        if shared:  # which pieces were here before is to be of no account
            rng.seed_generators(rng.fold(key, "batch", index))
        if process is not None:
            drawing = rng.fold(key, "process", index)
            batch = each_piece_drawing(
                functools.partial(_processed, process, index), batch, drawing
            )
        if start is not None:
            start(index)
        if shared:
            for piece in batch:
                rng.seed_generators(rng.fold(key, "piece", index, piece.index))
                output = step(piece.batch, index)
                tally.add(read_metrics(output, piece.count) if piece.count else {})
            rng.seed_generators(rng.fold(key, "batch_end", index))
        else:
            tally.add(read_metrics(step(batch, index), metrics.batch_size(batch)))
        if end is not None:
            end(index)
    return metrics.compute(agreement.whole(tally))


def _processed(process: Callable[..., Any], index: int, batch: Any) -> Any:
    return process(batch, index)
