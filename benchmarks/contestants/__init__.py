"""Who takes part: each contestant trains the same network on the same batches in its own way."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.turns import Turns

LOG_EVERY, SAVE_EVERY = 50, 500
"""Updates from one point in TensorBoard, and from one checkpoint, to the next."""

BASELINE = "handwritten"
"""The contestant that the others are compared with."""


@dataclass(frozen=True)
class Job:
    """One run of a contestant.

    Args:
        net: the network, with its first weights.
        turns: the batches; their length is the number of updates.
        full: whether a progress bar, TensorBoard and checkpoints are on.
        folder: an empty folder for what is written; each checkpoint is one file, or one folder, in
            ``checkpoints`` there.
        variant: which of a module's contestants runs.
    """

    net: nn.Module
    turns: Turns
    full: bool
    folder: Path
    variant: str

    def extras(self) -> dict[str, Any]:
        """Return what a trainer of helios, or of helios-ml, is told: with everything on or off."""
        if not self.full:
            return {}
        return {
            "enable_progress_bar": True,
            "enable_tensorboard": True,
            "run_path": self.folder / "runs",
            "print_frequency": LOG_EVERY,
            "chkpt_root": self.folder,
            "chkpt_frequency": SAVE_EVERY,
        }


@dataclass(frozen=True)
class Contestant:
    """A way to train.

    Args:
        name: for the command line.
        label: for tables.
        module: the module of this package whose ``train(job)`` runs it.
        variant: which of its ways, if it has several.
        package: the distribution that it needs, None for none.
        exact: whether its parameters must be those of the hand-written loop, bit for bit.
        ahead: how many batches its loop fetches before it uses them.
    """

    name: str
    label: str
    module: str
    variant: str = ""
    package: str | None = None
    exact: bool = True
    ahead: int = 0

    def version(self) -> str | None:
        """Return the version of its package."""
        if self.package == "helios-ml":
            found = public_library().glob("helios_ml-*.dist-info")
            return next((path.name.split("-")[1].removesuffix(".dist") for path in found), None)
        return None if self.package is None else metadata.version(self.package)

    def missing(self) -> str | None:
        """Say why it cannot take part here, None if it can."""
        if self.package == "helios-ml":
            folder = public_library()
            return None if (folder / "helios").is_dir() else f"there is no helios-ml in {folder}"
        if self.package is not None:
            try:
                metadata.version(self.package)
            except metadata.PackageNotFoundError:
                return f"{self.package} is not installed"
        return None

    def load(self) -> Callable[[Job], None]:
        """Return the function that runs it."""
        return importlib.import_module(f"benchmarks.contestants.{self.module}").train


CONTESTANTS: dict[str, Contestant] = {
    c.name: c
    for c in (
        Contestant(BASELINE, "hand-written loop", "handwritten"),
        Contestant("handwritten-compiled", "hand-written, torch.compile(net)", "handwritten",
                   "compiled", exact=False),
        Contestant("handwritten-fused", "hand-written, fused AdamW", "handwritten", "fused",
                   exact=False),
        Contestant("helios", "helios", "with_helios"),
        Contestant("helios-iterable", "helios, batches of a class of one's own", "with_helios",
                   "iterable"),
        Contestant("helios-fused", "helios, fused AdamW", "with_helios", "fused", exact=False),
        Contestant("helios-compiled", "helios, compile=True", "with_helios", "compiled",
                   exact=False),
        Contestant("helios-ml", "helios-ml", "with_helios_ml", package="helios-ml"),
        Contestant("ignite", "PyTorch-Ignite", "with_ignite", package="pytorch-ignite"),
        Contestant("skorch", "skorch", "with_skorch", package="skorch"),
        Contestant("accelerate", "Accelerate", "with_accelerate", package="accelerate"),
        Contestant("lightning", "Lightning", "with_lightning", package="lightning"),
    )
}  # fmt: skip
"""Every contestant by its name, the baseline first."""


def public_library() -> Path:
    """Return the folder of helios-ml, which is imported by the same name as this project."""
    return Path(sys.prefix) / "helios-ml"
