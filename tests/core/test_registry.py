import importlib
import sys

import pytest

from helios.core.utils import Registry
from helios.errors import RegistryError


@pytest.fixture
def registry():
    return Registry("shape")


def _square():
    pass


def test_a_decorator_registers_and_returns_the_class(registry):
    @registry.register
    class Circle:
        pass

    assert registry.get("Circle") is Circle


def test_a_decorator_with_a_suffix_appends_it(registry):
    @registry.register(suffix="v2")
    class Circle:
        pass

    assert registry.get("Circle_v2") is Circle
    assert "Circle" not in registry


def test_a_plain_call_registers(registry):
    assert registry.register(_square) is _square
    assert registry.get("_square") is _square


def test_a_plain_call_takes_a_suffix_by_position(registry):
    registry.register(_square, "v2")
    assert list(registry.keys()) == ["_square_v2"]


def test_no_suffix_may_be_none(registry):
    registry.register(_square, None)
    assert list(registry.keys()) == ["_square"]


def test_get_falls_back_to_the_suffixed_name(registry):
    registry.register(_square, "v2")
    assert registry.get("_square", "v2") is _square


def test_get_prefers_the_plain_name(registry):
    registry.register(_square)
    registry.register(_square, "v2")
    assert registry.get("_square", suffix="v2") is _square


def test_get_says_nothing_on_the_terminal(registry, capsys):
    registry.register(_square, "v2")
    registry.get("_square", "v2")
    assert capsys.readouterr() == ("", "")


def test_the_same_object_again_is_harmless(registry):
    registry.register(_square)
    registry.register(_square)
    assert len(registry) == 1


def test_another_object_of_the_name_is_an_error_that_names_both(registry):
    registry.register(_square)
    other = type("_square", (), {})
    with pytest.raises(RegistryError, match=r"shape registry has '_square' already.*another one"):
        registry.register(other)


def test_two_definitions_in_one_module_are_an_error(registry):
    def make():
        class Twice:
            pass

        return Twice

    registry.register(make())
    with pytest.raises(RegistryError, match="already"):
        registry.register(make())


def test_a_reloaded_module_takes_the_place_of_its_old_self(registry, tmp_path, monkeypatch):
    (tmp_path / "reloaded_shapes.py").write_text("class Circle:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("reloaded_shapes")
    old = registry.register(module.Circle)
    importlib.reload(module)
    registry.register(module.Circle)
    del sys.modules["reloaded_shapes"]
    assert registry.get("Circle") is module.Circle
    assert module.Circle is not old


def test_a_missing_name_lists_those_there_are(registry):
    registry.register(_square)
    registry.register(int)
    with pytest.raises(RegistryError, match=r"no 'Triangle'; it has '_square', 'int'"):
        registry.get("Triangle")


def test_a_missing_name_hints_at_a_close_one(registry):
    registry.register(_square)
    with pytest.raises(RegistryError, match="Did you mean '_square'"):
        registry.get("_squre")


def test_a_missing_name_in_an_empty_registry_says_what_to_do(registry):
    with pytest.raises(RegistryError, match=r"it is empty.*update_all_registries"):
        registry.get("Circle")


def test_a_missing_name_with_a_suffix_says_both_names(registry):
    with pytest.raises(RegistryError, match="no 'Circle' or 'Circle_v2'"):
        registry.get("Circle", "v2")


def test_a_missing_name_is_a_key_error_too(registry):
    with pytest.raises(KeyError):
        registry.get("Circle")


def test_an_object_without_a_name_is_a_type_error(registry):
    with pytest.raises(TypeError, match="has no __name__"):
        registry.register(3)


def test_a_suffix_that_is_no_string_is_a_type_error(registry):
    with pytest.raises(TypeError, match="suffix: received a int"):
        registry.register(_square, 2)


def test_create_passes_arguments_on(registry):
    registry.register(dict)
    assert registry.create("dict", [("a", 1)], name=2) == {"a": 1, "name": 2}


def test_iteration_gives_names_and_objects_in_order(registry):
    registry.register(_square)
    registry.register(int)
    assert list(registry) == [("_square", _square), ("int", int)]


def test_registering_while_iterating_is_safe(registry):
    registry.register(_square)
    for _ in registry:
        registry.register(int)
    assert len(registry) == 2


def test_str_is_the_name_of_the_registry(registry):
    assert str(registry) == "shape"


def test_repr_shows_the_names(registry):
    registry.register(int)
    assert repr(registry) == "Registry('shape', ['int'])"
