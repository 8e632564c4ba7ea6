"""How long training stands still for a checkpoint: in the background, synchronously, as a copy.

    python -m benchmarks.checkpoint_stall [--parameters 1e6 1e7] [--rounds 20] [--folder DIR]

Each round measures, one after the other and in turning order: a plain copy of every tensor of the
checkpoint into memory that is there already; a plain ``clone`` of them, into fresh memory; the call
of an asynchronous save, until it returns; that of a synchronous one. The write in the background is
waited for between two measurements, outside of them. Printed are medians, and medians of the ratios
to the plain copy of the same round, with the quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import helios
from helios.functional.plan import Plan
from helios.trainer.saving import Saver
from helios.trainer.store import Store, state_content


class Mlp(helios.Model):
    """Square layers; AdamW keeps two more tensors for each parameter."""

    def __init__(self, parameters: int) -> None:
        super().__init__("mlp")
        self.width = max(int((parameters / 4) ** 0.5), 1)

    def setup(self, fast_init: bool = False) -> None:
        self.net = nn.Sequential(*(nn.Linear(self.width, self.width) for _ in range(4)))
        self.optimizer = helios.optim.AdamW(lr=1e-3)

    def loss(self, batch: Any) -> torch.Tensor:
        return F.mse_loss(self.net(batch), batch)


def tensors_of(content: Any) -> list[torch.Tensor]:
    """Return the tensors of a checkpoint, each memory once."""
    found: dict[int, torch.Tensor] = {}

    def visit(node: Any) -> None:
        if isinstance(node, torch.Tensor):
            found.setdefault(node.data_ptr(), node.detach())
        elif isinstance(node, dict):
            for value in node.values():
                visit(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                visit(value)

    visit(content)
    return list(found.values())


def timed(function: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(parameters: int, rounds: int, folder: Path) -> None:
    """Measure one size, and print its rows."""
    model = Mlp(parameters)
    state = helios.init_state(model, seed=0)
    step = helios.make_step(model)
    batch = torch.randn(8, model.width)
    for _ in range(3):
        state = step(state, batch, donate=True)
    tensors = tensors_of(state_content(state))
    megabytes = sum(t.numel() * t.element_size() for t in tensors) / 2**20
    buffers = [torch.zeros_like(t) for t in tensors]

    def saver(name: str, *, in_background: bool) -> Saver:
        model.save_name = name
        store = Store(folder / name, helios.Retention(last=1))
        return Saver(store, model, Plan(), {}, {}, lambda _: None, lambda _: None, {},
                     in_background=in_background)  # fmt: skip

    def call(save: Saver, name: str) -> None:
        model.save_name = name
        save(state)

    background, synchronous = (
        saver("background", in_background=True),
        saver("synchronous", in_background=False),
    )
    ways: dict[str, Callable[[], Any]] = {
        "plain copy": lambda: [b.copy_(t) for b, t in zip(buffers, tensors, strict=True)],
        "plain clone": lambda: [t.clone() for t in tensors],
        "asynchronous save": lambda: call(background, "background"),
        "synchronous save": lambda: call(synchronous, "synchronous"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 2):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = timed(ways[name])
            background.finish()
            if number >= 2:  # the first rounds make memory and files
                seconds[name].append(taken)
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(values, seconds["plain copy"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"| {megabytes:.0f} MiB | {name} | {1e3 * statistics.median(values):.2f} ms "
            f"| {middle:.2f} ({low:.2f} to {high:.2f}) |",
            flush=True,
        )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parameters", type=float, nargs="+", default=[1e6, 1e7])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="on which disk; a temporary one by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {arguments.rounds} rounds")
    print("| state | way | median | to the plain copy of the same round |\n|---|---|---|---|")
    for parameters in arguments.parameters:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            measure(int(parameters), arguments.rounds, Path(folder))


if __name__ == "__main__":
    main()
