"""Plugins: what extends a run without changing its model."""

from helios.plugins.early_stopping import EarlyStopping as EarlyStopping
from helios.plugins.monitors import MemoryMonitor as MemoryMonitor
from helios.plugins.monitors import ThroughputMonitor as ThroughputMonitor
from helios.plugins.plugin import RESERVED_IDS as RESERVED_IDS
from helios.plugins.plugin import Plugin as Plugin
from helios.plugins.plugin import UniquePluginOverrides as UniquePluginOverrides
from helios.plugins.plugin_set import PluginSet as PluginSet
from helios.plugins.registry import PLUGIN_REGISTRY as PLUGIN_REGISTRY
from helios.plugins.registry import create_plugin as create_plugin
from helios.plugins.time_limit import TimeLimit as TimeLimit
