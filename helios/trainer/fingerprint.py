"""What the bits of a run depend on beside the state: the environment, as comparable values."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from helios.data import DataModule
from helios.functional.compiler import backend_of
from helios.functional.trainable import custom_step
from helios.model.model import Model


def fingerprint(
    model: Model,
    datamodule: DataModule,
    non_finite: str,
    compile: bool | str = False,
    overfit_batches: int | None = None,
) -> dict[str, str | int | bool]:
    """Return what must be equal for a resume of this training to be bit-exact.

    Args:
        model: the model, set up.
        non_finite: the policy for updates that are not finite.
        datamodule: its data; the micro-batch is left out where a loader of the user's makes it.
        compile: whether the step is compiled, and by which backend.
        overfit_batches: how many batches there are in every epoch again; None for all.
    """
    values = environment(model.device)
    values["non_finite"] = non_finite
    values["compiled"] = backend_of(compile) or "no"
    values["overfit_batches"] = overfit_batches or 0
    values["precision"] = model.precision.compute
    if custom_step(model) is None:
        values["optimizer"] = ", ".join(
            getattr(o.optimizer, "implementation", type(o.optimizer).__name__)
            for o in model.objectives()
        )
    loading: Any = datamodule._train_dataset
    if loading is not None:
        values["micro_batch"] = loading.params.batch_size
    return values


def environment(device: torch.device) -> dict[str, str | int | bool]:
    """Return what the bits of any computation depend on here.

    Args:
        device: the device that computes.

    Example:
        >>> environment(torch.device("cpu"))["device"]
        'cpu'
    """
    values: dict[str, str | int | bool] = {
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "default_dtype": str(torch.get_default_dtype()),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "device": device.type,
    }
    if device.type == "cuda":
        values["gpu"] = torch.cuda.get_device_name(device)
        values["cuda"] = str(torch.version.cuda)
    return values


def lost_promises(saved: Mapping[str, object], now: Mapping[str, object]) -> str | None:
    """Return what changed since a checkpoint, as a sentence, None if nothing did.

    Example:
        >>> lost_promises({"threads": 1}, {"threads": 2})
        'threads was 1 and is 2'
    """
    changed = [
        f"{name} was {saved[name]} and is {now[name]}"
        for name in now
        if name in saved and saved[name] != now[name]
    ]
    return "; ".join(changed) or None
