"""Going on with all members from the last place that all of them have saved."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from helios.errors import CheckpointError, ResumeError
from helios.functional.stacked import stack_carries
from helios.functional.state import TrainingState
from helios.functional.trainable import init_state
from helios.trainer.many.model import Many
from helios.trainer.resuming import load_weights
from helios.trainer.store import Store, read_checkpoint, restore_state
from helios.trainer.store.manifest import Manifest
from helios.trainer.store.reading import committed

Found = tuple[dict[str, Any], Path]
"""The content of a checkpoint, and where it is."""

_Place = tuple[Any, ...]


def last_of_all(stores: Sequence[Store], reduction: str) -> list[Found] | None:
    """Return the checkpoint of each member at the last place that all of them have saved.

    Args:
        stores: of the members.
        reduction: what the fingerprint of such a run calls it; see `reduction`.

    Returns:
        None if the run is a new one, or was killed in the first save of all.

    Raises:
        ResumeError: if there are checkpoints, and no such place.
    """
    newest = [store.last_valid() for store in stores]
    whole = [found for found in newest if found is not None]
    if not whole:
        return None
    if len(whole) == len(stores) and len({_place(content) for content, _ in whole}) == 1:
        return whole
    manifests = [_manifests(store) for store in stores]
    shared = set.intersection(*(set(places) for places in manifests))
    for place in sorted(shared, key=lambda place: manifests[0][place][-1].sequence, reverse=True):
        read = [
            _read(store, places[place]) for store, places in zip(stores, manifests, strict=True)
        ]
        if all(found is not None for found in read):
            return [found for found in read if found is not None]
    counts = [sum(map(len, places.values())) for places in manifests]
    begun = [content["fingerprint"].get("reduction") == reduction for content, _ in whole]
    if not shared and max(counts) == 1 and min(counts) == 0 and all(begun):
        return None  # killed in the very first save: nothing is lost by beginning anew
    listed = ", ".join(
        f"{store.save_name}: {count}" for store, count in zip(stores, counts, strict=True)
    )
    raise ResumeError(
        f"the members have no place in common to go on from; they have so many checkpoints "
        f"({listed}). Give the members of the run, no more and no fewer, or other names to begin "
        "anew"
    )


def reduction(members: int) -> str:
    """Return what the fingerprint says of how the gradients of such a run are computed."""
    return f"vmapped, {members} members"


def resume_all(
    many: Many, found: Sequence[Found], seed: int | None, warn: Callable[[str], None]
) -> TrainingState:
    """Return the state of all members at their checkpoints, and load what is beside it.

    Args:
        many: the members, set up.
        found: their checkpoints.
        seed: the seed that was asked for, None for any.
        warn: is told if it is another one.

    Raises:
        ResumeError: if a checkpoint does not fit its member, or they are of several runs.
    """
    states = []
    for member, (content, _) in zip(many.members, found, strict=True):
        states.append(restore_state(content, init_state(member)))
        load_weights(member, content)
    if len({state.seed for state in states}) > 1:
        seeds = [state.seed for state in states]
        raise ResumeError(
            f"the members' checkpoints are of runs with the seeds {seeds}; members that are "
            "trained at once see the same batches, and need one. Give other names to begin anew"
        )
    first = states[0]
    if seed is not None and seed != first.seed:
        warn(
            f"random_seed: received {seed}; the checkpoints' run has {first.seed} and goes on with "
            "it. Use other names to begin a run with another seed."
        )
    return replace(first, carry=stack_carries([state.carry for state in states]))


def _place(content: dict[str, Any]) -> _Place:
    return _key(content["training_state"])


def _key(numbers: dict[str, Any]) -> _Place:
    left_out = ("average_iter_time", "seed")
    return tuple(sorted((key, number) for key, number in numbers.items() if key not in left_out))


def _manifests(store: Store) -> dict[_Place, list[Manifest]]:
    """Return the checkpoints of a member by their place in the run, each from the oldest on."""
    places: dict[_Place, list[Manifest]] = {}
    for entry in reversed(committed(store.fs, store.folder, store.save_name)):
        manifest = entry.manifest
        if manifest is not None:
            place = _key({**manifest.counters, "window_iter": manifest.window_iter})
            places.setdefault(place, []).append(manifest)
    return places


def _read(store: Store, manifests: Sequence[Manifest]) -> Found | None:
    """Return the newest whole one of some checkpoints."""
    for manifest in reversed(manifests):
        path = store.folder / manifest.file
        try:
            return read_checkpoint(path, store.fs), path
        except CheckpointError as error:
            warnings.warn(f"the checkpoint {path.name} is passed over: {error}", stacklevel=4)
    return None
