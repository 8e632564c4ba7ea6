"""Random numbers of a micro-batch that is computed piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch

from helios.functional import rng
from helios.functional.gradients import Turn
from helios.functional.share import is_shared


class Streams:
    """One stream of torch's default generators for each piece, and one for what follows them.

    A piece's stream begins under its key, and goes on from one objective of the micro-batch to the
    next, as the stream of an undivided micro-batch does. What draws after the pieces, such as an
    optimizer, draws the same on every rank, whichever pieces were there.
    """

    def __init__(self) -> None:
        self._turn = Turn(False, 0, 0)
        self._begun: list[str] = []
        self._states: dict[int, list[torch.Tensor]] = {}

    def begin(self, turn: Turn, objective: str) -> None:
        """Begin with an objective.

        One that was begun already in this very micro-batch means that it is computed once more.
        """
        same = (turn.seed, turn.iteration) == (self._turn.seed, self._turn.iteration)
        if not same or objective in self._begun:
            self._begun, self._states = [], {}
        self._turn = turn
        self._begun.append(objective)

    def enter(self, index: int) -> None:
        """Point the generators at the stream of a piece."""
        if index in self._states:
            rng.restore_generators(self._states[index])
        else:
            rng.seed_generators(rng.train_key(self._turn.seed, self._turn.iteration, index))

    def leave(self, index: int) -> None:
        """Keep where the stream of a piece is, for the next objective."""
        self._states[index] = rng.generator_states()

    def end(self) -> None:
        """Point the generators at a stream that knows nothing of the pieces."""
        number = len(self._begun)  # no piece has a negative index
        rng.seed_generators(rng.train_key(self._turn.seed, self._turn.iteration, -number))


def each_piece_drawing(function: Callable[[Any], Any], batch: Any, key: int) -> Any:
    """Apply a function that may draw from torch to a batch, or to each piece under its own key.

    What a piece draws, and what is drawn after all of them, is the same on whichever rank it is.

    Args:
        function: of a batch.
        batch: a batch, which draws from the generators as they are, or the pieces of one.
        key: what the keys of the pieces are folded from; what follows them draws under it.

    Example:
        >>> each_piece_drawing(abs, -1, key=0)
        1
    """
    if not is_shared(batch):
        return function(batch)
    done = []
    for piece in batch:
        rng.seed_generators(rng.fold(key, "piece", piece.index))
        done.append(msgspec.structs.replace(piece, batch=function(piece.batch)))
    rng.seed_generators(key)
    return done
