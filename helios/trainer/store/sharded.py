"""Sharded tensors beneath a checkpoint, by ``torch.distributed.checkpoint``.

Every rank writes its rows of all tensors into a file of its own, as raw bytes. What is where stands
in an index, and which files belong to a checkpoint in its manifest; see
`helios.trainer.store.commit`. In the content of the checkpoint, a marker stands for each tensor.

References:
    https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from helios.errors import CheckpointError, CorruptCheckpointError
from helios.functional.tree import raw
from helios.trainer.store.commit import Part, part_temporary, write_digested
from helios.trainer.store.fs import Fs, read_all
from helios.trainer.store.index import (
    MAX_INDEX,
    VERSION,
    Chunk,
    Index,
    Stored,
    decode_index,
    encode_index,
)
from helios.trainer.store.manifest import Manifest

MARK = "__sharded__"
"""The one key of the dict that stands for a tensor; its value is the tensor's name."""

_ALIGNMENT = 64  # bytes, so that a file could be mapped into memory
_FILE = "\0file"  # no tensor's name: what is told of a rank's file


class _Place(NamedTuple):
    offset: int


class _Written(NamedTuple):
    size: int
    sha256: str


class Writer(StorageWriter):
    """Writes the shards of one checkpoint under hidden names.

    Args:
        fs: the disk.
        folder: where to.
        stem: the name that the checkpoint is to have.
        rank: which rank this is.

    Attributes:
        parts: on rank 0, once all is written: the index and then the files of the ranks.
    """

    def __init__(self, fs: Fs, folder: Path, stem: str, rank: int) -> None:
        self._fs, self._folder, self._stem, self._rank = fs, folder, stem, rank
        self.parts: list[Part] = []

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing: a writer is for one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the folder is there."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Return the plans as they are."""
        return plans

    def write_data(self, plan: Any, planner: Any) -> Future[list[WriteResult]]:
        """Write this rank's rows, and sync them."""
        results = []

        def write(file: Any) -> None:
            for item in plan.items:
                data = raw(planner.resolve_data(item)).numpy().data
                results.append(WriteResult(item.index, len(data), _Place(file.size)))
                file.write(data)
                file.write(b"\0" * (-file.size % _ALIGNMENT))

        path = part_temporary(self._folder, self._stem, self._rank)
        size, digest = write_digested(self._fs, path, write)
        results.append(WriteResult(MetadataIndex(_FILE), size, _Written(size, digest)))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index; on rank 0, when all ranks have written."""
        chunks: dict[str, list[Chunk]] = {}
        for number, of_rank in enumerate(results):
            for result in of_rank:
                where, offset = result.storage_data, result.index.offset
                if isinstance(where, _Place) and offset is not None:
                    [sizes] = [
                        chunk.sizes
                        for chunk in _tensor(metadata, result.index.fqn).chunks
                        if chunk.offsets == offset
                    ]
                    chunk = Chunk(offset[0], sizes[0], number, where.offset)
                    chunks.setdefault(result.index.fqn, []).append(chunk)
        tensors = {}
        for name, rows in chunks.items():
            of = _tensor(metadata, name)
            dtype = str(of.properties.dtype).removeprefix("torch.")
            ordered = tuple(sorted(rows, key=lambda chunk: chunk.start))
            tensors[name] = Stored(dtype, tuple(of.size), ordered)
        data = encode_index(Index(VERSION, tensors))
        files = [of_rank[-1].storage_data for of_rank in results]
        decode_index(data, [file.size for file in files])  # what cannot be read is not written
        path = part_temporary(self._folder, self._stem, None)
        self.parts = [
            Part(path, *write_digested(self._fs, path, lambda file: file.write(data))),
            *(
                Part(part_temporary(self._folder, self._stem, number), *file)
                for number, file in enumerate(files)
            ),
        ]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Tell that there are no names to be checked."""
        return True


