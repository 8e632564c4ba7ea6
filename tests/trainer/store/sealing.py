"""Checkpoints as somebody else could have made them: any bytes, with a manifest that fits them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from helios.functional.plan import Plan
from helios.functional.state import COUNTERS
from helios.trainer.store.commit import load_manifest
from helios.trainer.store.fs import OsFs
from helios.trainer.store.manifest import SCHEMA, Manifest, encode


def seal(path: Path, **fields: Any) -> Path:
    """Give a file the manifest that its bytes ask for, by the one that it has or a plain one."""
    data = path.read_bytes()
    try:
        manifest = load_manifest(OsFs(), path.parent, path.stem)
    except FileNotFoundError:
        manifest = Manifest(
            schema=SCHEMA,
            version="0",
            file=path.name,
            size=0,
            sha256="",
            sequence=1,
            counters=dict.fromkeys(COUNTERS, 0),
            window_iter=0,
            seed=0,
            plan=Plan(),
            fingerprint={},
        )
    known = {"file": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.with_suffix(".json").write_bytes(encode(replace(manifest, **{**known, **fields})))
    return path


def forge(path: Path, content: Any, **fields: Any) -> Path:
    """Write a content in the place of a checkpoint's, with a manifest that fits."""
    torch.save(content, path)
    return seal(path, **fields)
