"""The table of hostile files: ``FILES`` for the guard, ``PATHS`` for what opens a file.

A maker takes a folder and returns the path of the file that it made there. What runs code writes
the file ``ran`` into that folder.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.trainer.store.forge import entries, pack, program


class Hostile(NamedTuple):
    name: str
    does: str
    refusal: str  # a regular expression for the message
    make: Callable[[Path], Path]


FILES: list[Hostile] = []
PATHS: list[Hostile] = []


def hostile(does: str, refusal: str) -> Callable[[Callable[[Path], bytes]], Callable[[Path], Path]]:
    """Enter a maker of bytes into the table."""

    def enter(content: Callable[[Path], bytes]) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            path = folder / f"{content.__name__}.pth"
            path.write_bytes(content(folder))
            return path

        FILES.append(Hostile(content.__name__, does, refusal, make))
        return make

    return enter


def path_level(does: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Enter a maker of something that must not even be opened."""

    def enter(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        PATHS.append(Hostile(make.__name__, does, "", make))
        return make

    return enter


FOUR = bytes(16)
"""A storage of four numbers."""


class Reduced:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickled(value: Any, *storages: bytes) -> bytes:
    return pack(entries(pickle.dumps(value, 2), *storages))


def written(body: bytes, *storages: bytes) -> bytes:
    return pack(entries(program(body), *storages))


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def touch(folder: Path) -> str:
    return f"touch {folder / 'ran'}"