def _tensor(metadata: Metadata, name: str) -> TensorStorageMetadata:
    found = metadata.state_dict_metadata[name]
    assert isinstance(found, TensorStorageMetadata)
    return found


class Reader(StorageReader):
    """Reads rows of tensors out of the shards of a checkpoint.

    Args:
        fs: the disk.
        folder: where it is.
        manifest: its manifest; the digests of its parts hold.
        index: its index.
    """

    def __init__(self, fs: Fs, folder: Path, manifest: Manifest, index: Index) -> None:
        self._fs, self._folder, self._manifest, self._index = fs, folder, manifest, index

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing: a reader is for one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return what the index says, in torch's terms."""
        tensors: dict[str, Any] = {}
        for name, stored in self._index.tensors.items():
            rest = stored.shape[1:]
            tensors[name] = TensorStorageMetadata(
                TensorProperties(dtype=stored.torch_dtype),
                torch.Size(stored.shape),
                [
                    ChunkStorageMetadata(
                        torch.Size((chunk.start, *(0 for _ in rest))),
                        torch.Size((chunk.count, *rest)),
                    )
                    for chunk in stored.chunks
                ],
            )
        return Metadata(tensors)

    def set_up_storage_reader(self, metadata: Metadata, *args: Any, **kwargs: Any) -> None:
        """Do nothing: it is known what is where."""

    def prepare_local_plan(self, plan: Any) -> Any:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """Return the plans as they are."""
        return plans

    def read_data(self, plan: Any, planner: Any) -> Future[None]:
        """Read the rows that a rank needs, and no others."""
        by_file: dict[int, list[tuple[Any, Stored, Chunk]]] = {}
        for item in plan.items:
            stored = self._index.tensors[item.storage_index.fqn]
            start = item.storage_index.offset[0]
            [chunk] = [chunk for chunk in stored.chunks if chunk.start == start]
            by_file.setdefault(chunk.file, []).append((item, stored, chunk))
        for number, items in by_file.items():
            with self._fs.open(self._folder / self._manifest.files[1 + number].name) as file:
                for item, stored, chunk in sorted(items, key=lambda entry: entry[2].offset):
                    first, count = item.storage_offsets[0], item.lengths[0]
                    file.seek(chunk.offset + first * stored.row)
                    size = count * stored.row
                    data = bytearray(read_all(file, size))
                    if len(data) != size:
                        raise CorruptCheckpointError(
                            f"{self._manifest.files[1 + number].name} has become shorter while it "
                            "was read"
                        )
                    target = planner.resolve_tensor(item).detach()
                    if size:
                        rows = torch.frombuffer(data, dtype=stored.torch_dtype)
                        target.copy_(rows.view(target.shape))
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Tell that there are no names to be checked."""
        return True


def write_shards(
    fs: Fs,
    folder: Path,
    stem: str,
    tensors: Mapping[str, torch.Tensor],
    group: dist.ProcessGroup | None = None,
) -> list[Part]:
    """Write every rank's rows of tensors under hidden names. Every rank calls it.

    Args:
        fs: the disk.
        folder: the folder of the run's checkpoints, the same one on every rank.
        stem: the name that the checkpoint is to have, the same on every rank.
        tensors: ``DTensor`` by name, sharded along the first dimension; a rank leaves out those of
            which it has no row.
        group: the ranks, on the CPU; None for all.

    Returns:
        On rank 0, the parts, to be given to `helios.trainer.store.Store.save`; they are fsynced.

    Raises:
        CheckpointError: on every rank, if any could not write; nothing is left behind.
    """
    writer = Writer(fs, folder, stem, dist.get_rank(group))
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except BaseException as error:
        own = [part_temporary(folder, stem, dist.get_rank(group))]
        if dist.get_rank(group) == 0:
            own.append(part_temporary(folder, stem, None))
        for path in own:
            with contextlib.suppress(OSError):
                fs.unlink(path)
        if isinstance(error, CheckpointException):
            raise _failed(f"cannot write the shards of {stem}.pth", error) from error
        raise
    return writer.parts


def read_shards(
    fs: Fs,
    folder: Path,
    manifest: Manifest,
    tensors: Mapping[str, torch.Tensor],
    group: dist.ProcessGroup | None = None,
    *,
    alone: bool = False,
) -> None:
    """Fill tensors with what the shards of a checkpoint hold.

    Args:
        fs: the disk.
        folder: where the checkpoint is.
        manifest: its manifest; the digests of its parts hold.
        tensors: by name; ``DTensor`` of any sharding along the first dimension, or plain tensors,
            which are filled whole.
        group: the ranks, on the CPU; None for all. Every one of them calls it.
        alone: whether this process reads by itself.

    Raises:
        CheckpointError: if it cannot be read, on every rank.
    """
    try:
        index = read_index(fs, folder, manifest)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(
                dict(tensors),
                storage_reader=Reader(fs, folder, manifest, index),
                process_group=None if alone else group,
                no_dist=alone,
            )
    except CheckpointException as error:
        raise _failed(f"cannot read the shards of {manifest.file}", error) from error


def read_index(fs: Fs, folder: Path, manifest: Manifest) -> Index:
    """Return the index of a checkpoint.

    Raises:
        CorruptCheckpointError: if it is none, or does not describe the files that the manifest has.
        CheckpointError: if it cannot be read.
    """
    part, *files = manifest.files
    if part.size > MAX_INDEX:
        raise CorruptCheckpointError(f"{part.name} has {part.size} bytes; at most {MAX_INDEX} may")
    try:
        with fs.open(folder / part.name) as file:
            data = read_all(file, part.size + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {part.name!r}: {error.strerror or error}") from error
    return decode_index(data, [file.size for file in files])


def join(fs: Fs, folder: Path, manifest: Manifest, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a checkpoint with whole tensors in the place of markers.

    Raises:
        CorruptCheckpointError: if content and shards do not belong together.
        CheckpointError: if they cannot be read.
    """
    index = read_index(fs, folder, manifest)
    wanted = marked(content)
    if wanted != index.tensors.keys():
        odd = sorted(wanted ^ index.tensors.keys())
        raise CorruptCheckpointError(
            f"{manifest.file} and its shards do not belong together: {odd[0][:80]!r} is in one of "
            "them alone"
        )
    tensors = {
        name: torch.empty(stored.shape, dtype=stored.torch_dtype)
        for name, stored in index.tensors.items()
    }
    read_shards(fs, folder, manifest, tensors, alone=True)
    joined: dict[str, Any] = fill(content, tensors.__getitem__)
    return joined


def mark(name: str) -> dict[str, str]:
    """Return what stands for a tensor."""
    return {MARK: name}


def marked(content: Any) -> set[str]:
    """Return the names of the tensors for which markers stand in a tree."""
    names: set[str] = set()

    def note(name: str) -> None:
        names.add(name)

    fill(content, note)
    return names


def fill(content: Any, tensor: Callable[[str], Any]) -> Any:
    """Return a tree with something in the place of every marker."""
    if isinstance(content, dict) and content.keys() == {MARK}:
        name = content[MARK]
        if not isinstance(name, str):
            raise CorruptCheckpointError("it has a marker that is no name")
        return tensor(name)
    if type(content) is dict:  # others, such as a state_dict with attributes, have no markers
        return {key: fill(value, tensor) for key, value in content.items()}
    if type(content) in (list, tuple):
        return type(content)(fill(value, tensor) for value in content)
    return content


def _failed(what: str, error: CheckpointException) -> CheckpointError:
    rank, (cause, _) = min(error.failures.items())
    kind = CorruptCheckpointError if isinstance(cause, CorruptCheckpointError) else CheckpointError
    said = cause.strerror or cause if isinstance(cause, OSError) else cause
    return kind(f"{what}: on rank {rank}: {said}")
