"""Validation and testing: batches in, metrics out, and the model as it was."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from helios.core.rng import preserved_rng
from helios.data import EpochSource
from helios.errors import ModelError
from helios.functional import metrics, rng
from helios.functional.binding import bind, own_binding
from helios.functional.share import is_shared
from helios.functional.state import Carry, TrainingState
from helios.functional.streams import each_piece_drawing
from helios.functional.tree import clone
from helios.model.hooks import ModelHooks, overridden
from helios.model.metric_objects import (
    Objects,
    begun_anew,
    computed,
    separated,
    unseen,
    without_samples,
)
from helios.model.model import Model, read_metrics
from helios.trainer.agreement import Agreement, Tally
from helios.trainer.hooks import Hooks

Watched = Callable[[str, Iterator[Any], int | None], Iterator[Any]]
"""Passes on the batches of what a label names, and how many they are; shows how far it is."""


def unwatched(label: str, batches: Iterator[Any], total: int | None) -> Iterator[Any]:
    """Pass batches on, and show nothing."""
    return batches


def validate(
    state: TrainingState,
    hooks: Hooks,
    source: EpochSource,
    move: Callable[[Any], Any],
    agreement: Agreement,
    watched: Watched = unwatched,
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
        watched: shows how far it is; passes the batches on.
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
            model,
            model.valid_step,
            _batch_hooks(model, "validation"),
            agreement,
            key,
            functools.partial(watched, "valid"),
        )
        hooks.call("on_validation_end", rng.fold(state.seed, "valid_end", cycle), cycle)
        model.after_validation()
    return model.valid_metrics


def improves(model: Model, state: TrainingState) -> bool:
    """Judge the validation that has just ended, and give the model its best score.

    Args:
        model: whose ``valid_metrics`` are judged.
        state: with the best score before it.
    """
    if isinstance(state.carry, Carry):
        model.best_score = state.carry.best
    improved = bool(model.have_metrics_improved())
    if improved:
        reached = model.monitored_score()
        if math.isfinite(reached):  # a hook of the user's may think otherwise
            model.best_score = reached
    return improved


def test(
    state: TrainingState,
    hooks: Hooks,
    source: EpochSource,
    move: Callable[[Any], Any],
    agreement: Agreement,
    watched: Watched,
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
            model,
            model.test_step,
            _batch_hooks(model, "testing"),
            agreement,
            key,
            functools.partial(watched, "test"),
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
        stack.enter_context(begun_anew(model))
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
    model: Model,
    evaluate: Callable[[Any, int], Any],
    batch_hooks: tuple[Any, Any],
    agreement: Agreement,
    key: int,
    watched: Callable[[Iterator[Any], int | None], Iterator[Any]],
) -> dict[str, float]:
    start, end = batch_hooks
    step = _runner(model, evaluate)
    objects: Objects = {}
    tally = Tally(agreement.in_order)
    for index, fetched in enumerate(watched(source.open(epoch=0), source.batches_per_epoch)):
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
                # One that is there for its shape alone is of no account to anything.
                with contextlib.nullcontext() if piece.count else unseen(model):
                    output, found = separated(step(piece.batch, index))
                objects.update(found)
                tally.add(read_metrics(output, piece.count) if piece.count else {})
            rng.seed_generators(rng.fold(key, "batch_end", index))
        else:
            output, found = separated(step(batch, index))
            objects.update(found)
            tally.add(read_metrics(output, metrics.batch_size(batch)))
        if end is not None:
            end(index)
    means = metrics.compute(agreement.whole(tally))
    if not objects:
        return means
    idle = without_samples(objects)
    if not agreement.all_have(not idle):
        raise ModelError(
            f"metrics {', '.join(map(repr, objects))}: a rank had no sample of the evaluation, and "
            "torchmetrics cannot gather lists of samples from ranks that have none; expected some "
            "for every rank, as a larger batch_size gives, or metrics that keep sums alone"
        )
    return {**means, **computed(objects, model)}


def _processed(process: Callable[..., Any], index: int, batch: Any) -> Any:
    return process(batch, index)
