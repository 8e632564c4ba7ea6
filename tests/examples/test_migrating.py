"""The page on migrating: its diffs are those of the files, and the files run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "migrating"
PAGE = ROOT / "docs" / "migrating.md"
FILES = sorted(path.name for path in FOLDER.glob("from_*.py"))
NEEDS = {"from_lightning_before.py": "lightning"}
OTHER_LIBRARY = "from_imperative_before.py"  # helios 1.x, which is imported by the same name


def diffs():
    spec = importlib.util.spec_from_file_location("diffs", FOLDER / "diffs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def output(name, folder):
    """Return what a script prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(FOLDER / name)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Return the folder and the output of a script, which is run once for all tests."""
    done = {}

    def run(name):
        if name not in done:
            folder = tmp_path_factory.mktemp(name.removesuffix(".py"))
            done[name] = folder, output(name, folder)
        return done[name]

    return run


def last_line(text):
    return text.strip().splitlines()[-1]


def test_every_diff_of_the_page_is_that_of_its_files():
    module = diffs()
    shown = module.blocks(PAGE.read_text())
    assert sorted(shown) == sorted(module.PAIRS)
    for pair in module.PAIRS:
        # Where this fails: python docs/migrating/diffs.py
        assert shown[pair] == module.diff(pair), pair


def test_every_pair_of_files_is_on_the_page():
    pairs = [f"{pair}_{which}.py" for pair in diffs().PAIRS for which in ("after", "before")]
    assert sorted(pairs) == FILES


def test_the_loop_by_hand_and_helios_print_the_same_loss_to_the_last_bit(ran):
    before = last_line(ran("from_loop_before.py")[1])
    after = last_line(ran("from_loop_after.py")[1])
    assert before.startswith("valid loss 0.")
    assert after == before


@pytest.mark.parametrize("name", ["from_loop_after.py", "from_lightning_after.py"])
def test_what_is_done_says_so_when_it_is_run_again(name, ran):
    folder, first = ran(name)
    second = output(name, folder)
    assert "Nothing is left to train" in second
    assert last_line(first) == last_line(second)


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("from_lightning")])
def test_the_scripts_of_lightning_learn(name, ran):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{name} needs {NEEDS[name]}")
    assert float(last_line(ran(name)[1]).split()[-1]) > 0.7


def test_a_model_of_1_x_learns_with_another_base_class(ran):
    folder, text = ran("from_imperative_after.py")
    assert float(last_line(text).split()[-1]) > 0.8
    found = [path.name for path in (folder / "runs" / "classifier").glob("*.pth")]
    assert len(found) == 4
    assert all("_best_0." in name for name in found)
    (log,) = (folder / "logs").iterdir()
    assert log.read_text().count("mean loss") == 4


def test_what_changes_for_1_x_is_one_base_class():
    changed = [
        line
        for line in diffs().diff("from_imperative").splitlines()
        if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))
    ]
    assert changed == ["-class Classifier(hlm.Model):", "+class Classifier(hlm.ImperativeModel):"]


def test_what_cannot_run_here_is_valid_python():
    compile((FOLDER / OTHER_LIBRARY).read_text(), OTHER_LIBRARY, "exec")
