"""Reads files as helios does, each in a process of its own with bounds and a witness.

Run as a program: paths come in on the standard input, one a line, and one line of JSON goes out for
each. Torch is imported once; a process is forked for every file.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from helios.errors import CheckpointError
from helios.trainer.store.guard import check_archive, check_content

ROOT = Path(__file__).parents[3]
MEMORY = 2**30  # bytes over what the imports take
SECONDS = 5
WATCHED = ("exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn")
WATCHED += ("subprocess.", "socket.", "ctypes.", "os.mkdir", "os.remove", "os.rename", "shutil.")


def read(path: str) -> dict[str, Any]:
    """Read a file as a checkpoint is read; return what came of it."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            check_archive(file, size)
            content = torch.load(file, map_location="cpu", weights_only=True)
            check_content(content, size)
    except CheckpointError as error:
        return {"refused": str(error), "kind": type(error).__name__}
    return {"accepted": True}


def jailed(paths: Iterable[Any]) -> list[dict[str, Any]]:
    """Read files, each in a process of its own; return what came of each."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainer.store.jail"],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def watch(events: list[str]) -> None:
    """Note from now on what no reading of a checkpoint does."""
    loaded = frozenset(sys.modules)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(WATCHED) or (event == "import" and arguments[0] not in loaded):
            events.append(f"{event} {arguments[0] if arguments else ''}"[:200])
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & 0o3:
            events.append(f"open for writing {arguments[0]}")

    sys.addaudithook(hook)


def confined(path: str, act: Callable[[str], dict[str, Any]] = read) -> dict[str, Any]:
    """Read a file in a process of its own, or do something else there."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(sender, json.dumps(_confined(path, act)).encode()[:60_000])
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as file:
        data = file.read()
    _, status = os.waitpid(child, 0)
    if not data:
        return {"failed": f"the process ended with status {status}", "events": []}
    return json.loads(data)


def _confined(path: str, act: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    events: list[str] = []
    try:
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        signal.alarm(4 * SECONDS)  # for what waits instead of computing, on a busy machine
        watch(events)
        outcome = act(path)
    except BaseException as error:
        outcome = {"failed": f"{type(error).__name__}: {error}"}
    return {**outcome, "events": list(events)}


def main() -> None:
    for path in sys.stdin.read().splitlines():
        warm = os.path.basename(path).startswith("warm")  # imports what every reading needs
        outcome = read(path) if warm else confined(path)
        sys.stdout.write(json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main()
