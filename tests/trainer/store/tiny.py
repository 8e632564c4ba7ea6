"""Checkpoints of a few hundred bytes, whose content is known by their step."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import msgspec
import torch

from helios.functional.plan import Plan
from helios.functional.state import COUNTERS, TrainingUnit
from helios.trainer.store import Store
from helios.trainer.store.fs import OsFs
from helios.trainer.store.manifest import SCHEMA, Manifest

NAME = "m"
PLAN = Plan(unit=TrainingUnit.ITERATION)
CHUNKS = 3
"""Writes to a checkpoint's file."""


class UnsyncedFs(OsFs):
    """The operating system's files, without waiting for the disk: for tests whose disk is fine."""

    def fsync(self, descriptor: int) -> None:
        pass

    def fsync_dir(self, folder: Path) -> None:
        pass


def stem(step: int) -> str:
    return f"{NAME}_epoch_0_iter_{step}"


def counters(step: int) -> dict[str, int | float]:
    values: dict[str, int | float] = dict.fromkeys(COUNTERS, 0)
    return {**values, "current_iteration": step, "global_iteration": step}


@functools.cache
def payload(step: int) -> bytes:
    """Return the bytes of the checkpoint of a step."""
    content: dict[str, Any] = {
        part: {} for part in ("carry", "model", "plan", "rng", "log", "plugins", "fingerprint")
    }
    content["data"] = None
    content["plan"] = msgspec.to_builtins(PLAN)
    content["model"] = {"weight": torch.arange(64) * 1000 + step}
    content["training_state"] = {**counters(step), "seed": 0, "window_iter": 0}
    file = io.BytesIO()
    torch.save({"schema": SCHEMA, "version": "1", **content}, file)
    return file.getvalue()


def manifest(file: str, size: int, sha256: str, sequence: int, **fields: Any) -> Manifest:
    """Return the manifest of a step's checkpoint; the step is in ``fields`` or in the name."""
    step = fields.pop("step", None)
    if step is None:
        step = int(file.removesuffix(".pth").split("_")[4])
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "version": "1",
        "file": file,
        "size": size,
        "sha256": sha256,
        "sequence": sequence,
        "counters": counters(step),
        "window_iter": 0,
        "seed": 0,
        "plan": PLAN,
        "fingerprint": {},
    }
    return Manifest(**{**values, **fields})


def save(store: Store, step: int, **fields: Any) -> Manifest:
    """Save the checkpoint of a step, in a few writes."""
    data = payload(step)
    size = -(-len(data) // CHUNKS)

    def write(file: Any) -> None:
        for start in range(0, len(data), size):
            file.write(data[start : start + size])

    return store.save(
        f"{stem(step)}.pth", write, lambda *known: manifest(*known, step=step, **fields)
    )


def step_of(content: dict[str, Any]) -> int:
    """Return the step of what was loaded, and check every number of it."""
    step = int(content["training_state"]["current_iteration"])
    assert torch.equal(content["model"]["weight"], torch.arange(64) * 1000 + step)
    return step
