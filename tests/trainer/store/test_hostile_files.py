"""Every file of the corpus is refused: no code, no memory, no time."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.store.forge import entries, pack, program, tensor
from tests.trainer.store.hostile import FILES, PATHS
from tests.trainer.store.jail import jailed

ROOT = Path(__file__).parents[3]
NAMES = [entry.name for entry in FILES]
CONTROLS = {
    "os.system": "os.system('true')",
    "import colorsys": "__import__('colorsys')",
    "exec": "exec('1')",
    "compile": "compile('1', '', 'eval')",
    "subprocess.Popen": "subprocess.run(['true'])",
    "socket.": "socket.socket()",
    "open for writing": "open('/dev/null', 'w')",
    "MemoryError": "bytearray(2**31)",
    "ended with status": "[0 for _ in iter(int, 1)]",
}


def sound(folder, name="sound"):
    path = folder / f"{name}.pth"
    path.write_bytes(pack(entries(program(tensor()), bytes(16))))
    return path


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    files = [entry.make(folder) for entry in FILES]
    assert not (folder / "ran").exists()
    found = jailed([sound(folder, "warm"), sound(folder), *files])
    results = dict(zip(["warm", "sound", *NAMES], found, strict=True))
    results["ran"] = (folder / "ran").exists()
    return results


def test_a_sound_file_is_accepted_there(outcomes):
    assert outcomes["sound"] == {"accepted": True, "events": []}


@pytest.mark.parametrize("entry", FILES, ids=NAMES)
def test_a_hostile_file_is_refused_by_name(outcomes, entry):
    outcome = outcomes[entry.name]
    assert outcome.get("kind") == "CorruptCheckpointError", outcome
    assert re.search(entry.refusal, outcome["refused"]), outcome["refused"]


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_makes_nothing_happen(outcomes, name):
    assert outcomes[name]["events"] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_is_one_short_line_that_a_terminal_can_take(outcomes, name):
    reason = outcomes[name]["refused"]
    assert reason.isprintable()
    assert reason.isascii()
    assert len(reason) < 250


def test_no_code_of_a_hostile_file_ran(outcomes):
    assert outcomes["ran"] is False


def test_the_names_of_the_corpus_are_unique():
    names = [*NAMES, *(entry.name for entry in PATHS)]
    assert len(names) == len(set(names)) > 140


def test_the_paths_of_the_corpus_are_no_regular_files(tmp_path):
    for entry in PATHS:
        path = entry.make(tmp_path)
        assert not stat.S_ISREG(path.lstat().st_mode), entry.name


@pytest.fixture(scope="module")
def controls():
    acts = ", ".join(f"{does!r}: lambda _: ({code}, {{}})[1]" for does, code in CONTROLS.items())
    code = (
        "import json, os, socket, subprocess\n"
        "from tests.trainer.store import jail\n"
        "jail.SECONDS = 1\n"
        f"acts = {{{acts}}}\n"
        "print(json.dumps({does: jail.confined('', act) for does, act in acts.items()}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("does", CONTROLS)
def test_the_witness_sees_what_it_watches_for(controls, does):
    outcome = controls[does]
    assert any(text.find(does) >= 0 for text in [*outcome["events"], outcome.get("failed", "")])
