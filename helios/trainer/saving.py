"""Saving a run: what a checkpoint holds beside the state, and taking it up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from helios.core.rng import python_rng_state, restore_python_rng
from helios.functional.schedule import Plan
from helios.functional.state import TrainingState
from helios.model.model import Model
from helios.plugins import Plugin
from helios.trainer.store import checkpoint_name, state_content, write_atomically
from helios.version import __version__

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.Tensor, torch.nn.Parameter)


class Saver:
    """Writes checkpoints of one fit.

    Args:
        folder: where they go.
        model: whose they are.
        plan: the calendar of the fit.
        plugins: their states are saved too.
        log_names: the names of the log file and of the TensorBoard folder, to go on with.
        data_state: returns what an iterable dataset needs to be resumed, None if nothing.
        say: is told about every checkpoint.
        fingerprint: the environment; see `helios.trainer.fingerprint`.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        plan: Plan,
        plugins: Mapping[str, Plugin],
        log_names: Mapping[str, str | None],
        data_state: Callable[[TrainingState], Any],
        say: Callable[[str], None],
        fingerprint: Mapping[str, Any],
    ) -> None:
        self._folder = folder
        self._model = model
        self._plan = plan
        self._plugins = plugins
        self._log_names = dict(log_names)
        self._data_state = data_state
        self._say = say
        self._fingerprint = dict(fingerprint)

    def __call__(self, state: TrainingState) -> None:
        """Write a checkpoint of ``state``.

        Raises:
            CheckpointError: if it cannot be written.
        """
        model = self._model
        place = (state.global_epoch, state.current_iteration)
        inside = state.global_iteration if state.window_iter else None
        stem = checkpoint_name(model.save_name, *place, micro_batch=inside).removesuffix(".pth")
        metadata = model.append_metadata_to_chkpt_name(stem)
        name = checkpoint_name(model.save_name, *place, metadata, inside)
        content = {
            "version": __version__,
            **state_content(state),
            "model": dict(model.state_dict()),
            "plan": msgspec.to_builtins(self._plan),
            "rng": python_rng_state(),
            "log": self._log_names,
            "plugins": {name: plugin.state_dict() for name, plugin in self._plugins.items()},
            "data": self._data_state(state),
            "fingerprint": self._fingerprint,
        }
        check_plain(content)
        write_atomically(self._folder / name, lambda file: torch.save(content, file))
        self._say(f"saved {name}")


def check_plain(value: Any, path: str = "checkpoint") -> None:
    """Raise if a value could be saved but not be loaded again.

    Raises:
        TypeError: naming the place; numpy scalars and objects of other classes are such values.
    """
    kind = type(value)
    if kind is dict:
        for key, part in value.items():
            check_plain(part, f"{path}[{key!r}]")
    elif kind in (list, tuple):
        for index, part in enumerate(value):
            check_plain(part, f"{path}[{index}]")
    elif kind not in _PLAIN:
        raise TypeError(
            f"{path}: received a {kind.__name__}, which could be saved but not be loaded "
            "again; expected tensors, numbers, strings, bytes, None, and dicts, lists or tuples of "
            "them. Convert it, for numpy with .item() or torch.from_numpy()."
        )


def rng_restorer(content: Mapping[str, Any]) -> Callable[[], None]:
    """Return what puts Python's and numpy's generators back as they were at a checkpoint."""
    return lambda: restore_python_rng(content["rng"])
