"""Train a small convolutional network on handwritten digits, and go on where it was left.

Run it with ``python -m helios.examples.digits``; run it again, or interrupt it and run it again.
``torchrun --nproc-per-node 2 -m helios.examples.digits --cpu`` trains it on two ranks. It goes on
on any other number of them: the samples of every update stay the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import helios


class Digits(helios.Model):
    """A classifier of 8 x 8 images."""

    def setup(self, fast_init: bool = False) -> None:
        """Build the network."""
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, kernel_size=3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 64, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.25), nn.Linear(64 * 4 * 4, 10)),
        )
        self.optimizer = helios.optim.AdamW(lr=1e-3)
        self.monitor = helios.Monitor("accuracy", mode="max")

    def loss(self, batch: Any) -> Any:
        """Return the loss of a batch, and its accuracy beside it."""
        images, labels = batch
        logits = self.net(images)
        return F.cross_entropy(logits, labels), {"accuracy": logits.argmax(1) == labels}


def load_data() -> helios.DataModule:
    """Return the 1,797 digits that scikit-learn ships: 70 % to train on, 10 % valid, 20 % test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit(
            "this example needs scikit-learn for its data: pip install helios[demo]"
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, valid, train = order[:360], order[360:540], order[540:]
    x, y = images, torch.tensor(labels)
    return helios.data.from_datasets(
        train=(x[train], y[train]), valid=(x[valid], y[valid]), test=(x[test], y[test]),
        batch_size=32,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> float:
    """Train and test; return the accuracy on the test set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15, help="train for so many in all")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where files go")
    parser.add_argument("--seed", type=int, help="the seed of a new run")
    parser.add_argument("--cpu", action="store_true", help="leave the GPUs alone")
    parser.add_argument("--ranks", type=int, help="start so many processes on the CPU")
    parser.add_argument("--canonical", action="store_true", help="equal bits on 1, 2, 4, 8 ranks")
    args = parser.parse_args(argv)

    torch.set_num_threads(1)  # more of them only get into each other's way in so small a network
    model, data = Digits("digits"), load_data()
    trainer = helios.Trainer(
        total_steps=args.epochs,
        valid_frequency=1,
        chkpt_frequency=1,
        chkpt_root=args.runs / "checkpoints",
        enable_tensorboard=True,
        run_path=args.runs / "tensorboard",
        enable_file_logging=True,
        log_path=args.runs / "logs",
        enable_progress_bar=True,
        use_cpu=True if args.cpu else None,
        cpu_ranks=args.ranks,
        reduction="canonical" if args.canonical else "mean",
        random_seed=args.seed,
    )
    folder = args.runs / "checkpoints" / "digits"
    before = helios.trainer.find_last_checkpoint(folder)
    if not trainer.fit(model, data):
        raise SystemExit(1)
    if trainer.rank == 0 and before == helios.trainer.find_last_checkpoint(folder):
        print(f"Finished already, after {trainer.state.global_epoch} epochs: nothing was trained.")
    if not trainer.test(model, data):
        raise SystemExit(1)
    accuracy = model.test_metrics["accuracy"]
    if trainer.rank == 0:
        print(f"Test accuracy: {accuracy:.2%}")
    return accuracy


if __name__ == "__main__":
    main()
