"""Fits of sharded models through the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import helios
from helios.functional.tree import first_difference
from helios.trainer.store import read_checkpoint
from tests.trainer.ranks import world


class Deep(helios.Model):
    """Two blocks that are wrapped, a buffer, dropout on demand, an average, and clipping."""

    def __init__(self, save_name="deep", dropout=0.0):
        super().__init__(save_name)
        self.dropout = dropout

    def setup(self, fast_init=False):
        def block():
            return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Dropout(self.dropout))

        self.first = nn.Linear(3, 6)
        self.blocks = nn.ModuleList([block(), block()])
        self.last = nn.Linear(6, 1)
        self.register_buffer("seen", torch.zeros(()))
        self.double()
        self.optimizer = helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(0.1), adam=helios.optim.AdamW(lr=1e-2)
        )
        self.average = helios.optim.average(0.9)

    def loss(self, batch):
        x, y = batch
        if self.training:
            self.seen += 1
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return (self.last(x) - y).square().mean()


def fit(root, steps, sharded, dropout, ranks):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(23, 3, generator=generator).double()
    y = torch.randn(23, 1, generator=generator).double()
    data = helios.data.from_datasets(train=(x, y), valid=(x, y), test=(x, y), batch_size=6)
    model = Deep(dropout=dropout)
    trainer = helios.Trainer(
        train_unit="iteration",
        total_steps=steps,
        accumulation_steps=2,
        valid_frequency=2,
        chkpt_frequency=2,
        print_frequency=3,
        chkpt_root=Path(root),
        log_path=Path(root, "logs"),
        enable_file_logging=True,
        parallel=helios.FSDP(wrap=(nn.Sequential,)) if sharded else None,
        use_cpu=True,
        print_banner=False,
        rank_timeout=20,
    )
    assert trainer.fit(model, data)
    assert trainer.test(model, data)
    losses = [metrics.get("loss") for metrics in (model.valid_metrics, model.test_metrics)]
    return [*losses, trainer.state.current_iteration]


class Lean(Deep):
    """Makes no optimizer where only weights are needed."""

    def setup(self, fast_init=False):
        super().setup()
        if fast_init:
            self.optimizer = None


def only_test(root, sharded):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(23, 3, generator=generator).double()
    data = helios.data.from_datasets(test=(x, x[:, :1]), batch_size=6)
    trainer = helios.Trainer(
        total_steps=1,
        chkpt_root=Path(root),
        parallel=helios.FSDP() if sharded else None,
        use_cpu=True,
        print_banner=False,
        rank_timeout=20,
    )
    model = Lean()
    assert trainer.test(model, data)
    return model.test_metrics["loss"]


def on(ranks, root, steps, sharded=True, dropout=0.0):
    root.mkdir(exist_ok=True)
    outcomes = world.run(fit, ranks, args=(str(root), steps, sharded, dropout, ranks))
    told = world.values(outcomes)
    assert all(one == told[0] for one in told)
    return told[0]


def last(root):
    content = read_checkpoint(helios.trainer.find_last_checkpoint(root / "deep"))
    return {name: content["carry"][name] for name in ("params", "opt_state", "average", "buffers")}


def test_a_sharded_run_is_one_of_one_process_to_rounding(tmp_path):
    one = on(1, tmp_path / "1", 6, sharded=False)
    for ranks in (2, 4):
        told = on(ranks, tmp_path / str(ranks), 6)
        assert told == pytest.approx(one, rel=1e-12)


def test_it_goes_on_on_any_number_of_ranks_and_unsharded(tmp_path):
    one = on(1, tmp_path / "1", 10, sharded=False)
    for ranks, steps in ((2, 2), (4, 5), (3, 7)):
        on(ranks, tmp_path / "a", steps)
    on(1, tmp_path / "a", 9, sharded=False)
    assert on(2, tmp_path / "a", 10) == pytest.approx(one, rel=1e-12)


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path):
    whole = on(3, tmp_path / "whole", 8, dropout=0.3)
    for steps in (2, 3, 7, 8):
        told = on(3, tmp_path / "parts", steps, dropout=0.3)
    assert told == whole
    assert first_difference(last(tmp_path / "parts"), last(tmp_path / "whole")) is None


def test_a_checkpoint_is_tested_by_any_number_of_ranks(tmp_path):
    on(2, tmp_path / "a", 4)
    [one] = world.values(world.run(only_test, 1, args=(str(tmp_path / "a"), False)))
    for ranks in (2, 3):
        for loss in world.values(world.run(only_test, ranks, args=(str(tmp_path / "a"), True))):
            assert loss == pytest.approx(one, rel=1e-12)


def test_one_process_reads_whole_tensors(tmp_path):
    on(2, tmp_path / "a", 4)
    content = read_checkpoint(helios.trainer.find_last_checkpoint(tmp_path / "a" / "deep"))
    assert content["model"]["first.weight"].shape == (6, 3)
    model = Deep()
    model.prepare(0)
    model.load_state_dict(content["model"])


class Stops(helios.Plugin):
    """Asks to stop within a window."""

    def __init__(self):
        super().__init__("stops")

    def should_training_stop(self):
        return self.trainer.state.global_iteration == 3


def fit_in_the_middle(root):
    data = helios.data.from_datasets(train=(torch.ones(8, 3), torch.ones(8, 1)), batch_size=2)
    trainer = helios.Trainer(
        train_unit="iteration", total_steps=4, accumulation_steps=2, chkpt_root=Path(root),
        use_cpu=True, print_banner=False, rank_timeout=20,
        parallel=helios.FSDP(), plugins=[Stops()] if Path(root, "alone").exists() else [],
    )  # fmt: skip
    return trainer.fit(Float("deep"), data)


class Float(Deep):
    def loss(self, batch):
        return super().loss([part.double() for part in batch])


def test_a_checkpoint_within_a_window_is_refused_with_advice(tmp_path):
    Path(tmp_path, "alone").touch()
    assert world.values(world.run(fit_in_the_middle, 1, args=(str(tmp_path),))) == [True]
    Path(tmp_path, "alone").unlink()
    for outcome in world.run(fit_in_the_middle, 2, args=(str(tmp_path),)):
        assert outcome.status == 1
        assert "ResumeError: deep_epoch_1_iter_1_micro_3.pth" in outcome.output


def test_what_excludes_sharding_is_refused():
    with pytest.raises(ValueError, match="canonical"):
        helios.Trainer(total_steps=1, reduction="canonical", parallel=helios.FSDP())
    with pytest.raises(ValueError, match="async_saving"):
        helios.Trainer(total_steps=1, async_saving=True, parallel=helios.FSDP())
