"""The hooks of plugins and model, looked up once; what nobody overrides is not called."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from helios.functional import rng
from helios.model.hooks import ModelHooks, overridden
from helios.model.imperative import ImperativeModel
from helios.model.model import Model
from helios.plugins import Plugin, PluginSet
from helios.trainer.lookahead import close

Hook = Callable[..., Any]


class Hooks:
    """Calls plugins first, in the order in which they were registered, then the model.

    Attributes:
        process_batch: the plugin that may replace a training batch, None if there is none.
        batch_start: ``on_training_batch_start`` of all that override it, None if nobody does. So
            are the next three.
        batch_end: ``on_training_batch_end``.
        fetched: ``on_training_batch_fetched``, which plugins alone have.
        reported: ``on_training_report``, which plugins alone have.
        overs: ``is_over`` of every plugin that overrides it.
    """

    def __init__(self, plugins: dict[str, Plugin], model: Model) -> None:
        self.plugins = PluginSet(plugins)
        self.model = model
        self.process_batch: Hook | None = self.plugins.process_training_batch
        self.batch_start = self._of_all("on_training_batch_start")
        self.batch_end = self._of_all("on_training_batch_end")
        self.fetched = in_turn(self.plugins.hooks("on_training_batch_fetched"))
        self.reported = in_turn(self.plugins.hooks("on_training_report"))
        self.overs = self.plugins.hooks("is_over")
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

    def is_over(self) -> bool:
        """Tell whether a plugin takes the run for over."""
        return any(over() for over in self.overs)

    def _of_all(self, name: str) -> Hook | None:
        # What an imperative model does by default its step does, if no hook has.
        base = ImperativeModel if isinstance(self.model, ImperativeModel) else ModelHooks
        own = overridden(self.model, name, base)
        return in_turn((*self.plugins.hooks(name), *(() if own is None else (own,))))


def in_turn(hooks: tuple[Hook, ...]) -> Hook | None:
    """Return what calls some hooks one after the other: None for none, the hook itself for one.

    Example:
        >>> in_turn(()) is None, in_turn((print,)) is print
        (True, True)
    """
    if len(hooks) < 2:
        return hooks[0] if hooks else None

    def call(*args: Any) -> None:
        for hook in hooks:
            hook(*args)

    return call


def watched(batches: Iterator[Any], tell: Callable[[Any, float], Any] | None) -> Iterator[Any]:
    """Return batches, of each of which it is told how many seconds it was waited for.

    Args:
        batches: the batches.
        tell: what is told; None for nothing: they are then returned as they are.

    Example:
        >>> list(watched(iter("ab"), lambda batch, seconds: print(batch, seconds >= 0)))
        a True
        b True
        ['a', 'b']
    """
    return batches if tell is None else _told(batches, tell)


def _told(batches: Iterator[Any], tell: Callable[[Any, float], Any]) -> Iterator[Any]:
    try:
        while True:
            before = time.perf_counter()
            batch = next(batches, _END)
            if batch is _END:
                return
            tell(batch, time.perf_counter() - before)
            yield batch
    finally:
        close(batches)


_END = object()
