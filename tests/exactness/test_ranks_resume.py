"""T2: at a fixed number of ranks a run that is taken up again is the run that was not stopped.

Stopped after every update in turn, saved, and taken up by fresh processes: parameters, buffers,
optimizer state and average have the same bits, and what is logged is logged once, with the same
values, in the log file and in TensorBoard.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.exactness import ranks

MODEL = {"dropout": True, "norm": True, "average": True, "clip": True, "draws": True}
UPDATES = 5


def spec(folder, world, stop=None):
    """Return a leg in a folder; each rank has two samples of every micro-batch at least."""
    options = {
        "train_unit": "iteration",
        "total_steps": UPDATES,
        "accumulation_steps": 2,
        "valid_frequency": 2,
        "print_frequency": 1,
        "enable_file_logging": True,
        "enable_tensorboard": True,
        "log_path": str(folder / "logs"),
        "run_path": str(folder / "runs"),
        "chkpt_root": str(folder / "chkpt"),
    }
    data = {"samples": 8 * world, "batch": 3 * world, "valid": 5}
    return {"model": MODEL, "data": data, "options": options, "stop": {"stop": stop}}


def lines(folder):
    """Return what the log says of metrics, without the time of day."""
    [path] = (folder / "logs").glob("*.log")
    found = re.findall(r"epoch \d+, update \d+: .*", path.read_text())
    assert found
    return found


def points(folder):
    """Return the steps and values of every tag of TensorBoard, but for what a clock says."""
    [run] = {path.parent for path in Path(folder / "runs").rglob("*tfevents*")}
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("speed/")]
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module", params=[2, 3, 4])
def runs(request, tmp_path_factory):
    """For a number of ranks: the whole run, and those that were stopped after each update."""
    world, root = request.param, tmp_path_factory.mktemp("runs")
    [whole] = ranks.run([spec(root / "whole", world)], world)
    stops = range(1, UPDATES)
    begun = ranks.run([spec(root / str(stop), world, stop) for stop in stops], world)
    for stop, leg in zip(stops, begun, strict=True):
        assert ranks.alike(leg)["counters"]["current_iteration"] == stop
    # Each is taken up by processes that have not seen it; the last by fresh ones.
    ended = ranks.run([spec(root / str(stop), world) for stop in stops[:-1]], world)
    ended += ranks.run([spec(root / str(stops[-1]), world)], world)
    return root, whole, dict(zip(stops, zip(begun, ended, strict=True), strict=True))


@pytest.mark.parametrize("stop", range(1, UPDATES))
def test_a_run_taken_up_after_any_update_has_the_same_bits(runs, stop):
    _, whole, legs = runs
    begun, ended = legs[stop]
    for rank, uninterrupted in enumerate(whole):
        for name in ("bits", "best", "valid", "counters"):
            assert ended[rank][name] == uninterrupted[name]
        joined = begun[rank]["samples"] + ended[rank]["samples"]
        assert joined == uninterrupted["samples"]
        hooks = begun[rank]["hooks"] + ended[rank]["hooks"]
        for name in ("batch_start", "batch_end", "valid_batch", "metrics"):
            assert ranks.called(hooks, name) == ranks.called(uninterrupted["hooks"], name)


@pytest.mark.parametrize("stop", range(1, UPDATES))
def test_what_is_logged_is_logged_once(runs, stop):
    root, *_ = runs
    assert lines(root / str(stop)) == lines(root / "whole")
    assert points(root / str(stop)) == points(root / "whole")


def test_rank_0_alone_writes_files(runs):
    root, *_ = runs
    assert len(lines(root / "whole")) == UPDATES + UPDATES // 2
    assert [step for step, _ in points(root / "whole")["train/loss"]] == list(range(1, UPDATES + 1))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A whole run on 2 ranks, and one begun on them, whose ranks draw unequally from numpy."""
    root = tmp_path_factory.mktemp("uneven")
    options = {"total_steps": 3, "accumulation_steps": 2}
    found = {"noise": "numpy", "data": {"samples": 11, "batch": 5}, "options": options}
    [whole] = ranks.run([found], 2)
    found["options"] = {**options, "chkpt_root": str(root)}
    ranks.run([{**found, "stop": {"stop": 3}}], 2)
    return root, found, whole


def test_every_rank_goes_on_with_the_numbers_of_its_own(uneven):
    root, found, whole = uneven
    content = ranks.last_content(root)
    assert len(content["ranks_rng"]) == 2
    [ended] = ranks.run([found], 2)
    assert ranks.alike(ended)["bits"] == whole[0]["bits"]


def test_ranks_that_draw_alike_save_one_state_of_the_generators(runs):
    root, *_ = runs
    content = ranks.last_content(root / "whole" / "chkpt")
    assert "rng" in content
    assert "ranks_rng" not in content
