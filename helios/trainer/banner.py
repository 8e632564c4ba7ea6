"""What is printed before a run."""

from __future__ import annotations

import torch

from helios.core.utils import get_env_info_str
from helios.functional.schedule import Plan
from helios.functional.state import TrainingUnit
from helios.model.model import Model


def banner(
    model: Model, plan: Plan | None, device: torch.device, division: str | None = None
) -> str:
    """Return the banner of a run: the system, the model, and what will happen when.

    Args:
        model: the model, set up.
        plan: the calendar of a fit, None for a test.
        device: the device that computes.
        division: (optional) how micro-batches are divided, where they are.
    """
    own = model.own_parameters()
    parameters = [p.numel() for p in own]
    trained = sum(p.numel() for p in own if p.requires_grad)
    lines = [
        get_env_info_str(),
        f"Device: {device}",
        f"Model: {type(model).__name__} ({model.save_name}), {sum(parameters):,} parameters, "
        f"{trained:,} of them trained",
    ]
    if division is not None:
        lines.append(division)
    if plan is not None:
        lines.append(describe_plan(plan))
    return model.append_to_banner("\n".join(lines))


def describe_plan(plan: Plan) -> str:
    """Return a calendar in one sentence.

    Example:
        >>> describe_plan(Plan(total_steps=3, batches_per_epoch=10, valid_frequency=1))
        'Plan: 3 epochs of 10 micro-batches, 10 updates each; validation every epoch'
    """
    unit = "epoch" if plan.unit is TrainingUnit.EPOCH else "update"
    total = "no end" if plan.total_steps is None else _count(plan.total_steps, unit)
    epoch = ""
    if plan.batches_per_epoch is not None:
        epoch = f" of {plan.batches_per_epoch} micro-batches"
        if plan.unit is TrainingUnit.EPOCH:
            updates = -(-plan.batches_per_epoch // plan.accumulation_steps)
            epoch += f", {_count(updates, 'update')} each"
        else:
            epoch = f", epochs{epoch}"
    parts = [f"Plan: {total}{epoch}"]
    if plan.accumulation_steps > 1:
        parts.append(f"{plan.accumulation_steps} micro-batches an update")
    for name, frequency in (
        ("validation", plan.valid_frequency),
        ("checkpoint", plan.chkpt_frequency),
    ):
        if frequency is not None:
            parts.append(f"{name} every {unit if frequency == 1 else _count(frequency, unit)}")
    return "; ".join(parts)


def _count(number: int, unit: str) -> str:
    return f"{number:,} {unit}" if number == 1 else f"{number:,} {unit}s"
