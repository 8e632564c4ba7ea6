"""Imports, once and for all forks, what a fit imports on its way."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from tests.torture.fits import Configuration, fit


def warm(root: Path) -> None:
    """Let a fork run fits, and import here what it imported: this process never runs autograd."""
    listing = root / "modules"
    before = set(sys.modules)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            for number, workers in enumerate((0, 2)):
                folder = root / f"warm-{number}"
                folder.mkdir()
                fit(Configuration("epochs", workers, in_background=True, last=2), folder, 0)
            listing.write_text("\n".join(name for name in sys.modules if name not in before))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status != 0:
        raise RuntimeError("a fit in a fork has failed; its error stands above")
    for name in listing.read_text().splitlines():
        if "__main__" not in name:
            importlib.import_module(name)
