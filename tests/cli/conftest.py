"""The folder of a run with three checkpoints, for each test anew."""

from __future__ import annotations

import shutil

import pytest

import helios
from tests import zoo
from tests.trainer import runs
from tests.trainer.ranks import world
from tests.trainer.ranks.test_sharded_fit import fit


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    model = zoo.Line(optimizer=lambda: helios.optim.AdamW(lr=0.1))
    data = runs.Batches(zoo.regression(5), zoo.regression(2))
    runs.run(
        root,
        model,
        data,
        chkpt_frequency=2,
        valid_frequency=2,
        random_seed=7,
        run_name="try",
        enable_file_logging=True,
        log_path=root / "logs",
    )
    return root / "line"


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "line")


@pytest.fixture(scope="session")
def sharded_original(tmp_path_factory):
    root = tmp_path_factory.mktemp("sharded")
    world.values(world.run(fit, 2, args=(str(root), 4, True, 0.0, 2)))
    return root / "deep"


@pytest.fixture
def sharded(sharded_original, tmp_path):
    return shutil.copytree(sharded_original, tmp_path / "deep")
