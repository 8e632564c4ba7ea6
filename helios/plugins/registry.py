"""Plugins by name."""

from __future__ import annotations

from typing import Any

from helios.core.utils import Registry
from helios.plugins.plugin import Plugin

PLUGIN_REGISTRY = Registry("plugin")
"""The registered plugins."""


def create_plugin(type_name: str, *args: Any, **kwargs: Any) -> Plugin:
    """Make the plugin that is registered under a name.

    Args:
        type_name: the name.
        args: positional arguments of the plugin.
        kwargs: keyword arguments of the plugin.

    Raises:
        RegistryError: if there is no such plugin; the message lists those there are.
    """
    plugin: Plugin = PLUGIN_REGISTRY.create(type_name, *args, **kwargs)
    return plugin
