"""What is printed before a run: the system, the model, and what will happen when."""

from __future__ import annotations

import torch

from helios.core.utils import get_env_info_str
from helios.functional.calendar import Totals, never, totals
from helios.functional.schedule import Plan
from helios.functional.state import TrainingUnit
from helios.model.model import Model
from helios.trainer.measures import optimizers, rates_at

_MEGABYTE = 10**6


def banner(
    model: Model,
    plan: Plan | None,
    device: torch.device,
    division: str | None = None,
    samples: int | None = None,
) -> str:
    """Return the banner of a run: the system, the model, and what will happen when.

    What the plan asks for and never gets is a warning, in the words of ``helios plan``.

    Args:
        model: the model, set up.
        plan: the calendar of a fit, None for a test.
        device: the device that computes.
        division: (optional) how micro-batches are divided, where they are.
        samples: (optional) samples of a micro-batch, over all ranks.
    """
    lines = [get_env_info_str(), f"Device: {device}", describe_model(model)]
    if plan is not None:
        lines += describe_optimizers(model)
    lines.append(f"Precision: {describe_precision(model)}")
    if division is not None:
        lines.append(division)
    if plan is not None:
        if samples is not None:
            lines.append(describe_batch(plan, samples))
        lines += [describe_plan(plan), *(f"  {line}" for line in describe_events(plan))]
        lines += [f"warning: {sentence}" for sentence in never(plan)]
    return model.append_to_banner("\n".join(lines))


def describe_model(model: Model) -> str:
    """Return the name of a model and the size of its parameters in one line."""
    parameters = list(model.own_parameters())
    trained = [p for p in parameters if p.requires_grad]
    count, learned = (sum(p.numel() for p in some) for some in (parameters, trained))
    size = sum(p.numel() * p.element_size() for p in parameters) / _MEGABYTE
    frozen = "" if learned == count else f", {count - learned:,} frozen"
    return (
        f"Model: {type(model).__name__} ({model.save_name}), {count:,} parameters, "
        f"{learned:,} of them trained{frozen}, {size:,.2f} MB"
    )


def describe_optimizers(model: Model) -> list[str]:
    """Return a line for each optimizer of a model, with its first learning rate."""
    lines = []
    several = optimizers(model)
    for name, optimizer in several.items():
        of = f" of {name}" if len(several) > 1 else ""
        rates = rates_at(optimizer, 0, "rate")
        told = ", ".join(
            f"{tag.removeprefix('rate').removeprefix('/')} {rate:g}".strip()
            for tag, rate in rates.items()
        )
        first = "" if rates == rates_at(optimizer, 1, "rate") else " at first"
        kind = getattr(optimizer, "implementation", type(optimizer).__name__)
        kind = str(kind).removesuffix("()")
        lines.append(f"Optimizer{of}: {kind}" + (f", learning rate {told}{first}" if told else ""))
    return lines


def describe_precision(model: Model) -> str:
    """Return in which precision a model computes."""
    policy = model.precision
    scale = policy.initial_scale()
    scaled = "" if scale is None else f", loss scale {scale.scale:g} at first"
    if policy.dtype is None:
        dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.own_parameters()})
        return (", ".join(dtypes) or "float32") + scaled
    return f"{str(policy.dtype).removeprefix('torch.')} where autocast allows it{scaled}"


def describe_batch(plan: Plan, samples: int) -> str:
    """Return how many samples make an update.

    Example:
        >>> describe_batch(Plan(accumulation_steps=4), 32)
        'Batch: 4 micro-batches of 32 samples make an update of 128'
    """
    window = plan.accumulation_steps
    if window == 1:
        return f"Batch: {_count(samples, 'sample')} make an update"
    return f"Batch: {window} micro-batches of {samples:,} samples make an update of " + (
        f"{window * samples:,}"
    )


def describe_plan(plan: Plan) -> str:
    """Return the length of a run in one sentence.

    Example:
        >>> describe_plan(Plan(total_steps=3, batches_per_epoch=10))
        'Plan: 3 epochs of 10 micro-batches, 10 updates each, 30 in all'
    """
    by_epoch, size = plan.unit is TrainingUnit.EPOCH, plan.batches_per_epoch
    unit = "epoch" if by_epoch else "update"
    total = "no end" if plan.total_steps is None else _count(plan.total_steps, unit)
    if size is None:
        return f"Plan: {total}"
    if not by_epoch:
        return f"Plan: {total}, epochs of {_count(size, 'micro-batch')}"
    each = _count(-(-size // plan.accumulation_steps), "update")
    updates = totals(plan).updates
    whole = "" if updates is None else f", {updates:,} in all"
    return f"Plan: {total} of {_count(size, 'micro-batch')}, {each} each{whole}"


def describe_events(plan: Plan) -> list[str]:
    """Return what happens when, and how often, a line each.

    Example:
        >>> for line in describe_events(Plan(total_steps=9, valid_frequency=2, print_frequency=50)):
        ...     print(line)
        validation every 2 epochs: 4
        log every 50 updates
    """
    unit = "epoch" if plan.unit is TrainingUnit.EPOCH else "update"
    sums: Totals = totals(plan)
    lines = []
    for name, frequency, of, times in (
        ("validation", plan.valid_frequency, unit, sums.validations),
        ("checkpoint", plan.chkpt_frequency, unit, sums.checkpoints),
        ("log", plan.print_frequency, "update", sums.logs),
    ):
        if frequency is not None:
            every = of if frequency == 1 else _count(frequency, of)
            lines.append(f"{name} every {every}" + ("" if times is None else f": {times:,}"))
        elif name == "checkpoint" and plan.save_final:
            lines.append("checkpoint at the end: 1")
    if plan.early_stop_cycles is not None:
        cycles = plan.early_stop_cycles
        one = "a validation" if cycles == 1 else f"{cycles:,} validations in a row"
        lines.append(f"early stop after {one} without improvement")
    return lines


def _count(number: int, unit: str) -> str:
    plural = "es" if unit.endswith("ch") and unit != "epoch" else "s"
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}{plural}"
