"""Plugins: what extends a run without changing its model."""

from helios.plugins.plugin import RESERVED_IDS as RESERVED_IDS
from helios.plugins.plugin import Plugin as Plugin
from helios.plugins.plugin import UniquePluginOverrides as UniquePluginOverrides
from helios.plugins.plugin_set import PluginSet as PluginSet
from helios.plugins.registry import PLUGIN_REGISTRY as PLUGIN_REGISTRY
from helios.plugins.registry import create_plugin as create_plugin
