"""The engine of sharded models, driven by hand on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import helios
from helios.errors import ConsumedStateError, LossError, ModelError, NonFiniteError
from helios.functional.binding import bind
from helios.functional.serial import from_bytes, to_bytes
from helios.functional.tree import digest, first_difference
from helios.trainer.evaluate import evaluating
from helios.trainer.ranks.fsdp import FSDP, FSDPEngine, shard
from helios.trainer.ranks.sharding import Rows
from tests.trainer.ranks import sharded_runs, world
from tests.trainer.ranks.sharded_runs import BLOCKS, MODELS, Run, alone, furthest

OPTIONS = {
    "whole": FSDP(),
    "blocks": BLOCKS,
    "kept": FSDP(wrap=(nn.Linear,), reshard_after_forward=False),
    "apart": FSDP(wrap=lambda module: isinstance(module, nn.Linear), reshard_after_forward=True),
}


def train(name, window, updates, folder, options="blocks"):
    world.join()
    run = Run(name, window, OPTIONS[options]).go(updates * window)
    whole = run.whole()
    run.save(folder, "end")
    if run.rank == 0:
        Path(folder, "whole").write_bytes(to_bytes(helios.TrainingState(carry=whole)))
    world.leave()
    metrics = {n: [float(m.total), float(m.weight)] for n, m in run.state.carry.metrics.items()}
    return digest(run.state), metrics


def whole_of(folder):
    return from_bytes(Path(folder, "whole").read_bytes()).carry


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(
    "name", ["Mean", "Weighted", "Lazy", "Clipped", "ClippedByMaximum", "Game", "Frozen"]
)
def test_ranks_are_one_to_rounding(name, ranks, window, tmp_path):
    world.values(world.run(train, ranks, args=(name, window, 8, str(tmp_path))))
    carry = alone(name, window, 8).carry
    params, *average = whole_of(tmp_path)
    assert list(params) == list(carry.params)
    assert furthest(params, carry.params) < 1e-12
    if carry.average is not None:
        assert furthest(average[0], carry.average) < 1e-12
