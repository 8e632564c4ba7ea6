import pytest

from helios.functional.state import TrainingState
from helios.plugins import Plugin, PluginSet, UniquePluginOverrides

_BATCHES = {
    "training_batch": "process_training_batch",
    "validation_batch": "process_validation_batch",
    "testing_batch": "process_testing_batch",
}


def _make(plug_id, methods=(), **claims):
    """A plugin that overrides ``methods`` with what records calls in ``log``."""
    log = []

    def recorder(name):
        def method(self, *args):
            log.append((plug_id, name, *args))
            return name

        return method

    kind = type(f"Kind_{plug_id}", (Plugin,), {name: recorder(name) for name in methods})
    plugin = kind(plug_id, UniquePluginOverrides(**claims))
    plugin.log = log
    return plugin


def _set(*plugins):
    return PluginSet({plugin.plug_id: plugin for plugin in plugins})


@pytest.mark.parametrize("method", _BATCHES.values())
def test_without_plugins_nothing_processes_batches(method):
    assert getattr(PluginSet({}), method) is None


@pytest.mark.parametrize("method", _BATCHES.values())
def test_a_plugin_that_overrides_nothing_is_not_asked(method):
    assert getattr(_set(Plugin("a")), method) is None


@pytest.mark.parametrize(("claim", "method"), _BATCHES.items())
def test_the_plugin_that_overrides_is_asked(claim, method):
    plugin = _make("b", [method], **{claim: True})
    assert getattr(_set(Plugin("a"), plugin), method)("batch", 3) == method
    assert plugin.log == [("b", method, "batch", 3)]


@pytest.mark.parametrize("claim", [*_BATCHES, "should_training_stop"])
def test_two_plugins_with_one_claim_are_an_error_that_names_both(claim):
    method = _BATCHES.get(claim, claim)
    with pytest.raises(ValueError, match=f"plugins 'a' and 'b' both claim '{claim}'"):
        _set(_make("a", [method], **{claim: True}), _make("b", [method], **{claim: True}))


@pytest.mark.parametrize(("claim", "method"), _BATCHES.items())
def test_an_override_without_its_claim_is_an_error_that_says_what_to_do(claim, method):
    pattern = rf"'a' \(Kind_a\) overrides {method}\(\).*UniquePluginOverrides\({claim}=True\)"
    with pytest.raises(ValueError, match=pattern):
        _set(_make("a", [method]))


@pytest.mark.parametrize("claim", [*_BATCHES, "should_training_stop"])
def test_a_claim_without_its_override_is_an_error(claim):
    with pytest.raises(ValueError, match=f"'a' .*claims '{claim}' but does not override"):
        _set(_make("a", **{claim: True}))


def test_different_claims_of_different_plugins_fit_together():
    plugins = _set(
        _make("a", ["process_training_batch"], training_batch=True),
        _make("b", ["process_testing_batch"], testing_batch=True),
    )
    assert plugins.process_training_batch is not None
    assert plugins.process_testing_batch is not None


def test_claims_may_come_from_an_overridden_property():
    class Claims(Plugin):
        @property
        def unique_overrides(self):
            return UniquePluginOverrides(training_batch=True)

        def process_training_batch(self, batch, state):
            return batch + 1

    assert _set(Claims("a")).process_training_batch(1, TrainingState()) == 2


def test_an_override_of_the_instance_counts():
    plugin = Plugin("a", UniquePluginOverrides(training_batch=True))
    plugin.process_training_batch = lambda batch, state: batch * 2
    assert _set(plugin).process_training_batch(3, TrainingState()) == 6


def test_an_inherited_override_counts():
    class Child(type(_make("a", ["process_training_batch"]))):
        pass

    plugin = Child("a", UniquePluginOverrides(training_batch=True))
    assert _set(plugin).process_training_batch is not None


def test_only_plugins_that_override_are_asked_whether_to_stop():
    plugins = _set(_make("a", ["should_training_stop"]), Plugin("b"))
    assert len(plugins.should_training_stop) == 1


def test_several_plugins_may_stop_training_without_a_claim():
    plugins = _set(_make("a", ["should_training_stop"]), _make("b", ["should_training_stop"]))
    assert len(plugins.should_training_stop) == 2


def test_a_hook_is_called_in_the_order_of_registration():
    order = []
    plugins = [_make(name, ["on_validation_start"]) for name in ("b", "a", "c")]
    for plugin in plugins:
        plugin.on_validation_start = lambda cycle, plug_id=plugin.plug_id: order.append(
            (plug_id, cycle)
        )
    _set(*plugins).call("on_validation_start", 4)
    assert order == [("b", 4), ("a", 4), ("c", 4)]


def test_hooks_that_are_not_overridden_are_left_out():
    assert _set(Plugin("a"), _make("b", ["on_training_end"])).hooks("on_training_start") == ()


def test_hooks_are_looked_up_once():
    plugin = Plugin("a")
    plugins = _set(plugin)
    plugin.on_training_start = pytest.fail
    plugins.call("on_training_start")


def test_a_hook_that_plugins_do_not_name_is_called_where_it_is():
    plugin = _make("a", ["on_training_epoch_end"])
    plugins = _set(plugin, Plugin("b"))
    plugins.call("on_training_epoch_end", 2)
    plugins.call("on_training_epoch_end", 3)
    assert plugin.log == [("a", "on_training_epoch_end", 2), ("a", "on_training_epoch_end", 3)]


def test_a_hook_that_nobody_has_is_passed_over():
    _set(Plugin("a")).call("on_training_epoch_end", 2)


def test_a_key_that_is_not_the_id_is_an_error():
    with pytest.raises(ValueError, match=r"plugins\['b'\]: received a plugin whose id is 'a'"):
        PluginSet({"b": Plugin("a")})


def test_a_value_that_is_no_plugin_is_a_type_error():
    with pytest.raises(TypeError, match=r"plugins\['a'\]: received a int"):
        PluginSet({"a": 3})


def test_a_reserved_id_is_an_error_here_too():
    class Sly(Plugin):
        plug_id = "model"

    with pytest.raises(ValueError, match="received 'model', which checkpoints use"):
        PluginSet({"model": Sly("a")})


def test_states_are_kept_by_id():
    class Counter(Plugin):
        count = 0

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state_dict):
            self.count = state_dict["count"]

    first, second = Counter("a"), Counter("b")
    first.count = 3
    states = _set(first, second).state_dict()
    assert states == {"a": {"count": 3}, "b": {"count": 0}}
    _set(first, second).load_state_dict({"b": {"count": 7}, "gone": {}})
    assert (first.count, second.count) == (3, 7)


def test_later_changes_of_the_mapping_do_not_matter():
    given = {}
    plugins = PluginSet(given)
    given["a"] = Plugin("a")
    assert len(plugins) == 0
