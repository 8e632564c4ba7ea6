"""A trainer that compiles: the same calendar, exact resumes, and the past again."""

from __future__ import annotations

import pytest
import torch

import helios
from helios.trainer.store import read_checkpoint
from tests import zoo
from tests.trainer.runs import Stopper

TRACED = "aot_eager"


def data(samples=22, batch_size=4):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, generator=draw)
    return helios.data.from_datasets(
        train=(x, (x.sum(1) > 0).long()), valid=(x, (x.sum(1) > 0).long()), batch_size=batch_size
    )


class Averaged(zoo.Noisy):
    """Dropout, batch norm, a rate that changes and an average."""

    def setup(self, fast_init=False):
        super().setup()
        self.optimizer = helios.optim.AdamW(lr=helios.optim.rates.cosine(1e-2, 40))
        self.average = helios.optim.average(0.9)


def fit(folder, *, compile=TRACED, stop=None, total=4, model=None, **options):
    plugins = [Stopper(stop)] if stop else []
    trainer = helios.Trainer(
        total_steps=total,
        chkpt_root=folder,
        valid_frequency=1,
        use_cpu=True,
        print_banner=False,
        compile=compile,
        plugins=plugins,
        **options,
    )
    assert trainer.fit(model or Averaged("run"), data())
    return trainer.state


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("stop", [3, 6, 14])
def test_a_compiled_run_that_was_left_goes_on_exactly(tmp_path, window, stop):
    options = {"accumulation_steps": window}
    whole = fit(tmp_path / "whole", **options)
    fit(tmp_path / "left", stop=stop, **options)
    assert helios.digest(fit(tmp_path / "left", **options)) == helios.digest(whole)


def test_a_replay_of_a_compiled_run_is_compiled(tmp_path):
    fit(tmp_path, chkpt_frequency=1)
    [first, *_] = sorted((tmp_path / "run").glob("run_epoch_1_*.pth"))
    states = helios.replay(Averaged("run"), data(), first, use_cpu=True)
    assert helios.verify(states, helios.recorded_digests(tmp_path / "run")) is None


def test_a_checkpoint_says_how_its_run_was_compiled(tmp_path):
    fit(tmp_path, total=1)
    [path] = (tmp_path / "run").glob("*.pth")
    assert read_checkpoint(path)["fingerprint"]["compiled"] == TRACED
    with pytest.warns(UserWarning, match=f"compiled was {TRACED} and is no"):
        fit(tmp_path, total=2, compile=False)


def test_a_canonical_run_says_that_it_is_not_compiled(tmp_path, capsys):
    class Plain(zoo.Line):
        def loss(self, batch):
            return self.net(batch[0]).square().mean()

    fit(tmp_path, total=1, reduction="canonical", model=Plain("run"))
    assert "The step runs uncompiled: its gradients are put together" in capsys.readouterr().out


def test_a_run_that_cannot_be_compiled_says_so_once(tmp_path, capsys):
    class Branches(zoo.Noisy):
        def loss(self, batch):
            loss, metrics = super().loss(batch)
            return (loss if batch[0].sum() > 0 else 2 * loss), metrics

    fit(tmp_path, total=2, model=Branches("run"))
    assert capsys.readouterr().out.count("The step runs uncompiled: Data-dependent branching") == 1


@pytest.mark.parametrize(("value", "kind"), [("fast", ValueError), (1, TypeError)])
def test_what_is_no_way_to_compile_is_refused(value, kind):
    with pytest.raises(kind, match="compile: received"):
        helios.Trainer(total_steps=1, compile=value)
