"""Search for a learning rate and a width with Optuna; interrupt it, run it again, and it goes on.

Run it with ``python -m helios.examples.optuna_search``. It needs ``pip install 'helios[optuna]'``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn

import helios
from helios.plugins.optuna import OptunaPlugin, open_study, resume_study


class Curve(helios.Model):
    """A small network for a curve."""

    def __init__(self, lr: float, width: int) -> None:
        super().__init__("curve")
        self.lr, self.width = lr, width

    def setup(self, fast_init: bool = False) -> None:
        """Build the network."""
        self.net = nn.Sequential(nn.Linear(1, self.width), nn.Tanh(), nn.Linear(self.width, 1))
        self.optimizer = helios.optim.AdamW(lr=self.lr)

    def loss(self, batch: Any) -> Any:
        """Return the mean squared error of a batch."""
        x, y = batch
        return (self.net(x) - y).square().mean()


def main(argv: Sequence[str] | None = None) -> optuna.Study:
    """Search; return the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=6, help="trials there are to be in all")
    parser.add_argument("--epochs", type=int, default=8, help="epochs of a trial")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where files go")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # more of them only get into each other's way in so small a network
    x = torch.linspace(-3, 3, 256)[:, None]
    folder = args.runs / "optuna_search"

    def objective(trial: optuna.Trial) -> float:
        plugin = OptunaPlugin(trial)
        lr = plugin.suggest("float", "lr", low=1e-4, high=1e-1, log=True)
        width = plugin.suggest("int", "width", low=4, high=64, log=True)
        trainer = helios.Trainer(
            total_steps=args.epochs,
            valid_frequency=1,
            chkpt_frequency=4,
            chkpt_root=folder,
            use_cpu=True,
            print_banner=False,
            plugins=[plugin],
        )
        train, valid = (x[::2], x[::2].sin()), (x[1::2], x[1::2].sin())
        data = helios.data.from_datasets(train=train, valid=valid, batch_size=32)
        if not trainer.fit(Curve(lr, width), data):
            raise SystemExit(1)
        assert plugin.best_value is not None
        return plugin.best_value

    pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=2)
    study = resume_study(open_study(folder, pruner=pruner), objective, args.trials)
    for trial in study.trials:
        print(f"trial {trial.number}: {trial.state.name.lower()}, {trial.value}, {trial.params}")
    print(f"best: trial {study.best_trial.number}")
    return study


if __name__ == "__main__":
    main()
