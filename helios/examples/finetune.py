"""Fine-tune a network on classes that it has never seen: frozen layers, and a new head.

Run it with ``python -m helios.examples.finetune``. First a network learns the digits 0 to 4. Then
its convolutions are frozen, its head is replaced, and 60 images of the digits 5 to 9 are enough.
The convolutions come from the checkpoint of the first run, through `helios.load_pretrained`.
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
from helios.examples.digits import load_data


class Classifier(helios.Model):
    """Convolutions, batch normalisation and a head, for five classes."""

    def setup(self, fast_init: bool = False) -> None:
        """Build the network."""
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, kernel_size=3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, kernel_size=3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Flatten()),
        )
        self.head = nn.Linear(32 * 4 * 4, 5)
        self.optimizer = helios.optim.AdamW(lr=3e-3)
        self.monitor = helios.Monitor("accuracy", mode="max")

    def loss(self, batch: Any) -> Any:
        """Return the loss of a batch, and its accuracy beside it."""
        images, labels = batch
        logits = self.head(self.body(images))
        return F.cross_entropy(logits, labels), {"accuracy": logits.argmax(1) == labels}


class Finetuned(Classifier):
    """The same network, of which the head alone is trained.

    Args:
        save_name: names the checkpoints.
        pretrained: the checkpoint that the body is taken from.
    """

    def __init__(self, save_name: str, pretrained: Path) -> None:
        super().__init__(save_name)
        self.pretrained = pretrained

    def setup(self, fast_init: bool = False) -> None:
        """Build the network, load its body, and freeze it, running statistics and all."""
        super().setup(fast_init)
        helios.load_pretrained(self.body, self.pretrained, mapping={"": "body."})
        helios.model.freeze(self, "body.*")


def digits(classes: range, samples: int | None = None) -> helios.DataModule:
    """Return the digits of some classes, counted from 0, at most so many to train on."""
    whole = load_data()
    whole.setup()
    parts = {}
    for name, dataset in (("train", whole.train_dataset), ("valid", whole.valid_dataset)):
        assert dataset is not None
        images, labels = dataset[:]
        chosen = (labels >= classes.start) & (labels < classes.stop)
        parts[name] = images[chosen], labels[chosen] - classes.start
    images, labels = parts["train"]
    train = images[:samples], labels[:samples]
    return helios.data.from_datasets(train=train, valid=parts["valid"], batch_size=20)


def main(argv: Sequence[str] | None = None) -> tuple[float, float]:
    """Train twice; return the accuracy of each on its own validation set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each of the two runs")
    parser.add_argument("--samples", type=int, default=60, help="images to fine-tune on")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where files go")
    args = parser.parse_args(argv)

    torch.set_num_threads(1)  # more of them only get into each other's way in so small a network

    def train(model: helios.Model, data: helios.DataModule, epochs: int) -> float:
        trainer = helios.Trainer(
            total_steps=epochs,
            valid_frequency=1,
            chkpt_root=args.runs,
            print_banner=False,
            use_cpu=True,
        )
        if not trainer.fit(model, data):
            raise SystemExit(1)
        return model.best_score or 0.0

    first = train(Classifier("digits_0_to_4"), digits(range(5)), args.epochs)
    checkpoint = helios.trainer.find_last_checkpoint(args.runs / "digits_0_to_4")
    assert checkpoint is not None
    model = Finetuned("digits_5_to_9", checkpoint)
    second = train(model, digits(range(5, 10), args.samples), 4 * args.epochs)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"0 to 4: accuracy {first:.2%}, of all parameters and all images")
    print(f"5 to 9: accuracy {second:.2%}, of {trained:,} parameters and {args.samples} images")
    return first, second


if __name__ == "__main__":
    main()
