"""The command line as a process: how it is started, its exit statuses, and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import helios
from helios.cli.main import main

ROOT = Path(helios.__file__).parents[1]


def process(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["plan", "--total-steps", "2"], 0),
        (["plan", "--total-steps", "2", "--valid-frequency", "3"], 1),
        (["plan", "--total-steps", "two"], 2),
    ],
)
def test_python_m_helios_ends_with_the_status(arguments, status):
    done = process("-m", "helios", *arguments)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) is (status < 2)


def test_the_console_script_leads_to_the_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, name = scripts["helios"].split(":")
    assert getattr(import_module(module), name) is main


def test_importing_helios_does_not_import_the_command_line():
    code = "import sys, helios; print([n for n in sys.modules if n.startswith('helios.cli')])"
    assert process("-c", code).stdout.strip() == "[]"


def test_the_command_line_imports_little_beyond_helios():
    code = (
        "import sys, helios; known = set(sys.modules); import helios.cli.main; "
        "print(sorted({n.split('.')[0] for n in set(sys.modules) - known} "
        "- set(sys.stdlib_module_names)))"
    )
    assert process("-c", code).stdout.strip() == "['helios']"


def test_a_reader_that_has_had_enough_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "helios", "plan", "--total-steps", "2"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 0
    assert done.stderr == ""


def test_without_a_command_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["inspect"], ["plan"], ["verify"]])
def test_help_has_the_exit_statuses(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    assert "exit status:" in capsys.readouterr().out
