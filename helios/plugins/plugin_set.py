"""The plugins of one run: checked against each other, their hooks looked up once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from helios.functional.state import TrainingState
from helios.plugins.plugin import Plugin, check_plugin_id

_METHODS = {
    "training_batch": "process_training_batch",
    "validation_batch": "process_validation_batch",
    "testing_batch": "process_testing_batch",
    "should_training_stop": "should_training_stop",
}
"""The method that each claim of `UniquePluginOverrides` is about."""

Hook = Callable[..., Any]


class PluginSet:
    """The plugins of one run. What no plugin overrides is None or empty, and never called.

    Attributes:
        process_training_batch: ``(batch, state) -> batch`` of the plugin that overrides it, None
            if none does. So are the next two.
        process_validation_batch: ``(batch, step) -> batch``.
        process_testing_batch: ``(batch, step) -> batch``.
        should_training_stop: ``() -> bool`` of every plugin that overrides it.

    Args:
        plugins: the plugins by id; their hooks run in this order.

    Raises:
        TypeError: if a value is not a plugin, or an id is not a string.
        ValueError: if a key is not the plugin's id, if an id is empty or reserved, if two plugins
            claim the same for themselves, or if what a plugin claims and what it overrides do not
            fit together.

    Example:
        >>> PluginSet({}).process_training_batch is None
        True
    """

    def __init__(self, plugins: Mapping[str, Plugin]) -> None:
        self._plugins = dict(plugins)
        for key, plugin in self._plugins.items():
            _check_id(key, plugin)
        _check_claims(self._plugins)
        self.process_training_batch: Callable[[Any, TrainingState], Any] | None
        self.process_validation_batch: Callable[[Any, int], Any] | None
        self.process_testing_batch: Callable[[Any, int], Any] | None
        self.process_training_batch = self._only("process_training_batch")
        self.process_validation_batch = self._only("process_validation_batch")
        self.process_testing_batch = self._only("process_testing_batch")
        self.should_training_stop: tuple[Callable[[], bool], ...]
        self.should_training_stop = self.hooks("should_training_stop")
        self._hooks = {name: self.hooks(name) for name in vars(Plugin) if name.startswith("on_")}

    def hooks(self, name: str) -> tuple[Hook, ...]:
        """Return the method ``name`` of every plugin that overrides it, in order.

        Args:
            name: the name; it need not be one of `Plugin`.
        """
        found = (overridden(plugin, name) for plugin in self._plugins.values())
        return tuple(hook for hook in found if hook is not None)

    def call(self, name: str, *args: Any) -> None:
        """Call a hook of every plugin that has it, in order.

        Args:
            name: the name, such as ``"on_training_start"``. A plugin may have hooks that `Plugin`
                does not name, such as the model's ``on_training_epoch_end``.
            args: what the hook is given.
        """
        hooks = self._hooks.get(name)
        if hooks is None:
            hooks = self._hooks[name] = self.hooks(name)
        for hook in hooks:
            hook(*args)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the states of the plugins, by id."""
        return {name: plugin.state_dict() for name, plugin in self._plugins.items()}

    def load_state_dict(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Give every plugin its state; one that had none keeps the one it has.

        Args:
            states: what `state_dict` returned, of the same plugins or of others.
        """
        for name, plugin in self._plugins.items():
            if name in states:
                plugin.load_state_dict(states[name])

    def __len__(self) -> int:
        return len(self._plugins)

    def _only(self, name: str) -> Hook | None:
        hooks = self.hooks(name)
        return hooks[0] if hooks else None


def overridden(plugin: Plugin, name: str) -> Hook | None:
    """Return the bound method ``name`` of a plugin, None if it is that of `Plugin` or missing."""
    method: Hook | None = getattr(plugin, name, None)
    base = getattr(Plugin, name, None)
    return None if getattr(method, "__func__", method) is base else method


def _check_id(key: Any, plugin: Any) -> None:
    if not isinstance(plugin, Plugin):
        raise TypeError(
            f"plugins[{key!r}]: received a {type(plugin).__name__}; expected a helios.Plugin"
        )
    plug_id = check_plugin_id(plugin.plug_id)
    if key != plug_id:
        raise ValueError(
            f"plugins[{key!r}]: received a plugin whose id is {plug_id!r}; expected the id as the "
            "key: checkpoints keep its state under it"
        )


def _check_claims(plugins: Mapping[str, Plugin]) -> None:
    owners: dict[str, str] = {}
    for plug_id, plugin in plugins.items():
        for claim in _METHODS:
            if not getattr(plugin.unique_overrides, claim):
                continue
            if claim in owners:
                raise ValueError(
                    f"plugins {owners[claim]!r} and {plug_id!r} both claim {claim!r} for "
                    "themselves; expected one of them at most. Remove one, or let one plugin do "
                    "the work of both."
                )
            owners[claim] = plug_id
    for plug_id, plugin in plugins.items():
        for claim, method in _METHODS.items():
            claims = getattr(plugin.unique_overrides, claim)
            overrides = overridden(plugin, method) is not None
            kind = type(plugin).__name__
            if overrides and not claims and claim != "should_training_stop":
                raise ValueError(
                    f"plugin {plug_id!r} ({kind}) overrides {method}() without claiming "
                    f"{claim!r}, which only one plugin may. Pass "
                    f"UniquePluginOverrides({claim}=True) to Plugin.__init__()."
                )
            if claims and not overrides:
                raise ValueError(
                    f"plugin {plug_id!r} ({kind}) claims {claim!r} but does not override "
                    f"{method}(). Look for a misspelt name, or drop the claim."
                )
