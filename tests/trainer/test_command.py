"""The command that runs a failed step again, for every way to start a program."""

from __future__ import annotations

import shlex
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from helios.trainer.command import how_to_run_again, invocation, redacted


def main_module(file=None, spec=None):
    module = ModuleType("__main__")
    if file is not None:
        module.__file__ = str(file)
    module.__spec__ = None if spec is None else ModuleSpec(spec, None)
    return module


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    return tmp_path / "train.py"


def test_a_script_is_named_as_it_was(script):
    words = invocation(main_module(script), ["train.py", "--lr", "0.1", "a b"])
    assert words == ["train.py", "--lr", "0.1", "a b"]


def test_a_module_is_named_with_its_switch(script):
    words = invocation(main_module(script, "package.train"), [str(script), "--lr", "0.1"])
    assert words == ["-m", "package.train", "--lr", "0.1"]


def test_a_package_is_named_without_its_main(script):
    words = invocation(main_module(script, "package.__main__"), [str(script)])
    assert words == ["-m", "package"]


def test_a_folder_is_named_as_a_script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "__main__.py").write_text("")
    main = main_module(tmp_path / "job" / "__main__.py", "__main__")
    assert invocation(main, ["job", "5"]) == ["job", "5"]


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (main_module(), ["-c"]),  # also in an interactive session, and in a notebook
        (main_module(), [""]),
        (main_module(), []),
        (main_module("/nowhere/train.py"), ["train.py"]),
        (main_module(__file__, "pytest.__main__"), [__file__]),
        (main_module(__file__, "ipykernel_launcher"), [__file__]),
        (main_module(__file__), ["/somewhere/bin/pytest", "tests"]),
        (main_module(__file__), ["/somewhere/bin/ipython"]),
    ],
)
def test_without_a_script_there_is_no_command(main, argv):
    assert invocation(main, argv) is None


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("--lr 0.1 --steps=3 file", "--lr 0.1 --steps=3 file"),
        ("--api-key x1 file", "--api-key *** ***"),
        ("--api_key=x1 file", "--api_key=*** file"),
        ("--TOKEN x1 --lr 0.1", "--TOKEN *** --lr 0.1"),
        ("--token -x1 --lr 0.1", "--token *** --lr 0.1"),
        ("--secret x1 x2 -v", "--secret *** *** -v"),
        ("--db.password x1", "--db.password ***"),
        ("logger.token=x1 lr=0.1", "logger.token=*** lr=0.1"),
        ("--use-key --lr 0.1", "--use-key --lr 0.1"),
        ("--url https://me:x1@host/a", "--url https://me:***@host/a"),
        ("--url=https://me:x1@host/a", "--url=https://me:***@host/a"),
    ],
)
def test_values_of_options_that_look_like_secrets_are_left_out(given, kept):
    assert redacted(shlex.split(given)) == shlex.split(kept)


def said(monkeypatch, main, argv, bundle):
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", argv)
    return how_to_run_again(bundle)


def test_the_sentence_ends_with_a_command_that_a_shell_takes_apart_again(script, monkeypatch):
    bundle = script.parent / "runs of today" / "micro_5.json"
    argv = ["train.py", "--name", "it's $HOME", "*"]
    sentence = said(monkeypatch, main_module(script), argv, bundle)
    opening = "To run this very step again in a debugger: "
    assert sentence.startswith(opening)
    words = shlex.split(sentence.removeprefix(opening))
    assert words == ["python", "-m", "helios.debug", "runs of today/micro_5.json", *argv]


def test_what_is_hidden_is_to_be_put_back(script, monkeypatch):
    sentence = said(
        monkeypatch, main_module(script), ["train.py", "--token", "x1"], script.parent / "b.json"
    )
    assert sentence == (
        "To run this very step again in a debugger (put back what *** hides): "
        "python -m helios.debug b.json train.py --token '***'"
    )


def test_after_a_change_of_folder_everything_is_named_in_full(script, monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    bundle = tmp_path / "elsewhere" / "b.json"
    sentence = said(monkeypatch, main_module(script), ["train.py"], bundle)
    assert sentence.endswith(shlex.join(["python", "-m", "helios.debug", str(bundle), str(script)]))


def test_without_a_script_it_is_a_call(tmp_path, monkeypatch):
    sentence = said(monkeypatch, main_module(), ["-c"], tmp_path / 'a"b.json')
    monkeypatch.chdir(tmp_path)
    assert sentence.startswith("To run this very step again: helios.reproduce(model, datamodule, ")
    assert sentence.endswith('/a\\"b.json")')


def test_half_characters_of_arguments_can_be_printed(script, monkeypatch):
    argv = ["train.py", "a\udcff"]
    sentence = said(monkeypatch, main_module(script), argv, script.parent / "b.json")
    assert sentence.encode().endswith(b"'a\\udcff'")
