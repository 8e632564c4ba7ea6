"""What the benchmarks of size and memory count, and what they write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import lengths, memory, size
from benchmarks.peaks import WAYS, peak_of_tensors

ROOT = Path(__file__).parents[2]
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
MIB = 1 << 20


def test_the_peak_counts_what_lives_at_a_time_and_not_what_was_freed():
    def run():
        kept = torch.zeros(MIB // 4)
        for _ in range(3):
            torch.zeros(MIB // 2)  # freed at once
        del kept

    assert peak_of_tensors(run) == 3 * MIB


def test_the_peak_leaves_out_what_was_there_before():
    before = torch.zeros(MIB)
    assert peak_of_tensors(lambda: torch.zeros(MIB // 4)) == MIB
    assert before.sum() == 0


def test_by_hand_four_tensors_of_each_parameter_live_at_a_time():
    batches = [torch.randn(8, 256) for _ in range(3)]
    peak = peak_of_tensors(lambda: WAYS["handwritten-fused"].run(256, batches))
    parameters = 16 * (256 * 256 + 256) * 4  # as many again of gradients, and twice of moments
    assert 4 * parameters <= peak <= 4.2 * parameters


@pytest.mark.parametrize("position", [10, 10**9])
def test_a_way_begins_at_its_position(tmp_path, position):
    way = lengths.Way(epoch=64, position=position)
    root = lengths._prepared(tmp_path, way)
    model = lengths.Small(2, 3)
    lengths._fit(model, lengths.Repeated(64), float("inf"), root)
    assert model.started == position
    assert model.trainer.state.current_iteration == position + 5
    assert model.seconds > 0


def test_lengths_measures_every_way_in_every_round():
    found = lengths.per_update(16, 2, lambda message: None)
    assert {group: len(ways) for group, ways in found.items()} == {
        "updates of an epoch": 2,
        "updates of the run": 4,
        "updates done before": 3,
    }
    assert all(len(v) == 2 and min(v) > 0 for ways in found.values() for v in ways.values())


def test_resuming_goes_on_where_it_was_said():
    found = lengths.resuming(1, lambda message: None)
    assert [*found] == ["0", "0.01", "0.5", "0.99"]
    assert all(0 < seconds < 60 for [seconds] in found.values())


@pytest.mark.nightly
@pytest.mark.skipif(not NIGHTLY, reason="the same as above, as a command")
def test_the_command_measures_size_and_memory(tmp_path):
    pytest.importorskip("matplotlib", reason="draws, with what the extra `bench` installs")
    page = tmp_path / "page.md"
    names = ("tensors", "lengths", "resuming", "memory")
    page.write_text("\n".join(f"<!-- begin {n} -->\n<!-- end {n} -->" for n in names))
    command = [sys.executable, "-m", "benchmarks", "size", "memory", "--quick"]
    files = ["--results", str(tmp_path / "results.json"), "--page", str(page)]
    done = subprocess.run(
        [*command, *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert min(f["tensors"] for f in results["memory"]["ways"].values()) > 0
    assert (tmp_path / "images" / "tensors.svg").read_text().startswith("<?xml")
    text = page.read_text()
    assert text.count("| updates of the run |") == 4
    assert "| helios, fused AdamW |" in text


def test_a_memory_table_compares_with_the_same_optimizer_by_hand(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- begin memory --><!-- end memory -->")
    figures = {
        "handwritten": {"tensors": 4 * MIB, "resident": [8 * MIB]},
        "handwritten-fused": {"tensors": 2 * MIB, "resident": [4 * MIB]},
        "helios-fused": {"tensors": 3 * MIB, "resident": [4 * MIB, 5 * MIB, 6 * MIB]},
    }
    memory.publish(page, {"parameters": MIB, "updates": 5, "ways": figures})
    row = next(line for line in page.read_text().splitlines() if "helios, fused" in line)
    assert row == "| helios, fused AdamW | 3.0 | 1.500 | 5 (4 to 6) | 1.25 |"


def test_what_a_tensor_more_adds_leaves_out_what_does_not_grow():
    def found(us):
        gap = {"median": us, "low": us, "high": us}
        each = {"difference": gap, "microseconds": gap}
        names = ("handwritten", "helios", "handwritten-fused", "helios-fused")
        return dict.fromkeys(names, each)

    lines = size._table_of_tensors({"4": found(100.0), "16": found(124.0)}).splitlines()
    assert "| +124.0 (+124.0 to +124.0) | +2.00 |" in lines[3]
    assert "+" not in lines[2].split("|")[4]
