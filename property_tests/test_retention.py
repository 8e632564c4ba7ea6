"""G1: whatever happens to a run, retention never takes what it must keep, and keeps no more."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helios.errors import CheckpointError, CorruptCheckpointError
from helios.trainer.store import Retention, Store, pin_checkpoint, unpin_checkpoint
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.reading import committed
from tests.trainer.store.bench import in_memory
from tests.trainer.store.faulty import CountingFs
from tests.trainer.store.tiny import NAME, UnsyncedFs, payload, save

retentions = st.builds(
    Retention,
    last=st.integers(0, 3),
    best=st.integers(0, 2),
    every=st.none() | st.integers(1, 3),
)
scores = st.none() | st.sampled_from([0.0, 1.0, 2.0])


class Checkpoints(RuleBasedStateMachine):
    """A real store in a real folder, and beside it what is known to be whole."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="helios-", dir=in_memory()))
        self.folder = self.root / NAME
        self.fs = CountingFs(UnsyncedFs())
        self.step = 0
        self.broken: set[str] = set()
        self.noticed: set[str] = set()
        """The broken ones that the store knows of: a run looks back to the first that is whole."""

    @initialize(retention=retentions)
    def begin(self, retention):
        self.retention = retention
        self.store = Store(self.folder, retention, self.fs)

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
        shutil.rmtree(self.root)

    def on_disk(self) -> dict[str, Manifest]:
        """Return the manifests of the checkpoints that are not known to be broken."""
        found = committed(UnsyncedFs(), self.folder, NAME)
        return {e.stem: e.manifest for e in found if e.manifest and e.stem not in self.noticed}

    def whole(self) -> dict[str, Manifest]:
        """Return the manifests of the checkpoints that nobody broke."""
        return {stem: m for stem, m in self.on_disk().items() if stem not in self.broken}

    def pinned(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.pin")}

    def due(self, manifests) -> set[str]:
        """Return those that `Retention.every` keeps."""
        every = self.retention.every
        healthy = [m for m in manifests if m.finite and every]
        return {m.stem for m in healthy if m.counters["current_iteration"] % every == 0}

    def limit(self, manifests) -> int:
        """Return how many there may be after a save."""
        special = self.pinned() | self.due(manifests)
        return max(self.retention.last, 1) + self.retention.best + len(special) + 1

    @rule(saves=st.lists(st.tuples(st.sampled_from([True, True, False]), scores), max_size=4))
    def save_some(self, saves):
        for finite, score in saves:
            self.save(finite, score)

    def save(self, finite, score):
        before = self.on_disk()
        most = 0

        def look(operation):
            nonlocal most
            most = max(most, len(self.on_disk()))

        self.fs.watch = look
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a broken one that would have taken a place
            manifest = self._save(finite, score)
        self.fs.watch = None
        after = self.on_disk()
        known = before | {manifest.stem: manifest}
        whole = {stem: m for stem, m in known.items() if stem not in self.broken}
        assert manifest.stem in after, "the one just written"
        assert known.keys() & self.pinned() <= after.keys(), "a pinned one"
        healthy = sorted((m for m in whole.values() if m.finite), key=lambda m: m.sequence)
        assert {m.stem for m in healthy[-max(self.retention.last, 1) :]} <= after.keys(), "the last"
        by_score = sorted(
            (m for m in healthy if m.score is not None), key=lambda m: (m.score, m.sequence)
        )
        assert {m.stem for m in by_score[: self.retention.best]} <= after.keys(), "the best"
        assert self.due(whole.values()) <= after.keys(), "one that every keeps"
        unread = len(self.store._broken & after.keys())  # not once: the store leaves them alone
        assert len(after) - unread <= self.limit(known.values()), "too many"
        assert most <= max(len(before), self.limit(known.values()) + unread) + 1, (
            "too many during the save"
        )

    def _save(self, finite, score) -> Manifest:
        self.step += 1
        return save(
            self.store,
            self.step,
            finite=finite,
            score=score,
            metric=None if score is None else "loss",
            mode="min",
        )

    @rule(operation=st.integers(1, 30), lasting=st.booleans(), after=st.booleans())
    def failed_save(self, operation, lasting, after):
        before = self.on_disk()
        self.fs.at = self.fs.count + operation
        self.fs.lasting, self.fs.after = lasting, after
        self.fs.fault = lambda: OSError(errno.EIO, "a bad block")
        saved = None
        with warnings.catch_warnings(), contextlib.suppress(CheckpointError):
            warnings.simplefilter("ignore")  # of a removal that failed
            saved = self._save(True, None)
        self.fs.heal()
        if saved is None:
            assert before.keys() <= self.on_disk().keys(), "a failed save removes nothing"
        else:
            assert saved.stem in self.on_disk()

    @rule(retention=retentions)
    def restart(self, retention):
        whole, there = self.whole(), self.on_disk()
        self.store.close()
        self.retention = retention
        self.fs = CountingFs(UnsyncedFs())
        self.store = Store(self.folder, retention, self.fs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if whole:
                content, path = self.store.last_valid()
                newest = max(whole.values(), key=lambda m: m.position)
                assert path.stem == newest.stem
                self.step = content["training_state"]["current_iteration"]
            elif there or self.noticed:
                with pytest.raises(CorruptCheckpointError):
                    self.store.last_valid()
        self._notice(max((m.position for m in whole.values()), default=(-1, 0, 0, 0)))

    def _notice(self, newest) -> None:
        """Note which broken ones a run has met on its way to the newest whole one."""
        found = committed(UnsyncedFs(), self.folder, NAME)
        self.noticed = {e.stem for e in found if e.manifest is None} | {
            e.stem
            for e in found
            if e.manifest and e.stem in self.broken and e.manifest.position > newest
        }

    @precondition(lambda self: self.step > 1)
    @rule(back=st.integers(1, 5))
    def begin_again_from_a_lower_step(self, back):
        self.step = max(self.step - back, 0)

    @rule(retention=retentions, kind=st.sampled_from(["pth", "json"]))
    def corrupt_the_newest(self, retention, kind):
        whole = self.whole()
        if whole:
            newest = max(whole.values(), key=lambda m: m.position).stem
            path = self.folder / f"{newest}.{kind}"
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
            self.broken.add(newest)
            self.restart(retention)  # a run looks at what is there when it begins

    @rule(choice=st.integers(0, 9))
    def pin(self, choice):
        there = sorted(self.on_disk())
        if there:
            pin_checkpoint(self.folder / f"{there[choice % len(there)]}.pth")

    @rule(choice=st.integers(0, 9))
    def unpin(self, choice):
        there = sorted(self.pinned() & self.on_disk().keys())
        if there:
            unpin_checkpoint(self.folder / f"{there[choice % len(there)]}.pth")

    @invariant()
    def what_is_there_is_whole(self):
        if self.folder.exists():
            for manifest in self.whole().values():
                step = int(manifest.counters["current_iteration"])
                assert (self.folder / manifest.file).read_bytes() == payload(step)

    @invariant()
    def what_is_known_to_be_broken_stays(self):
        names = set(os.listdir(self.folder)) if self.folder.exists() else set()
        assert {f"{stem}.{kind}" for stem in self.noticed for kind in ("pth", "json")} <= names


TestCheckpoints = Checkpoints.TestCase
TestCheckpoints.settings = settings(
    max_examples=min(settings().max_examples * 5 // 3, 5_000), stateful_step_count=25
)
