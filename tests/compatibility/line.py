"""The run whose checkpoints are kept here: ``python -m tests.compatibility.line FOLDER`` makes one.

A folder is made once for each schema, by the helios that wrote it, and never again.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import helios


class Line(helios.Model):
    """Has something in every entry of a checkpoint: momentum, buffers, an average."""

    def setup(self, fast_init=False):
        self.net = nn.Sequential(
            nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1)
        )
        self.optimizer = helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(1.0),
            sgd=helios.optim.SGD(lr=0.05, momentum=0.9),
        )
        self.average = helios.optim.average(decay=0.9)

    def loss(self, batch):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        return loss, {"size": y.abs().mean()}


class Counting(helios.Plugin):
    """A plugin with a state."""

    def __init__(self):
        super().__init__("counting")
        self.starts = 0

    def on_training_start(self):
        self.starts += 1

    def state_dict(self):
        return {"starts": self.starts}

    def load_state_dict(self, state_dict):
        self.starts = state_dict["starts"]


def data():
    x = torch.linspace(-1, 1, 48).reshape(24, 2)
    rows = (x, x.sum(1, keepdim=True))
    return helios.data.from_datasets(train=rows, valid=rows, batch_size=4)


def trainer(root, total_steps):
    return helios.Trainer(
        train_unit="iteration",
        total_steps=total_steps,
        accumulation_steps=4,
        valid_frequency=2,
        chkpt_frequency=2,
        chkpt_root=root,
        random_seed=5,
        use_cpu=True,
        print_banner=False,
        plugins=[Counting()],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert trainer(sys.argv[1], 4).fit(Line("line"), data())
