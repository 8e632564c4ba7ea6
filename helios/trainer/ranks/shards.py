"""Checkpoints of a sharded model: every rank writes and reads its own rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

from helios.errors import CheckpointError, ResumeError
from helios.functional.state import TrainingState
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.sharding import Rows, ShardedBinding
from helios.trainer.store import Store
from helios.trainer.store.commit import load_manifest, part_temporary
from helios.trainer.store.content import state_content
from helios.trainer.store.fs import Fs
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.sharded import fill, mark, marked, read_index, read_shards, write_shards

_SHARDED = ("params", "average", "opt_state")
"""The parts of a carry in which what belongs to a parameter is sharded as it is."""


def split(content: dict[str, Any], binding: ShardedBinding) -> tuple[dict[str, Any], Any]:
    """Take this rank's shards out of the content of a checkpoint.

    Args:
        content: as ``state_content`` returns it, and what else a checkpoint has; ``"model"`` may
            hold the ``state_dict`` of the sharded model.
        binding: of the model.

    Returns:
        The content with a marker for each shard, the same on every rank; and the shards as
        ``DTensor`` by name, for `write_shards`.

    Raises:
        CheckpointError: in the middle of an accumulation window, or if a tensor that belongs to a
            parameter is neither a scalar nor has the parameter's rows.
    """
    rest, shards = _split(content, binding)
    tensors = {
        name: _spread(shard, rows, binding) for name, (shard, rows) in shards.items() if rows.count
    }
    return rest, tensors


def _split(
    content: dict[str, Any], binding: ShardedBinding
) -> tuple[dict[str, Any], dict[str, tuple[torch.Tensor, Rows]]]:
    carry = content["carry"]
    if _has_open_window(carry):
        raise CheckpointError(
            "a sharded run cannot be saved in the middle of an accumulation window; save at the "
            "end of an update"
        )
    shards: dict[str, tuple[torch.Tensor, Rows]] = {}

    def take(tensor: torch.Tensor, path: tuple[str, ...]) -> Any:
        rows = _rows(tensor, path, binding)
        if rows is None:
            return tensor
        if tuple(tensor.shape) != rows.local:
            raise CheckpointError(
                f"{'/'.join(path)}: received a tensor of shape {list(tensor.shape)}; expected a "
                f"scalar or {list(rows.local)}, the rows of its parameter that this rank keeps"
            )
        shards["/".join(path)] = tensor, rows
        return mark("/".join(path))

    rest = {**content, "carry": _each(carry, take)}
    if "model" in content:
        rest["model"] = without_weights(content["model"], binding)
    return rest, shards


def without_weights(state_dict: Mapping[str, Any], binding: ShardedBinding) -> dict[str, Any]:
    """Return the ``state_dict`` of a sharded model with markers for what the carry has too."""
    return {
        key: mark(f"params/{binding.names[key]}") if isinstance(value, DTensor) else value
        for key, value in state_dict.items()
    }


def save(
    store: Store | None,
    ranks: Ranks,
    fs: Fs,
    folder: Path,
    name: str,
    content: dict[str, Any],
    binding: ShardedBinding,
    write: Callable[[dict[str, Any], Any], None],
    describe: Callable[[str, int, str, int], Manifest],
    check: Callable[[IO[bytes], int], None] = lambda file, size: None,
    group: dist.ProcessGroup | None = None,
) -> str:
    """Commit a checkpoint of which every rank writes its shards. Every rank calls it.

    Args:
        store: the folder, open on rank 0; None on the others.
        ranks: the ranks.
        fs: the disk, as each rank sees it.
        folder: the folder of the store.
        name: the file name that it is to have; that of rank 0 counts.
        content: the whole content, with this rank's shards in it.
        binding: of the model.
        write: ``(content without shards, file)``: writes it; on rank 0 alone.
        describe: as for `helios.trainer.store.Store.save`; on rank 0 alone.
        check: likewise.
        group: the ranks, on the CPU, for `torch.distributed.checkpoint`; None for all.

    Returns:
        The file name that it has, once it is on the disk.

    Raises:
        CheckpointError: if it cannot be written, by any rank; what was saved before is as it was.
        RankError: on the other ranks, if rank 0 cannot commit it.
    """
    rest, tensors = split(content, binding)
    stem = str(ranks.told_by_first(name)).removesuffix(".pth")
    parts = write_shards(fs, folder, stem, tensors, group)

    def commit() -> str:
        assert store is not None
        manifest = store.save(
            f"{stem}.pth", lambda file: write(rest, file), describe, check, parts=parts
        )
        return manifest.file

    try:
        return str(ranks.together(commit, f"saving {stem}.pth"))
    except Exception:
        for part in (ranks.rank, None) if ranks.is_first else (ranks.rank,):
            _forget(fs, part_temporary(folder, stem, part))
        raise


def load(
    fs: Fs,
    path: Path,
    content: dict[str, Any],
    like: TrainingState,
    binding: ShardedBinding,
    group: dist.ProcessGroup | None = None,
) -> dict[str, Any]:
    """Return the content of a checkpoint with this rank's shards in it. Every rank calls it.

    The checkpoint may be of any number of ranks, and of a run that was not sharded.

    Args:
        fs: the disk.
        path: the checkpoint; the digests of its parts were checked, as `Store.last_valid` does.
        content: what was read of it with ``joined=False``.
        like: the state that `helios.init_state` makes for the sharded model.
        binding: of the model.
        group: the ranks, on the CPU; None for all.

    Returns:
        What ``restore_state(content, like)`` takes.

    Raises:
        ResumeError: if the checkpoint was made with another model, optimizer or dtype.
        CheckpointError: if the shards cannot be read.
    """
    if _has_open_window(content["carry"]):
        raise ResumeError(
            f"{path.name} was saved in the middle of an accumulation window, which a sharded run "
            "cannot take up: go on with it unsharded to the end of an update, or from another one"
        )
    _, wanted = _split(state_content(like), binding)
    manifest = load_manifest(fs, path.parent, path.stem)
    if not manifest.files:
        return {**content, "carry": _cut(content["carry"], binding)}
    held = marked(content["carry"])
    if held != wanted.keys():
        odd = sorted(held ^ wanted.keys())
        raise ResumeError(
            f"{path.name} cannot be resumed with this model: {', '.join(odd[:5])} "
            f"{'is' if len(odd) == 1 else 'are'} in one of them alone"
        )
    index = read_index(fs, path.parent, manifest)
    shards, spread = {}, {}
    for name, (local, rows) in wanted.items():
        stored = index.tensors.get(name)
        if stored is None or (stored.shape, stored.torch_dtype) != (rows.shape, local.dtype):
            found = "nothing" if stored is None else f"{stored.dtype} {list(stored.shape)}"
            raise ResumeError(
                f"{path.name} cannot be resumed with this model: {name} is {found} in it, and "
                f"{str(local.dtype).removeprefix('torch.')} {list(rows.shape)} in the model"
            )
        shards[name] = torch.empty(rows.local, dtype=local.dtype, device=local.device)
        if rows.count:
            spread[name] = _spread(shards[name], rows, binding)
    read_shards(fs, path.parent, manifest, spread, group)
    filled: dict[str, Any] = fill(content, shards.__getitem__)
    return filled


def _has_open_window(carry: dict[str, Any]) -> bool:
    return any(window["grads"] for window in carry["accumulators"].values())


def _rows(tensor: torch.Tensor, path: tuple[str, ...], binding: ShardedBinding) -> Rows | None:
    """Return the rows of what belongs to a parameter, None of anything else."""
    if tensor.ndim == 0 or path[0] not in _SHARDED:
        return None
    owners = [name for name in path[:-1] if name in binding.rows] or [path[-1]]
    rows = binding.rows.get(owners[-1])
    return None if rows is None or 0 in rows.shape else rows


def _each(node: Any, function: Callable[[Any, tuple[str, ...]], Any], path: Any = ()) -> Any:
    """Return a tree with ``function(tensor, path)`` in the place of every tensor."""
    if isinstance(node, torch.Tensor):
        return function(node, path)
    if isinstance(node, dict):
        return {key: _each(value, function, (*path, str(key))) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(_each(v, function, (*path, str(i))) for i, v in enumerate(node))
    return node


def _cut(carry: Any, binding: ShardedBinding) -> Any:
    """Return a carry with this rank's rows in the place of whole tensors."""

    def cut(tensor: torch.Tensor, path: tuple[str, ...]) -> torch.Tensor:
        rows = _rows(tensor, path, binding)
        if rows is None:
            return tensor
        if tuple(tensor.shape) != rows.shape:
            raise ResumeError(
                f"the checkpoint cannot be resumed with this model: {'/'.join(path)} has the shape "
                f"{list(tensor.shape)}; expected {list(rows.shape)}"
            )
        return rows.of(tensor)

    return _each(carry, cut)


def _spread(shard: torch.Tensor, rows: Rows, binding: ShardedBinding) -> torch.Tensor:
    """Return a shard as a part of a whole tensor, in torch's terms; it is the same memory."""
    return DTensor.from_local(
        shard.detach(),
        binding.mesh,
        [Shard(0)],
        run_check=False,
        shape=torch.Size(rows.shape),
        stride=torch.empty(rows.shape, device="meta").stride(),
    )


def _forget(fs: Fs, path: Path) -> None:
    try:
        fs.unlink(path)
    except OSError:
        return  # rank 0 has removed it, or the next run will
