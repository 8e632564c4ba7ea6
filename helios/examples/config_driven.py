"""Train what a file names: model, network, loss, optimizer, metrics, data, plugins, trainer.

Run it with ``python -m helios.examples.config_driven``, or with the path of a file of your own
after it. What can be named is what is registered; see ``docs/registries.md``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import helios
from helios.core.config import build, call, check_keys, read_config
from helios.data import DATASET_REGISTRY
from helios.errors import ConfigError
from helios.model import LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY, NETWORK_REGISTRY
from helios.optim import OPTIMIZER_REGISTRY, RATE_REGISTRY
from helios.plugins import PLUGIN_REGISTRY

DEFAULT = Path(__file__).with_suffix(".toml")


@NETWORK_REGISTRY.register
def perceptron(sizes: list[int]) -> nn.Module:
    """Return linear layers of these sizes, with rectifiers between them."""
    layers: list[nn.Module] = []
    for width, next_width in itertools.pairwise(sizes):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@DATASET_REGISTRY.register
def blobs(samples: int, seed: int = 0, spread: float = 0.6) -> torch.utils.data.TensorDataset:
    """Return points around three centres, and which centre each belongs to."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=draw)
    centres = torch.tensor([[0.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    points = centres[labels] + spread * torch.randn(samples, 2, generator=draw)
    return torch.utils.data.TensorDataset(points, labels)


@METRIC_REGISTRY.register
def correct() -> Any:
    """Return a metric that tells of each sample whether its label was found."""
    return lambda logits, labels: logits.argmax(1) == labels


@PLUGIN_REGISTRY.register
class Noise(helios.Plugin):
    """Adds noise to the points that are trained on."""

    def __init__(self, scale: float) -> None:
        super().__init__("noise", helios.plugins.UniquePluginOverrides(training_batch=True))
        self.scale = scale

    def process_training_batch(self, batch: Any, state: helios.TrainingState) -> Any:
        """Return the batch with noise."""
        points, labels = batch
        return points + self.scale * torch.randn_like(points), labels


@MODEL_REGISTRY.register
class Classifier(helios.Model):
    """A network with a loss, an optimizer and metrics, all of which are named elsewhere."""

    def __init__(self, save_name: str, config: Mapping[str, Any]) -> None:
        super().__init__(save_name)
        self.config = config
        rates = {"lr": RATE_REGISTRY}
        self.optimizer = build(OPTIMIZER_REGISTRY, config["optimizer"], "optimizer", nested=rates)
        self.criterion: Any = build(LOSS_REGISTRY, config["loss"], "loss")
        metrics = check_keys(config.get("metrics", {}), "metrics", known=config.get("metrics", ()))
        built = {n: build(METRIC_REGISTRY, table, f"metrics.{n}") for n, table in metrics.items()}
        self.functions = {n: m for n, m in built.items() if not hasattr(m, "update")}
        self.objects: Any = nn.ModuleDict({n: m for n, m in built.items() if hasattr(m, "update")})

    def setup(self, fast_init: bool = False) -> None:
        """Build the network: its weights are drawn from the seed of the run."""
        self.net = build(NETWORK_REGISTRY, self.config["network"], "network")

    def loss(self, batch: Any) -> Any:
        """Return the loss and the metrics; those with a state are for validation alone."""
        points, labels = batch
        logits = self.net(points)
        metrics = {name: metric(logits, labels) for name, metric in self.functions.items()}
        if not self.training:
            for name, metric in self.objects.items():
                metric.update(logits, labels)
                metrics[name] = metric
        return self.criterion(logits, labels), metrics


def assemble(config: Any) -> tuple[helios.Trainer, helios.Model, helios.DataModule]:
    """Make what a configuration names.

    Raises:
        ConfigError: if something in it is wrong.
    """
    needed = ["model", "network", "loss", "optimizer", "data", "trainer"]
    config = check_keys(config, "", needed=needed, known=["metrics", "plugins"])
    model = build(MODEL_REGISTRY, config["model"], "model", given={"config": config})
    data = check_keys(config["data"], "data", needed=["train", "valid", "batch_size"])
    sets = {
        name: build(DATASET_REGISTRY, data[name], f"data.{name}") for name in ("train", "valid")
    }
    loaders = {"batch_size": data["batch_size"]}
    datamodule = call(helios.data.from_datasets, loaders, "data", given=sets)
    plugins = [
        build(PLUGIN_REGISTRY, table, f"plugins[{index}]")
        for index, table in enumerate(config.get("plugins", []))
    ]
    trainer = call(helios.Trainer, config["trainer"], "trainer", given={"plugins": plugins})
    trainer.train_exceptions.append(ConfigError)
    return trainer, model, datamodule


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train; return the metrics of the last validation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", default=DEFAULT, help=".toml, .yaml or .json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # more of them only get into each other's way in so small a network
    try:
        trainer, model, datamodule = assemble(read_config(args.path))
        fitted = trainer.fit(model, datamodule)
    except ConfigError as error:
        raise SystemExit(f"{args.path}: {error}") from None
    if not fitted:
        raise SystemExit(1)
    print(f"model: {type(model).__name__}, saved as {model.save_name}")
    print(f"network: {model.net}")
    print(f"loss: {model.criterion}")
    print(f"optimizer: {model.optimizer}")
    print(f"plugins: {', '.join(trainer.plugins) or 'none'}")
    print(", ".join(f"{name} {value:.4g}" for name, value in model.valid_metrics.items()))
    return dict(model.valid_metrics)


if __name__ == "__main__":
    main()
