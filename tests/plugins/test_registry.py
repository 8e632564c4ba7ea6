import pytest

from helios.core.utils import Registry
from helios.errors import RegistryError
from helios.plugins import PLUGIN_REGISTRY, Plugin, create_plugin, registry


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch):
    own = Registry("plugin")
    own.register(Plugin)
    monkeypatch.setattr(registry, "PLUGIN_REGISTRY", own)


def test_a_plugin_is_made_by_its_name():
    assert create_plugin("Plugin", "mine").plug_id == "mine"


def test_keyword_arguments_are_passed_on():
    assert create_plugin("Plugin", plug_id="mine").plug_id == "mine"


def test_an_unknown_plugin_lists_those_there_are():
    with pytest.raises(RegistryError, match="plugin registry has no 'Other'; it has 'Plugin'"):
        create_plugin("Other")


def test_the_plugins_of_helios_are_registered():
    assert {"EarlyStopping", "TimeLimit", "ThroughputMonitor", "MemoryMonitor"} <= set(
        PLUGIN_REGISTRY.keys()
    )
