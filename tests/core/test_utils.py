from pathlib import Path

import pytest

from helios.core.utils import ChdirContext, convert_to_list, get_from_optional


def test_chdir_changes_the_folder_and_puts_it_back(tmp_path):
    before = Path.cwd()
    with ChdirContext(tmp_path):
        assert Path.cwd() == tmp_path
    assert Path.cwd() == before


def test_chdir_gives_the_previous_folder(tmp_path):
    before = Path.cwd()
    with ChdirContext(tmp_path) as previous:
        assert previous == before


def test_chdir_puts_the_folder_back_after_an_exception(tmp_path):
    before = Path.cwd()
    with pytest.raises(RuntimeError), ChdirContext(tmp_path):
        raise RuntimeError
    assert Path.cwd() == before


def test_chdir_goes_back_to_where_it_was_entered(tmp_path, monkeypatch):
    context = ChdirContext(tmp_path / "a")
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with context:
        pass
    assert Path.cwd() == tmp_path


def test_chdir_can_be_entered_inside_of_itself(tmp_path):
    before, context = Path.cwd(), ChdirContext(tmp_path)
    with context:
        with context:
            pass
        assert Path.cwd() == tmp_path
    assert Path.cwd() == before


def test_a_list_stays_the_same_list():
    value = [1, 2]
    assert convert_to_list(value) is value


def test_a_tuple_becomes_a_list():
    assert convert_to_list((1, 2)) == [1, 2]


@pytest.mark.parametrize("value", ["abc", None, {1: 2}])
def test_anything_else_becomes_a_list_of_one(value):
    assert convert_to_list(value) == [value]


@pytest.mark.parametrize("value", [1, 0, "", False])
def test_an_optional_with_a_value_is_the_value(value):
    assert get_from_optional(value) is value


def test_an_optional_with_a_value_and_a_message_is_the_value():
    assert get_from_optional(1, "the one is missing") == 1


def test_an_empty_optional_is_an_error():
    with pytest.raises(ValueError, match="received None"):
        get_from_optional(None)


def test_the_error_of_an_empty_optional_has_the_message():
    with pytest.raises(ValueError, match="the model is missing"):
        get_from_optional(None, "the model is missing")
