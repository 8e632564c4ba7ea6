"""The hooks of plugins and model, looked up once; what nobody overrides is not called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helios.functional import rng
from helios.model.hooks import ModelHooks, overridden
from helios.model.imperative import ImperativeModel
from helios.model.model import Model
from helios.plugins import Plugin, PluginSet

Hook = Callable[..., Any]


class Hooks:
    """Calls plugins first, in the order in which they were registered, then the model.

    Attributes:
        process_batch: the plugin that may replace a training batch, None if there is none.
        batch_start: the model's ``on_training_batch_start``, None if it is not overridden.
        batch_end: the model's ``on_training_batch_end``, None if it is not overridden.
    """

    def __init__(self, plugins: dict[str, Plugin], model: Model) -> None:
        self.plugins = PluginSet(plugins)
        self.model = model
        self.process_batch: Hook | None = self.plugins.process_training_batch
        base = ImperativeModel if isinstance(model, ImperativeModel) else ModelHooks
        self.batch_start: Hook | None = overridden(model, "on_training_batch_start", base)
        self.batch_end: Hook | None = overridden(model, "on_training_batch_end", ModelHooks)
        self.draws_before_loss = self.process_batch is not None or self.batch_start is not None
        stops: list[Hook | None] = [
            *self.plugins.should_training_stop,
            overridden(model, "should_training_stop", ModelHooks),
        ]
        self._stops = [stop for stop in stops if stop is not None]

    def call(self, name: str, key: int, *args: Any) -> None:
        """Run a hook of every plugin, then of the model, with random numbers of its own.

        Args:
            name: the name of the hook; plugins that do not have it are passed over.
            key: the key under which the hooks draw.
            args: what the hook is given.
        """
        rng.seed_generators(key)
        self.plugins.call(name, *args)
        getattr(self.model, name)(*args)

    def stop_asked(self) -> bool:
        """Tell whether a plugin or the model asks to stop."""
        return bool(self._stops) and any(stop() for stop in self._stops)
