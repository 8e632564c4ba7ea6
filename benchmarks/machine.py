"""On what it was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch

import helios
from benchmarks.contestants import Contestant


def describe() -> dict[str, str]:
    """Return what the machine is, by name."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
    }


def versions(contestants: Iterable[Contestant]) -> dict[str, str]:
    """Return the versions of all that takes part."""
    found = {"torch": torch.__version__, "helios": helios.__version__}
    found |= {name: metadata.version(name) for name in ("numpy", "tensorboard", "tqdm")}
    for contestant in contestants:
        if contestant.package is not None and contestant.missing() is None:
            found[contestant.package] = contestant.version() or "unknown"
    return found


def sentence(machine: dict[str, str], found: dict[str, str]) -> str:
    """Say both in a sentence."""
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    return (
        f"{machine['processor']}, {machine['cores']} cores ({machine['capability']}), "
        f"{machine['system']}, Python {machine['python']}; {listed}."
    )


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
