"""Train a generator against a judge, on eight spots in the plane.

Run it with ``python -m helios.examples.gan``. Each step folds two objectives: first the judge
learns to tell real points from made ones, and then the generator is updated against the judge of
that very moment. Both are in one state, so the run goes on exactly where it was left.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import helios

SPOTS = 8
SPREAD = 0.05


def centres() -> torch.Tensor:
    """Return ``f32[8, 2]``, the middles of the spots, on the unit circle."""
    angles = torch.arange(SPOTS) * (2 * math.pi / SPOTS)
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def load_data(samples: int = 2048) -> helios.DataModule:
    """Return points of the spots, to train on and to validate with."""
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(SPOTS, (samples,), generator=generator)
    points = centres()[which] + SPREAD * torch.randn(samples, 2, generator=generator)
    return helios.data.from_datasets(train=(points,), valid=(points[:512],), batch_size=128)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    """Return a network with two hidden layers."""
    return nn.Sequential(
        *(nn.Linear(inputs, 64), nn.LeakyReLU(0.2)),
        *(nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)),
    )


class Gan(helios.Model):
    """Two networks, two losses, two optimizers."""

    def setup(self, fast_init: bool = False) -> None:
        """Build both networks."""
        self.generator, self.judge = mlp(8, 2), mlp(2, 1)
        self.average = helios.optim.average(decay=0.99)  # what is validated
        self.monitor = helios.Monitor("distance")

    def sample(self, count: int) -> torch.Tensor:
        """Return ``f32[count, 2]``, made points."""
        made: torch.Tensor = self.generator(torch.randn(count, 8))
        return made

    def judge_loss(self, batch: Any) -> Any:
        """Return how badly the judge tells real points from made ones."""
        [real] = batch
        says_real, says_made = self.judge(real), self.judge(self.sample(len(real)).detach())
        right = torch.cat([says_real > 0, says_made < 0])
        return F.softplus(-says_real).mean() + F.softplus(says_made).mean(), {"told_apart": right}

    def generator_loss(self, batch: Any) -> Any:
        """Return how badly made points pass for real ones."""
        [real] = batch
        return F.softplus(-self.judge(self.sample(len(real)))).mean()

    def objectives(self) -> Sequence[helios.Objective]:
        """Return the two losses, with what they train."""
        adam = helios.optim.Adam(lr=1e-3, betas=(0.5, 0.9))
        return [
            helios.Objective("judge", self.judge_loss, adam, modules=(self.judge,)),
            helios.Objective("generator", self.generator_loss, adam, modules=(self.generator,)),
        ]

    def valid_step(self, batch: Any, step: int) -> Any:
        """Return how far made points are from the nearest spot, and the share of spots reached."""
        points = self.sample(512)
        distances = torch.cdist(points, centres())
        reached = (distances < 4 * SPREAD).sum(0) >= 512 // SPOTS // 8
        return {"distance": distances.min(1).values, "reached": reached.float().mean()}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train; return the metrics of the last validation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=60, help="train for so many in all")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where files go")
    args = parser.parse_args(argv)

    torch.set_num_threads(1)  # more of them only get into each other's way in so small a network
    trainer = helios.Trainer(
        total_steps=args.epochs,
        valid_frequency=5,
        chkpt_frequency=5,
        chkpt_root=args.runs,
        enable_progress_bar=True,
        use_cpu=True,
    )
    model = Gan("gan")
    if not trainer.fit(model, load_data()):
        raise SystemExit(1)
    metrics = model.valid_metrics
    if metrics:
        print(
            f"{metrics['reached'] * SPOTS:.0f} of {SPOTS} spots are reached; made points are "
            f"{metrics['distance']:.3f} from the nearest"
        )
    return metrics


if __name__ == "__main__":
    main()
