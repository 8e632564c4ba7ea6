import re

import pytest

from helios.core import log_names


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../x",
        "a/b",
        "a\\b",
        "/etc",
        "a\0b",
        "a\nb",
        "a\tb",
        "\x7f",
        "x" * 201,
        "é" * 101,
    ],
)
def test_a_run_name_that_leads_elsewhere_is_an_error(name):
    with pytest.raises(ValueError, match="run_name: received"):
        log_names.check_run_name(name)


@pytest.mark.parametrize("name", ["digits", "", "a b", "v1.2", "a..b", "größe", "x" * 200])
def test_any_other_run_name_is_taken(name):
    assert log_names.check_run_name(name) == name


def test_a_run_name_that_is_no_string_is_a_type_error():
    with pytest.raises(TypeError, match="run_name: received a int"):
        log_names.check_run_name(3)


def test_the_default_name_has_the_run_and_the_time():
    name = log_names.get_default_log_name("digits")
    assert re.fullmatch(r"digits_[^\W\d]+\d\d_\d\d-\d\d-\d\d", name)


def test_the_default_name_of_no_run_is_the_time():
    assert re.fullmatch(r"[^\W\d]+\d\d_\d\d-\d\d-\d\d", log_names.get_default_log_name(""))


def test_runs_of_one_second_get_names_of_their_own(tmp_path):
    names = {log_names.claim("a", tmp_path / "logs", tmp_path / "runs") for _ in range(5)}
    assert len(names) == 5
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {f"{n}.log" for n in names}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == names


def test_a_name_is_free_in_both_folders_or_in_neither(tmp_path, monkeypatch):
    monkeypatch.setattr(log_names, "get_default_log_name", lambda run_name: run_name)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert log_names.claim("a", tmp_path / "logs", tmp_path / "runs") == "a_2"
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["a_2.log"]


def test_names_of_a_checkpoint_are_read():
    names = {"log_file": "a.log", "run_dir": None}
    assert log_names.read_log_names(names) == names


def test_no_names_are_names_of_nothing():
    assert log_names.read_log_names(None) == {"log_file": None, "run_dir": None}


@pytest.mark.parametrize("name", ["../a.log", "/etc/passwd", "..", "", 3])
def test_names_of_a_checkpoint_that_lead_elsewhere_are_an_error(name):
    with pytest.raises(ValueError, match="log names: received"):
        log_names.read_log_names({"log_file": name})


def test_unknown_names_of_a_checkpoint_are_an_error():
    with pytest.raises(ValueError, match="received 'other'; expected log_file and run_dir"):
        log_names.read_log_names({"other": "a"})
