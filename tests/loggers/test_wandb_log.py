"""Weights & Biases, offline: the real package writes to a folder, and nothing is sent."""

from __future__ import annotations

import builtins
import importlib.util
import struct
import subprocess
import sys

import pytest

from helios.loggers import WandbLog

pytest.importorskip("wandb")

BLOCK = 32768
SCRIPT = """
import sys, helios, torch
from helios.loggers import WandbLog
from tests import zoo
from tests.trainer.runs import Batches, trainer

class Shows(zoo.Line):
    def on_training_epoch_end(self, current_epoch):
        self.trainer.log.image("mine/image", torch.zeros(1, 4, 4))
        self.trainer.log.histogram("mine/histogram", torch.arange(9.0))
        self.trainer.log.text("mine/text", "words")

if __name__ == "__main__":
    folder, steps = sys.argv[1], int(sys.argv[2])
    log = WandbLog(project="laws", dir=folder)
    made = trainer(folder + "/c", steps=steps, logs=[log], print_frequency=1)
    made.train_exceptions.append(Exception)
    assert made.fit(Shows(), Batches(zoo.regression(5)))
    print(log.identity)
"""


def records(content):
    """Yield the records of a file: chunks of a checksum, a length and a kind, in blocks."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:  # no header fits: padding
            at += BLOCK - at % BLOCK
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def points(folder):
    """Return the steps of the loss in the file of a run."""
    from wandb.proto import wandb_internal_pb2

    found = []
    (path,) = folder.glob("*.wandb")
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {"/".join([i.key, *i.nested_key]).strip("/") for i in record.history.item}
        if "train/loss" in items:
            found.append(record.history.step.num)
    return found


def test_a_resumed_run_goes_on_in_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ids = []
    for steps in ("3", "6"):
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path), steps],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        ids.append(done.stdout.split()[-1])
    assert ids[0] == ids[1]
    folders = sorted((tmp_path / "wandb").glob(f"offline-run-*-{ids[0]}"))
    assert [points(folder) for folder in folders] == [[1, 2, 3], [4, 5, 6]]


def test_a_missing_package_is_an_error_at_once(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a)
    )
    with pytest.raises(ImportError, match=r"pip install 'helios\[wandb\]'"):
        WandbLog()


@pytest.mark.parametrize("name", ["id", "resume"])
def test_what_the_checkpoint_tells_is_refused(name):
    with pytest.raises(TypeError, match=f"received {name}"):
        WandbLog("project", **{name: "x"})


def test_nothing_is_imported_before_a_run(monkeypatch):
    def imported(name, *args, **kwargs):
        assert name.split(".")[0] != "wandb"
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", imported)
    assert WandbLog("project").identity is None
