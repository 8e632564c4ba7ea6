"""docs/cli.md shows what its commands print; ``...`` stands for what depends on the machine."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

import helios
from helios.cli.main import main, parser

PAGE = Path(helios.__file__).parents[1] / "docs" / "cli.md"
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STATUSES = {
    "plan": [0, 1],
    "inspect": [0],
    "verify": [1, 0],
    "diff": [1],
    "replay": [0, 1],
    "export": [0],
}
"""The exit statuses of the commands of the page, in its order."""


def test_the_commands_of_the_page_print_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matches, names = doctest.OutputChecker().check_output, {"__name__": "page"}
    statuses = {}
    for kind, block in BLOCK.findall(PAGE.read_text()):
        if kind == "python":
            exec(block, names)
            capsys.readouterr()
            continue
        for session in re.findall(r"^\$ .*?(?=^\$ |\Z)", block, re.MULTILINE | re.DOTALL):
            command, expected = session.split("\n", 1)
            prompt, program, *arguments = shlex.split(command)
            assert (prompt, program) == ("$", "helios")
            statuses.setdefault(arguments[0], []).append(main(arguments))
            out, err = capsys.readouterr()
            assert not err
            assert matches(expected, out, doctest.ELLIPSIS), out
    assert statuses == STATUSES


@pytest.mark.parametrize("command", STATUSES)
def test_the_examples_of_the_help_are_parsed(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    examples = re.findall(r"^  helios (.*?)(?:   .*)?$", capsys.readouterr().out, re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        parser().parse_args(shlex.split(example))
