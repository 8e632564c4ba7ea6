"""The process of one contestant: trains in turns, and tells how long each took.

    python -m benchmarks.worker JOB.json

It writes messages, one JSON object a line, to the file descriptor ``send`` of its job, and waits
for a byte on ``wait`` before each turn. Its terminal is its own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contestants import CONTESTANTS, Job
from benchmarks.turns import Cadence, Turns
from benchmarks.workloads import Workload, criterion, find

_KINDS = {".pth", ".pt", ".ckpt"}


def main(path: Path) -> None:
    """Run the job that a file describes."""
    told: dict[str, Any] = json.loads(path.read_text())
    torch.set_num_threads(1)
    send, wait = told["send"], told["wait"]

    def say(message: dict[str, Any]) -> None:
        os.write(send, (json.dumps(message) + "\n").encode())

    def pause() -> None:
        if os.read(wait, 1) != b".":
            raise SystemExit("the parent is gone")

    contestant = CONTESTANTS[told["contestant"]]
    workload = find(told["workload"])
    run = contestant.load()
    folder = path.parent / "files"
    folder.mkdir()
    net, pool = workload.network(), workload.batches()
    first = [p.detach().clone() for p in net.parameters()]
    turns = Turns(pool, Cadence(**told["cadence"]), say, pause, contestant.ahead)
    run(Job(net, turns, told["full"], folder, contestant.variant))
    if not turns.finished:
        raise SystemExit("the loop ended before its last turn")
    assert turns.parameters is not None
    last = turns.parameters()
    vectors = {"first": first, "early": turns.early, "last": last}
    np.savez(path.parent / "parameters.npz", **{k: _flat(v) for k, v in vectors.items()})
    losses = {"before": mean_loss(workload, first, pool), "loss": mean_loss(workload, last, pool)}
    say({**losses, **written(folder)})


def mean_loss(workload: Workload, parameters: list[torch.Tensor], pool: list[Any]) -> float:
    """Return the mean loss over all batches of the workload, with the parameters given."""
    net = workload.network().train()
    with torch.no_grad():
        for into, value in zip(net.parameters(), parameters, strict=True):
            into.copy_(value)
        return float(torch.stack([criterion(net(x), y) for x, y in pool]).mean())


def _flat(tensors: list[torch.Tensor]) -> Any:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()


def written(folder: Path) -> dict[str, int]:
    """Return how many checkpoints and files of TensorBoard there are."""
    root = folder / "checkpoints"
    kept = [p for p in root.iterdir() if p.is_dir() or p.suffix in _KINDS] if root.is_dir() else []
    return {"saves": len(kept), "logs": len(list(folder.rglob("events.out.*")))}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
