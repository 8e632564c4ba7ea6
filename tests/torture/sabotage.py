"""Faults put into helios in a child, each of which the harness must see: it would be blind else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helios.functional.schedule import Batch
from helios.trainer import evaluate
from helios.trainer import fit as fits
from helios.trainer.loop import Loop
from helios.trainer.store import store as stores
from helios.trainer.store.store import Store


def lose_a_checkpoint() -> None:
    """Save returns, and the checkpoint before the one that was saved is gone."""
    save = Store.save

    def saved(store: Store, *args: Any, **kwargs: Any) -> Any:
        manifest = save(store, *args, **kwargs)
        paths = sorted(store.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in paths[-2:-1]:
            path.unlink()
            path.with_suffix(".pth").unlink()
        return manifest

    Store.save = saved  # type: ignore[method-assign]


def forget_generators() -> None:
    """A resume leaves Python's and numpy's generators as they are."""
    fits.rng_restorer = lambda *content: lambda: None  # type: ignore[assignment]


def drop_hooks() -> None:
    """Validation calls no hooks of its batches."""
    evaluate._batch_hooks = lambda model, stage: (None, None)


def leave_things_behind() -> None:
    """Opening a store does not finish what was cut off."""
    stores.recover = lambda *args: []


def answer_late() -> None:
    """A run that is asked to stop goes on until the epoch's end."""
    whole = Loop.run

    def deaf(loop: Loop, *args: Any) -> Any:
        agreement = loop._agreement
        hear = agreement._received
        for event, state in whole(loop, *args):
            hears = state.dataset_iter == 0 and not isinstance(event, Batch)
            agreement._received = hear if hears else lambda: None  # type: ignore[method-assign]
            yield event, state

    Loop.run = deaf  # type: ignore[method-assign]


SABOTAGES: dict[str, Callable[[], None]] = {
    "lost": lose_a_checkpoint,
    "silent": forget_generators,
    "events": drop_hooks,
    "broken": leave_things_behind,
    "late": answer_late,
}
"""By the kind of `tests.torture.judging.Problem` that each must lead to."""
