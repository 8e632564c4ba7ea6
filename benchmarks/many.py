"""What a step of several members at once costs, against a step of one of them alone.

Run it with ``python -m benchmarks.many``. One is `helios.Trainer.fit`, the others are
`helios.fit_many`; both are whole fits, without files, taken in turn. The times are those between
the first and the last event of the loop. ``--sweep`` gives each member a learning rate of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import helios


class Mlp(helios.Model):
    """64-128-128-10, with AdamW."""

    def __init__(self, name: str, lr: float = 1e-3) -> None:
        super().__init__(name)
        self.lr = lr

    def setup(self, fast_init: bool = False) -> None:
        self.net = nn.Sequential(
            *(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
        )
        self.optimizer = helios.optim.AdamW(lr=self.lr)

    def loss(self, batch: Any) -> Any:
        x, y = batch
        logits = self.net(x)
        return F.cross_entropy(logits, y), {"accuracy": logits.argmax(1) == y}


class Clock(helios.Plugin):
    """Reads the clocks at the start and the end of the training."""

    def __init__(self) -> None:
        super().__init__("clock")
        self.began = self.took = (0.0, 0.0)

    def on_training_start(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_training_end(self) -> None:
        wall, cpu = self.began
        self.took = time.perf_counter() - wall, time.process_time() - cpu


def measure(count: int, sweep: bool, updates: int) -> tuple[float, float]:
    """Return the wall and the CPU time of a step in microseconds; of one alone if count is 0."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4096, 64, generator=generator), torch.arange(4096) % 10
    data = helios.data.from_datasets(train=(x, y), batch_size=32)
    clock = Clock()
    trainer = helios.Trainer(
        train_unit="iteration",
        total_steps=updates,
        use_cpu=True,
        print_banner=False,
        plugins=[clock],
    )
    if count == 0:
        assert trainer.fit(Mlp("one"), data)
    else:
        members = [Mlp(f"m{k}", 1e-3 * (k + 1) if sweep else 1e-3) for k in range(count)]
        assert helios.fit_many(trainer, members, data)
    wall, cpu = clock.took
    return wall / updates * 1e6, cpu / updates * 1e6


def main() -> None:
    """Measure, and print the times and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--updates", type=int, default=200, help="in each fit")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sweep", action="store_true", help="a learning rate for each member")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for count in (0, args.members):
        measure(count, args.sweep, args.updates)
    rounds = [
        (measure(0, args.sweep, args.updates), measure(args.members, args.sweep, args.updates))
        for _ in range(args.rounds)
    ]
    for clock, name in enumerate(("wall", "CPU")):
        one = [a[clock] for a, _ in rounds]
        many = [b[clock] for _, b in rounds]
        ratio = statistics.median(b / a for a, b in zip(one, many, strict=True))
        print(
            f"{name}: one {statistics.median(one):.0f} us a step (least {min(one):.0f}), "
            f"{args.members} at once {statistics.median(many):.0f} us (least {min(many):.0f}): "
            f"{ratio:.2f} times (least over least {min(many) / min(one):.2f})"
        )


if __name__ == "__main__":
    main()
