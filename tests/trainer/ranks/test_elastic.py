"""Runs that ``torchrun`` restarts, and runs that go on with another number of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import helios
from helios.functional.tree import first_difference
from tests import zoo
from tests.trainer.ranks import small, world

ROOT = Path(__file__).parents[3]
CANONICAL = {"reduction": "canonical", "pieces": 4, "rank_timeout": 20.0}

DIES_ONCE = """
    import os, signal, sys
    from pathlib import Path
    from tests.trainer.ranks import small

    class DiesOnce(small.Net):
        def on_training_batch_end(self, state, should_log=False):
            died = Path(sys.argv[1], "died")
            if self.rank == 1 and state.current_iteration == 6 and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    small.trainer(sys.argv[1], rank_timeout=20.0).fit(DiesOnce("noisy"), small.Data())
"""

RAISES = """
    import sys
    from tests.trainer.ranks import small

    class Raises(small.Net):
        def on_training_batch_end(self, state, should_log=False):
            if self.rank == 1 and state.current_iteration == 6:
                raise LookupError("not found on purpose")

    small.trainer(sys.argv[1], rank_timeout=20.0).fit(Raises("noisy"), small.Data())
    print("the script went on")
"""

STOPS = """
    import sys
    from tests.trainer.ranks import test_elastic

    test_elastic.fit_until(sys.argv[1], int(sys.argv[2]))
"""


class Weighted(zoo.Weighted):
    """A loss with a weight, whose run stops after a micro-batch."""

    def __init__(self, micro_batch: int) -> None:
        super().__init__(small.NAME)
        self._micro_batch = micro_batch

    def should_training_stop(self):
        return self.trainer.state.global_iteration >= self._micro_batch


class Line(Weighted):
    """The same with a mean."""

    def loss(self, batch):
        x, y, _ = batch
        return F.mse_loss(self.net(x), y)


MODELS = {"weighted": Weighted, "line": Line}


class Masked(helios.DataModule):
    """Samples in float64 with a mask."""

    def setup(self):
        columns = zip(*zoo.batches_for(zoo.Weighted(), 3, size=8), strict=True)
        samples = TensorDataset(*map(torch.cat, columns))
        self._train_dataset = self._create_dataset(samples, {"batch_size": 8, "shuffle": True})


def fit_in_windows(folder: str, model: str, micro_batch: int) -> None:
    """On a rank: train in windows of three, up to a micro-batch or to the end."""
    windows = {"accumulation_steps": 3, "total_steps": 6, "valid_frequency": None}
    made = small.trainer(folder, rank_timeout=20.0, **windows)
    assert made.fit(MODELS[model](micro_batch), Masked())


class Stops(small.Net):
    """A model that asks to stop after an update."""

    def __init__(self, update: int) -> None:
        super().__init__(small.NAME)
        self._update = update

    def should_training_stop(self):
        return self.trainer.state.current_iteration >= self._update


def fit_until(folder: str, update: int) -> None:
    """On a rank: train in canonical mode up to an update, or to the end."""
    assert small.trainer(folder, **CANONICAL).fit(Stops(update), small.Data())


def torchrun(script: str, folder: Path, *arguments: Any, ranks: int = 2, restarts: int = 0):
    """Run a script by ``torchrun``, with a folder and more as its arguments."""
    path = folder / "script.py"
    lines = script.strip("\n").splitlines()
    path.write_text("\n".join(line[4:] for line in lines))
    options = ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts), "--standalone"]
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", *options),
            *(str(path), str(folder), *map(str, arguments)),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )


def whole(folder: Path, function: Any, *arguments: Any, ranks: int) -> dict[str, Any]:
    """Return what a run holds at its end that nothing happened to."""
    world.values(world.run(function, ranks, args=(str(folder), *arguments)))
    return small.contents(folder)


def fit_plain(folder: str) -> None:
    """On a rank: train the same as the scripts do."""
    assert small.trainer(folder).fit(small.Net(small.NAME), small.Data())


def test_torchrun_restarts_a_rank_that_was_killed_and_the_run_goes_on_by_itself(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        folder.mkdir()
    ended = torchrun(DIES_ONCE, run, restarts=2)
    assert ended.returncode == 0, ended.stdout
    assert (run / "died").exists()
    assert "Resuming training from checkpoint" in ended.stdout
    assert "noisy_epoch_2_iter_4.pth" in ended.stdout
    assert first_difference(small.contents(run), whole(other, fit_plain, ranks=2)) is None


def test_a_script_that_ignores_what_fit_returns_ends_torchrun_with_an_error(tmp_path):
    ended = torchrun(RAISES, tmp_path)
    assert ended.returncode != 0, ended.stdout
    assert "LookupError: not found on purpose" in ended.stdout
    assert "the script went on" not in ended.stdout
    assert small.update(tmp_path) == 4


@pytest.mark.parametrize("ranks", [(2, 4, 1), (4, 1, 2), (1, 2, 4)])
def test_a_canonical_run_goes_on_with_any_number_of_ranks_to_the_same_bits(tmp_path, ranks):
    run, other = tmp_path / "run", tmp_path / "other"
    for count, until in zip(ranks, (5, 7, small.UPDATES), strict=True):
        world.values(world.run(fit_until, count, args=(str(run), until)))
        assert small.update(run) == until
    alone = whole(other, fit_until, small.UPDATES, ranks=1)
    assert first_difference(_without_ranks(small.contents(run)), _without_ranks(alone)) is None


@pytest.mark.parametrize("model", MODELS)
def test_a_window_that_one_rank_left_open_is_closed_by_several(tmp_path, model):
    run, other = tmp_path / "run", tmp_path / "other"
    world.values(world.run(fit_in_windows, 1, args=(str(run), model, 5)))
    assert small.newest(run)[0]["training_state"]["window_iter"] == 2
    several = whole(run, fit_in_windows, model, 18, ranks=2)["model"]
    alone = whole(other, fit_in_windows, model, 18, ranks=1)["model"]
    for name, tensor in alone.items():
        assert (several[name] - tensor).abs().max() < 1e-15, name


@pytest.mark.nightly
@pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="imports torch eleven times"
)
def test_torchrun_goes_on_with_any_number_of_ranks_to_the_same_bits(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    for count, until in ((2, 5), (4, 7), (1, small.UPDATES)):
        ended = torchrun(STOPS, run, until, ranks=count)
        assert ended.returncode == 0, ended.stdout
        assert small.update(run) == until
    alone = whole(other, fit_until, small.UPDATES, ranks=1)
    assert first_difference(_without_ranks(small.contents(run)), _without_ranks(alone)) is None


def _without_ranks(content: dict[str, Any]) -> dict[str, Any]:
    """Leave out what each of several ranks had measured since the last report: its sum is there."""
    return {name: part for name, part in content.items() if name != "ranks"}
