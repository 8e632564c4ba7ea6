"""The past of a run of several ranks, again, on one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import helios
from helios.errors import LossError
from tests import zoo
from tests.trainer.ranks import world


class Noisy(zoo.Noisy):
    """Changes no buffer but those of batch normalisation."""

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Broken(Noisy):
    """Fails at one micro-batch, on rank 0."""

    def loss(self, batch):
        if self.trainer.state.global_iteration == 11 and self.trainer.rank == 0:
            raise LossError("broken on purpose")
        return super().loss(batch)


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=generator)
    rows = (x, (x[:, 0] > 0).long())
    return helios.data.from_datasets(train=rows, valid=rows, batch_size=16)


def fit(root, reduction, broken):
    trainer = helios.Trainer(
        total_steps=3,
        valid_frequency=1,
        chkpt_frequency=1,
        chkpt_root=Path(root),
        accumulation_steps=2,
        reduction=reduction,
        pieces=4 if reduction == "canonical" else None,
        use_cpu=True,
        print_banner=False,
        rank_timeout=5,
    )
    model = (Broken if broken else Noisy)("noisy")
    assert trainer.fit(model, data())


def test_a_canonical_run_of_ranks_is_replayed_bit_for_bit_on_one(tmp_path):
    world.values(world.run(fit, 2, args=(str(tmp_path), "canonical", False)))
    first = tmp_path / "noisy" / "noisy_epoch_1_iter_2.pth"
    states = helios.replay(Noisy("noisy"), data(), first, use_cpu=True)
    assert helios.verify(states, helios.recorded_digests(tmp_path / "noisy")) is None


def test_a_step_that_failed_on_rank_0_fails_again_on_one_process(tmp_path):
    outcomes = world.run(fit, 2, args=(str(tmp_path), "canonical", True))
    assert [outcome.status for outcome in outcomes] == [1, 1]
    [record] = (tmp_path / "noisy" / "crashes").iterdir()
    with pytest.raises(LossError, match="on purpose"):
        helios.reproduce(Broken("noisy"), data(), record, use_cpu=True)


def test_that_of_a_plain_run_is_said_to_be_another_number_of_ranks(tmp_path):
    world.run(fit, 2, args=(str(tmp_path), "mean", True))
    [record] = (tmp_path / "noisy" / "crashes").iterdir()
    with (
        pytest.warns(UserWarning, match="ranks was 2 and is 1"),
        pytest.raises(LossError, match="on purpose"),
    ):
        helios.reproduce(Broken("noisy"), data(), record, use_cpu=True)
