"""Every contestant that is installed takes part in a short run of the real command."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.contestants import CONTESTANTS
from benchmarks.steps import losses

ROOT = Path(__file__).parents[2]
# Compiling takes longer than all else together.
CHOSEN = [name for name in CONTESTANTS if not name.endswith("-compiled")]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    page = folder / "page.md"
    names = ("machine", "steps bare", "steps full", "steps losses", "steps absent")
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
    drawn = {path.name for path in (folder / "images").glob("*.svg")}
    assert drawn == ({"steps-bare.svg", "steps-full.svg"} if find_spec("matplotlib") else set())
    return json.loads((folder / "results.json").read_text())["steps"], page.read_text()


def test_all_that_are_installed_do_the_same_work(measured):
    results, page = measured
    for setting in ("bare", "full"):
        found = results["settings"][setting]["mlp"]["contestants"]
        again = found.pop("handwritten again 1")
        assert again["bitwise"]
        assert again["rounds"] != found["handwritten"]["rounds"]
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


def test_losses_are_named_where_another_is_faster_with_the_same_optimizer():
    def ran(ratio):
        return {"ratio": {"median": ratio}}

    contestants = {
        "handwritten": ran(1.0),
        "handwritten-fused": ran(0.5),
        "helios": ran(1.2),
        "helios-fused": ran(0.4),
        "ignite": ran(1.1),
        "lightning": ran(1.3),
        "skorch": {"refused": "it failed"},
    }
    lines = losses({"settings": {"bare": {"mlp": {"contestants": contestants}}}})
    assert lines == [
        "- bare, MLP 64-128-128-10: helios (1.20) is slower than hand-written loop (1.00), "
        "PyTorch-Ignite (1.10)."
    ]
