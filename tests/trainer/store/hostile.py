"""The corpus of hostile files, whole: the table is ``FILES`` and ``PATHS``."""

from tests.trainer.store import (
    hostile_archives,
    hostile_code,
    hostile_formats,
    hostile_tensors,
)
from tests.trainer.store.corpus import FILES, PATHS, Hostile

MODULES = hostile_code, hostile_tensors, hostile_archives, hostile_formats

__all__ = ["FILES", "MODULES", "PATHS", "Hostile"]
