"""What several ranks cannot do right is refused before the first step, in words."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import helios
from tests import zoo
from tests.exactness import ranks
from tests.trainer.ranks import world


def here():
    return int(os.environ["RANK"])


class OwnStep(zoo.Line):
    def step(self, state, batch):
        return state


class Unseeded(zoo.Line):
    """What it draws in setup() is another number on every rank."""

    def setup(self, fast_init=False):
        super().setup()
        generator = torch.Generator().manual_seed(here())
        self.net.weight.data = torch.randn(1, 3, generator=generator)


class Synchronised(zoo.Line):
    def setup(self, fast_init=False):
        super().setup()
        self.norm = nn.SyncBatchNorm(3)


CASES = {
    "own step": (OwnStep, dict),
    "unseeded": (Unseeded, dict),
    "unseeded, canonical": (Unseeded, lambda: {"reduction": "canonical"}),
    "total_steps": (zoo.Line, lambda: {"total_steps": 2 + here()}),
    "seeds": (zoo.Line, lambda: {"random_seed": here()}),
    "windows": (zoo.Line, lambda: {"accumulation_steps": 1 + here()}),
    "synchronised": (Synchronised, lambda: {"reduction": "canonical"}),
    "pieces": (zoo.Line, lambda: {"reduction": "canonical", "pieces": 9}),
    "canonical": (zoo.Line, lambda: {"reduction": "canonical"}),
    "sizes": (zoo.Line, dict),
}


class Lines(helios.DataModule):
    def __init__(self, batches):
        self.batches = batches

    def setup(self):
        pass

    def train_dataloader(self):
        return zoo.regression(self.batches)


def refuse(case):
    """Return the error that this rank ends with."""
    kind, options = CASES[case]
    trainer = helios.Trainer(
        use_cpu=True, print_banner=False, **{"total_steps": 2, **options()}, rank_timeout=5
    )
    trainer.train_exceptions.append(Exception)
    steps = []
    trained = kind()
    trained.on_training_batch_start = lambda state: steps.append(state)
    try:
        trainer.fit(trained, Lines(3 + here() if case == "sizes" else 3))
    except Exception as error:
        return [f"{type(error).__name__}: {error}", len(steps)]
    return ["", len(steps)]


@pytest.mark.parametrize(
    ("case", "size", "words"),
    [
        ("own step", 2, ["ModelError", "has a step() of its own", "2 ranks", "train on one rank"]),
        ("unseeded", 2, ["RankError", "rank 1 has other parameters than rank 0", "setup()"]),
        ("unseeded, canonical", 2, ["RankError", "rank 1 has other parameters than rank 0"]),
        ("total_steps", 2, ["RankError", "the plan", "same arguments"]),
        ("seeds", 3, ["RankError", "the seed", "rank 1 has", "same arguments"]),
        ("windows", 2, ["RankError", "'accumulation_steps': 2"]),
        ("synchronised", 2, ["ModelError", "SyncBatchNorm", "nn.BatchNorm"]),
        ("pieces", 2, ["ValueError", "9", "2 ranks"]),
        ("canonical", 3, ["ValueError", "8", "3 ranks"]),
        ("sizes", 2, ["RankError", "'batches_per_epoch': 4", "same data"]),
    ],
)
def test_it_is_refused_on_every_rank_before_the_first_step(case, size, words):
    for message, steps in world.values(world.run(refuse, size, args=(case,))):
        assert steps == 0
        for word in words:
            assert word in message


def test_pieces_are_refused_without_canonical_reduction():
    with pytest.raises(ValueError, match=r"pieces: received 4 .*canonical"):
        helios.Trainer(total_steps=1, pieces=4)


def test_a_buffer_that_counts_samples_is_refused_by_canonical_reduction():
    [[message, _]] = world.values(world.run(count_samples, 1))
    assert "buffer 'seen' changed in the forward pass" in message


def count_samples():
    trainer = helios.Trainer(
        use_cpu=True, print_banner=False, total_steps=1, reduction="canonical", pieces=2
    )
    trainer.train_exceptions.append(Exception)
    data = ranks.Data(samples=8, batch=8)
    try:
        trainer.fit(Seen("seen"), data)
    except Exception as error:
        return [str(error), 0]
    return ["", 0]


class Seen(zoo.Noisy):
    def loss(self, batch):
        return super().loss((batch[1].float(), (batch[2][:, 0] > 0).long()))
