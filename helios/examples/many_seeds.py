"""Train a classifier of handwritten digits from several seeds at once, each with its own rate.

Run it with ``python -m helios.examples.many_seeds``; interrupt it, and it goes on. Each member
keeps checkpoints of its own, which are those of a run of it alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import helios
from helios.examples.digits import load_data


class Classifier(helios.Model):
    """A small network for 8 x 8 images."""

    def __init__(self, save_name: str, lr: float) -> None:
        super().__init__(save_name)
        self.lr = lr

    def setup(self, fast_init: bool = False) -> None:
        """Build the network."""
        self.net = nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 128), nn.ReLU()),
            *(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)),
        )
        self.optimizer = helios.optim.AdamW(lr=self.lr)
        self.monitor = helios.Monitor("accuracy", mode="max")

    def loss(self, batch: Any) -> Any:
        """Return the loss of a batch, and its accuracy beside it."""
        images, labels = batch
        logits = self.net(images)
        return F.cross_entropy(logits, labels), {"accuracy": logits.argmax(1) == labels}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train; return the best accuracy of each member on the validation set, by name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10, help="train for so many in all")
    parser.add_argument("--seeds", type=int, default=4, help="members for each learning rate")
    parser.add_argument("--lr", type=float, nargs="+", default=[3e-4, 3e-3], help="learning rates")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where files go")
    args = parser.parse_args(argv)

    torch.set_num_threads(1)  # more of them only get into each other's way in so small a network
    pairs = [(lr, seed) for lr in args.lr for seed in range(args.seeds)]
    members = [Classifier(f"lr{lr:g}_seed{seed}", lr) for lr, seed in pairs]
    trainer = helios.Trainer(
        total_steps=args.epochs,
        valid_frequency=1,
        chkpt_frequency=args.epochs,
        chkpt_root=args.runs / "many_seeds",
        enable_progress_bar=True,
        use_cpu=True,
    )
    if not helios.fit_many(trainer, members, load_data(), seeds=[seed for _, seed in pairs]):
        raise SystemExit(1)
    best = {member.save_name: member.best_score or 0.0 for member in members}
    for lr in args.lr:
        scores = [
            score for (rate, _), score in zip(pairs, best.values(), strict=True) if rate == lr
        ]
        spread = statistics.pstdev(scores)
        print(f"lr {lr:g}: accuracy {statistics.mean(scores):.2%}, {spread:.2%} between seeds")
    return best


if __name__ == "__main__":
    main()
