"""The manifest of a checkpoint: a small JSON file that is written last, and makes it count.

It holds what can be known about a checkpoint without opening it, and the digest by which its bytes
are recognised. Its own last field is a digest of everything before it, so that a changed manifest
is recognised as well, before a byte of it is parsed.
"""

from __future__ import annotations

import msgspec

from helios.errors import CorruptCheckpointError
from helios.functional.plan import Plan
from helios.functional.state import COUNTERS
from helios.trainer.store.sealed import parse, seal

SCHEMA = 2
"""The version of the format of checkpoints and manifests; higher ones are refused."""

LIMIT = 1 << 20
"""Bytes that a manifest may have; one has some two thousand."""

_TAIL = b',"check":"%s"}\n'


class PartFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file that belongs to a checkpoint, beside its ``.pth``.

    Args:
        name: its name in the folder.
        size: its bytes.
        sha256: the digest of its bytes, as 64 hexadecimal digits.
    """

    name: str
    size: int
    sha256: str


def part_names(stem: str, count: int) -> list[str]:
    """Return the names of the parts of a checkpoint: their index, and then those of the ranks.

    Example:
        >>> part_names("m_epoch_1_iter_2", 3)[1:]
        ['m_epoch_1_iter_2.0.shard', 'm_epoch_1_iter_2.1.shard']
    """
    return [f"{stem}.index", *(f"{stem}.{number}.shard" for number in range(count - 1))][:count]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a committed checkpoint.

    Args:
        schema: the version of the format.
        version: the version of helios that wrote it.
        file: the name of the checkpoint beside the manifest.
        size: its bytes.
        sha256: the digest of its bytes, as 64 hexadecimal digits.
        sequence: the number of the commit in its folder, from 1: which checkpoint came after which.
        counters: the eight counters of the state; ``average_iter_time`` is wall clock.
        window_iter: micro-batches in the open accumulation window.
        seed: the seed of the run.
        plan: the calendar of the run.
        fingerprint: what the bits of the run depend on beside the state.
        metric: the validation metric that counts as progress, None without a validation.
        mode: ``"min"`` or ``"max"``: where that metric is good.
        score: its value at this very state; None if it was not validated, or was not finite.
        finite: whether every parameter is finite.
        skipped: updates left out so far because they were not finite.
        parts: of a run whose parameters are sharded over ranks, the other files that hold them;
            left out where there are none, as it always was.
    """

    schema: int
    version: str
    file: str
    size: int
    sha256: str
    sequence: int
    counters: dict[str, int | float]
    window_iter: int
    seed: int
    plan: Plan
    fingerprint: dict[str, str | int | bool]
    metric: str | None = None
    mode: str | None = None
    score: float | None = None
    finite: bool = True
    skipped: int = 0
    parts: tuple[PartFile, ...] | msgspec.UnsetType = msgspec.UNSET

    @property
    def files(self) -> tuple[PartFile, ...]:
        """The parts, none for most checkpoints."""
        return () if self.parts is msgspec.UNSET else self.parts

    @property
    def stem(self) -> str:
        """The file's name without its extension."""
        return self.file.removesuffix(".pth")

    @property
    def position(self) -> tuple[int, int, int, int]:
        """Epoch, update, micro-batch and commit: the order of the checkpoints of a run."""
        epoch, update, micro = (
            int(self.counters[name])
            for name in ("global_epoch", "current_iteration", "global_iteration")
        )
        return epoch, update, micro, self.sequence


def encode(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest: one JSON object in one line.

    Law:
        ``decode(encode(m)) == m``, and any other bytes raise
        (``tests/trainer/store/test_manifest.py``).
    """
    return seal(msgspec.json.encode(manifest)[:-1], _TAIL)


def decode(data: bytes, name: str) -> Manifest:
    """Read a manifest.

    Args:
        data: its bytes.
        name: the name of the checkpoint that it should be of, for the check and for errors.

    Raises:
        CorruptCheckpointError: if the bytes are not what `encode` returned for that checkpoint.
        CheckpointVersionError: if a newer helios wrote it.
    """
    manifest = parse(data, _TAIL, Manifest, SCHEMA, name, lambda reason: _corrupt(name, reason))
    if encode(manifest) != data:
        raise _corrupt(name, "it is not in the form in which helios writes it")
    problem = _problem(manifest, name)
    if problem is not None:
        raise _corrupt(name, problem)
    return manifest


def _problem(manifest: Manifest, name: str) -> str | None:
    if manifest.file != name:
        return f"it is the manifest of {manifest.file!r}"
    if manifest.counters.keys() != set(COUNTERS):
        return f"its counters are {sorted(manifest.counters)}"
    if any(
        value < 0 or not isinstance(value, int)
        for counter, value in manifest.counters.items()
        if counter != "average_iter_time"
    ):
        return f"its counters are {manifest.counters}"
    if min(manifest.size, manifest.sequence, manifest.window_iter, manifest.skipped) < 0:
        return "a number of it is negative"
    return _problem_of_parts(manifest)


def _problem_of_parts(manifest: Manifest) -> str | None:
    """Check the names too: nothing that is read or removed by them is outside of the folder."""
    if manifest.parts is msgspec.UNSET:
        return None
    names = [part.name for part in manifest.parts]
    if len(names) < 2 or names != part_names(manifest.stem, len(names)):
        return f"its parts are {names[:4]}"
    if any(part.size < 0 for part in manifest.parts):
        return "a part of it has a negative size"
    return None


def _corrupt(name: str, reason: str) -> CorruptCheckpointError:
    return CorruptCheckpointError(
        f"the manifest of {name!r} cannot be read: {reason}. It was cut short, changed, or written "
        "by something else."
    )
