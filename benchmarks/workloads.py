"""What is trained: four small networks, and the batches that all contestants get in one order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LEARNING_RATE = 1e-3
_POOL = 256  # batches, gone through again and again

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Workload:
    """A network and its batches.

    Args:
        name: for the command line.
        label: for tables.
        make: returns the network; draws from torch's global generator.
        draw: returns a batch; draws from the generator given.
        steps: updates in a turn of the bare setting, so that a turn takes about 100 ms or more.
    """

    name: str
    label: str
    make: Callable[[], nn.Module]
    draw: Callable[[torch.Generator], Batch]
    steps: int

    def network(self) -> nn.Module:
        """Return the network with the weights that every contestant starts from."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.make()

    def batches(self) -> list[Batch]:
        """Return the batches, in their order."""
        generator = torch.Generator().manual_seed(1)
        return [self.draw(generator) for _ in range(_POOL)]


def criterion(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the loss of every workload: f32[] of ``output: f32[..., classes]``."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


class Criterion(nn.Module):
    """`criterion` for those who want a module."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return criterion(output, target)


class Block(nn.Module):
    """A narrow residual layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + F.relu(self.norm(self.linear(x)))


class Attention(nn.Module):
    """Causal self-attention; without biases, of which the softmax would not see the keys'."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class Layer(nn.Module):
    """A layer of the transformer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads=4)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A causal language model."""

    def __init__(self, vocabulary: int = 64, width: int = 64, length: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.layers = nn.Sequential(*(Layer(width) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layers(self.tokens(x) + self.positions)))


class Parallel(nn.Module):
    """Narrow layers side by side: as many tensors as wanted, and gradients that do not vanish."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([layer(x) for layer in self.layers]).mean(0)


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def _deep() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), *(Block(64) for _ in range(20)), nn.Linear(64, 10))


def _conv() -> nn.Module:
    def layer(before: int, after: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU()]

    layers = [*layer(3, 16, 1), *layer(16, 32, 2), *layer(32, 32, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def _vectors(generator: torch.Generator) -> Batch:
    x = torch.randn(32, 64, generator=generator)
    noise = torch.randn(32, 10, generator=generator)
    return x, (x[:, :10] + x[:, 10:20] + noise).argmax(1)


def _narrow(generator: torch.Generator) -> Batch:
    x = torch.randn(8, 16, generator=generator)
    return x, x.argmax(1)


def _images(generator: torch.Generator) -> Batch:
    y = torch.randint(10, (16,), generator=generator)
    x = torch.randn(16, 3, 16, 16, generator=generator)
    return x + y.view(-1, 1, 1, 1) / 10, y


def _text(generator: torch.Generator) -> Batch:
    """Draw sequences in which a token is mostly the one before it plus 1."""
    jumps = torch.randint(64, (8, 65), generator=generator)
    keeps = torch.rand(8, 65, generator=generator) < 0.8
    tokens = torch.where(keeps, torch.ones(8, 65, dtype=torch.long), jumps).cumsum(1) % 64
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        Workload("mlp", "MLP 64-128-128-10, batch 32", _mlp, _vectors, 400),
        Workload("deep", "residual MLP, 20 blocks of width 64, batch 32", _deep, _vectors, 50),
        Workload("transformer", "transformer, 2 layers, d=64, 8 x 64 tokens",
                 Transformer, _text, 50),
        Workload("conv", "3 convolutions with batch norm, 16 x 16 images, batch 16",
                 _conv, _images, 50),
    )
}  # fmt: skip
"""Every workload by its name."""


def find(name: str) -> Workload:
    """Return a workload by its name; ``"layers-N"`` has N narrow layers.

    Example:
        >>> sum(1 for _ in find("layers-4").network().parameters())
        4
    """
    if name in WORKLOADS:
        return WORKLOADS[name]
    layers = int(name.removeprefix("layers-"))

    label, steps = f"{layers} layers of width 16", max(2000 // layers, 20)
    return Workload(name, label, lambda: Parallel(layers), _narrow, steps)


def parameters_of(net: Any) -> list[torch.Tensor]:
    """Return the parameters of a network in their order."""
    return [p.detach() for p in net.parameters()]
