"""A log at Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from helios.loggers.run_log import Run, RunLog


class WandbLog(RunLog):
    """Writes the numbers of a run to Weights & Biases.

    A resumed run goes on in the same run there: its checkpoint holds the id. The step of every
    number is its update. What Weights & Biases has of a step is not taken back: of updates that
    are computed again, which have the same numbers, it keeps the first.

    Args:
        project: (optional) the project.
        options: what else ``wandb.init`` takes, such as ``entity``, ``group``, ``tags``, ``mode``
            or ``dir``; not ``id`` and ``resume``, which are given by the run.

    Raises:
        ImportError: if the package is not installed.
        TypeError: if ``id`` or ``resume`` is among the options.
    """

    def __init__(self, project: str | None = None, **options: Any) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise ImportError("WandbLog needs the package wandb: pip install 'helios[wandb]'")
        given = sorted({"id", "resume"} & options.keys())
        if given:
            raise TypeError(
                f"WandbLog: received {', '.join(given)}; expected neither id nor resume: the "
                "checkpoint of a run tells them"
            )
        self._options = {"project": project, **options}
        self._identity: str | None = None
        self._run: Any = None

    @property
    def identity(self) -> str | None:
        """The id of the run."""
        return self._identity

    def open(self, run: Run) -> None:
        """Begin a run, or go on with it; see `RunLog.open`."""
        import wandb

        # A test goes to the run of the fit before it.
        known = run.identity or (self._identity if run.is_test else None)
        options = {"name": run.name, **self._options}
        again: dict[str, Any] = {} if known is None else {"id": known, "resume": "allow"}
        self._run = wandb.init(**options, **again)
        self._identity = self._run.id

    def scalars(self, update: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write numbers; see `RunLog.scalars`."""
        self._run.log({**values, "epoch": epoch}, step=update)

    def images(self, update: int, tag: str, images: Any) -> None:
        """Write images."""
        import wandb

        self._run.log({tag: [wandb.Image(_gray(image)) for image in images]}, step=update)

    def histogram(self, update: int, tag: str, values: Any) -> None:
        """Write the distribution of the values that are finite."""
        import numpy as np
        import wandb

        finite = values[np.isfinite(values)]
        if len(finite):
            self._run.log({tag: wandb.Histogram(finite)}, step=update)

    def text(self, update: int, tag: str, text: str) -> None:
        """Write a text."""
        import html

        import wandb

        page = wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
        self._run.log({tag: page}, step=update)

    def hyperparameters(self, values: Mapping[str, bool | int | float | str]) -> None:
        """Write what the run was started with to its config."""
        self._run.config.update(dict(values), allow_val_change=True)

    def close(self) -> None:
        """End this process's part of the run."""
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}


def _gray(image: Any) -> Any:
    """Return an image as Weights & Biases takes it: one of a single channel has no such axis."""
    return image[:, :, 0] if image.shape[-1] == 1 else image
