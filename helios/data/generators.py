"""The three global generators that datasets draw from: torch's, Python's and numpy's."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator
from torch.utils.data import get_worker_info

from helios.functional.rng import generator_states, restore_generators, seed_generators

_TWISTER_BYTES = 4 * 625  # 624 words and a position


def seed_all(key: int) -> None:
    """Seed the global generators of torch, of ``random`` and of numpy (the legacy one).

    In a worker process the generators of devices stay untouched: a forked process must not use
    them.

    Args:
        key: in ``[0, 2**63)``, as `helios.functional.rng.fold` returns it.
    """
    if get_worker_info() is None:
        seed_generators(key)
    else:
        torch.default_generator.manual_seed(key)
    random.seed(key)
    # torch's and numpy's generators are the same Mersenne twister and keep 32 bits of a seed:
    # from the same 32 bits they would draw the same stream. Torch keeps the lower ones.
    np.random.seed(key >> 31)


@contextlib.contextmanager
def isolated(key: int | None = None) -> Iterator[None]:
    """Run a block that may draw from the global generators, and put them back as they were.

    Args:
        key: what to seed them with for the block; None if the block does so itself.

    Example:
        >>> before = random.getstate()
        >>> with isolated(7):
        ...     x = random.random()
        >>> random.getstate() == before
        True
    """
    torch_states = generator_states()
    python_state = random.getstate()
    restore_numpy = _save_numpy()
    try:
        if key is not None:
            seed_all(key)
        yield
    finally:
        restore_generators(torch_states)
        random.setstate(python_state)
        restore_numpy()


def _save_numpy() -> Callable[[], None]:
    """Return what puts numpy's legacy generator back.

    ``get_state`` and ``set_state`` copy word by word, 130 us together; once per batch that is
    more than fetching a small one. The same bytes copied at once take 1 us. All that is not in
    them is a normal number kept back, which drawing one shows: if there was one, the generator
    does not move.
    """
    bits = get_bit_generator()
    if type(bits) is not np.random.MT19937 or not _layout_is_known():
        return functools.partial(np.random.set_state, np.random.get_state(legacy=False))
    address = bits.ctypes.state_address
    saved = ctypes.string_at(address, _TWISTER_BYTES)
    kept_back = np.random.standard_normal()
    if ctypes.string_at(address, _TWISTER_BYTES) == saved:
        words = np.frombuffer(saved, dtype=np.uint32)
        state = ("MT19937", words[:624], int(words[624]), 1, kept_back)
        return functools.partial(np.random.set_state, state)

    def restore() -> None:
        np.random.seed(0)  # drops what was kept back since
        ctypes.memmove(address, saved, _TWISTER_BYTES)

    return restore


@functools.cache
def _layout_is_known() -> bool:
    """Tell whether the bytes of numpy's twister are its words and its position."""
    bits = np.random.MT19937(0)
    state = bits.state["state"]
    words = np.frombuffer(ctypes.string_at(bits.ctypes.state_address, _TWISTER_BYTES), np.uint32)
    return bool((words[:624] == state["key"]).all() and words[624] == state["pos"])
