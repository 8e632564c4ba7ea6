"""What ranks send each other: collectives and bytes of an update on 2 and 4 ranks.

Run it with ``python -m benchmarks.ranks`` on Linux, on a machine whose loopback interface nobody
else uses: the bytes are those that the interface counted, with all that the transport adds.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import helios
from helios.trainer.ranks import exchange

_COUNTED = ("all_reduce", "broadcast", "all_gather", "all_gather_single", "all_to_all_single")
_COUNTED += ("all_gather_into_tensor", "reduce_scatter_tensor", "reduce_scatter_single", "barrier")


class Wide(helios.Model):
    """A million parameters; reads the counters after two updates, on every rank at the same place.

    Args:
        weighted: whether the loss is a sum with a weight.
        updates: the two updates.
    """

    def __init__(self, weighted: bool = False, updates: tuple[int, ...] = ()) -> None:
        super().__init__("wide")
        self.weighted, self.updates = weighted, updates
        self.calls = 0

    def setup(self, fast_init: bool = False) -> None:
        self.net = nn.Sequential(nn.Linear(512, 1024), nn.Tanh(), nn.Linear(1024, 512))
        self.optimizer = helios.optim.SGD(lr=1e-3)
        for place, name in [(exchange, "_all_gather"), *((dist, name) for name in _COUNTED)]:
            function = getattr(place, name, None)
            if function is not None:
                setattr(place, name, self._counting(function))

    def loss(self, batch: Any) -> Any:
        x, y = batch
        errors = (self.net(x) - y).square()
        return helios.Loss(errors.sum(), weight=errors.numel()) if self.weighted else errors.mean()

    def on_training_batch_end(self, state: Any, should_log: bool = False) -> None:
        if state.window_iter or state.current_iteration not in self.updates:
            return
        calls = self.calls
        dist.barrier()  # every rank is at the end of this update, and goes on only after the next
        sent = _loopback()
        dist.barrier()
        self.calls = calls
        self.trainer.queue.put((state.current_iteration, self.rank, calls, sent))

    def _counting(self, function: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return function(*args, **kwargs)

        return called


def average(state, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations
    """Reduce a bucket as DDP does by itself, where it is counted."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0] / dist.get_world_size())


def _loopback() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise SystemExit("this needs Linux, and its loopback interface")


def measure(
    ranks: int, window: int, weighted: bool, engine: str, updates: int
) -> tuple[float, float]:
    """Return collectives and MiB sent by a rank in an update."""
    first, last = 4, 4 + updates
    # One epoch holds them all: ranks talk to each other at its end.
    x = torch.randn(32 * window * (last + 2), 512, generator=torch.Generator().manual_seed(0))
    parallel = {"DDP": helios.DDP(comm_hook=average), "FSDP": helios.FSDP(wrap=(nn.Linear,))}
    trainer = helios.Trainer(
        train_unit="iteration",
        total_steps=last + 1,
        accumulation_steps=window,
        cpu_ranks=ranks,
        reduction="canonical" if engine == "canonical" else "mean",
        parallel=parallel.get(engine),
        print_banner=False,
    )
    data = helios.data.from_datasets(train=(x, x), batch_size=32)
    if not trainer.fit(Wide(weighted, (first, last)), data):
        raise SystemExit(1)
    told = [trainer.queue.get(timeout=60) for _ in range(2 * ranks)]
    calls = {(update, rank): count for update, rank, count, _ in told}
    sent = {update: max(s for u, _, _, s in told if u == update) for update in (first, last)}
    each = {calls[last, rank] - calls[first, rank] for rank in range(ranks)}
    if len(each) != 1:
        raise SystemExit(f"the ranks ran different numbers of collectives: {each}")
    return each.pop() / updates, (sent[last] - sent[first]) / ranks / updates / (1 << 20)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=20)
    args = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    model = Wide()
    model.prepare(0)
    size = sum(p.nbytes for p in model.parameters()) / (1 << 20)
    print(f"gradients: {size:.2f} MiB; {sys.platform}, torch {torch.__version__}")
    print("| engine | micro-batches | loss | ranks | collectives | MiB sent by a rank |")
    print("|---|---|---|---|---|---|")
    for engine in ("DDP", "canonical", "FSDP"):
        for window, weighted in ((1, False), (4, False), (4, True)):
            for ranks in (2, 4):
                calls, sent = measure(ranks, window, weighted, engine, args.updates)
                loss = "weighted" if weighted else "mean"
                print(
                    f"| {engine} | {window} | {loss} | {ranks} | {calls:g} | {sent:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
