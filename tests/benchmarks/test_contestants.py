"""Every contestant that is installed takes part in a short run of the real command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.contestants import CONTESTANTS

ROOT = Path(__file__).parents[2]
# Compiling takes longer than all else together.
CHOSEN = [name for name in CONTESTANTS if not name.endswith("-compiled")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    page = folder / "page.md"
    names = ("machine", "steps bare", "steps full", "steps absent")
    page.write_text("\n".join(f"<!-- begin {n} -->\n<!-- end {n} -->" for n in names))
    command = [sys.executable, "-m", "benchmarks", "steps", "--quick", "--workloads", "mlp"]
    files = ["--results", str(folder / "results.json"), "--page", str(page)]
    done = subprocess.run(
        [*command, "--contestants", *CHOSEN, *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text())["steps"], page.read_text()


def test_all_that_are_installed_do_the_same_work(measured):
    results, page = measured
    for setting in ("bare", "full"):
        found = results["settings"][setting]["mlp"]["contestants"]
        assert [*found] == [n for n in CHOSEN if CONTESTANTS[n].missing() is None]
        for name, figures in found.items():
            assert figures["bitwise"] == CONTESTANTS[name].exact, name
            assert len(figures["rounds"]) == 2
            assert min(figures["rounds"]) > 0
            assert f"| {CONTESTANTS[name].label} | {figures['microseconds']['median']:.0f}" in page
    assert results["settings"]["bare"]["mlp"]["contestants"]["handwritten"]["ratio"]["median"] == 1


@pytest.mark.parametrize("name", CHOSEN)
def test_those_that_are_not_installed_are_named(name):
    missing = CONTESTANTS[name].missing()
    if missing is not None:
        pytest.skip(f"{name} takes no part: {missing}")
    version = CONTESTANTS[name].version()
    assert version or CONTESTANTS[name].package is None
