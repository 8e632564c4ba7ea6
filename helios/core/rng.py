"""The global generators that user code draws from: torch's, Python's and numpy's legacy one."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from helios.core.numpy_state import save_numpy
from helios.functional.rng import generator_states, restore_generators, seed_generators

_ODD = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: multiplying by it stirs the upper bits


def seed_all(key: int) -> None:
    """Seed the global generators of torch, ``random`` and numpy with a key.

    Costs about 10 us.

    Args:
        key: in ``[0, 2**63)``, such as `helios.functional.rng.fold` gives.

    Example:
        >>> seed_all(7)
        >>> before = random.random(), float(np.random.rand()), float(torch.rand(()))
        >>> seed_all(7)
        >>> before == (random.random(), float(np.random.rand()), float(torch.rand(())))
        True
    """
    if get_worker_info() is None:
        seed_generators(key)
    else:  # a forked process must not use the generators of devices
        torch.default_generator.manual_seed(key)
    random.seed(key)
    # Torch and numpy have the same Mersenne twister and keep 32 bits of a seed: of the same bits
    # both would draw the same numbers.
    np.random.seed(key * _ODD >> 32 & 0xFFFFFFFF)


def generator(key: int) -> np.random.Generator:
    """Return a numpy generator of its own, seeded with a key.

    Example:
        >>> bool(generator(7).random() == generator(7).random())
        True
    """
    return np.random.default_rng(key)


@contextlib.contextmanager
def preserved_rng(key: int | None = None) -> Iterator[None]:
    """Run a block, and put the global generators back as they were before it.

    Args:
        key: (optional) what to seed them with for the block.

    Example:
        >>> before = random.getstate()
        >>> with preserved_rng():
        ...     x = random.random()
        >>> random.getstate() == before
        True
    """
    torch_states = generator_states()
    rewind = python_rng_rewinder()
    try:
        if key is not None:
            seed_all(key)
        yield
    finally:
        restore_generators(torch_states)
        rewind()


def python_rng_rewinder() -> Callable[[], None]:
    """Return what puts ``random`` and numpy's generator back as they are now.

    Example:
        >>> rewind = python_rng_rewinder()
        >>> number = random.random()
        >>> rewind()
        >>> number == random.random()
        True
    """
    python_state = random.getstate()
    restore_numpy = save_numpy()

    def rewind() -> None:
        random.setstate(python_state)
        restore_numpy()

    return rewind


def python_rng_state() -> dict[str, Any]:
    """Return the states of ``random`` and of numpy's generator as plain values for a checkpoint.

    Torch's generators are not in it: they are seeded anew for whatever draws from them.

    Returns:
        Tensors, numbers and strings, which ``torch.load(weights_only=True)`` reads.
    """
    version, words, gauss = random.getstate()
    return {
        "random": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": _with_tensors(_numpy_state()),
    }


def restore_python_rng(state: Mapping[str, Any]) -> None:
    """Put ``random`` and numpy's generator to what `python_rng_state` returned.

    Raises:
        ValueError: if the state is something else; neither generator is changed then.

    Example:
        >>> state = python_rng_state()
        >>> number = random.random()
        >>> restore_python_rng(state)
        >>> number == random.random()
        True
    """
    rewind = python_rng_rewinder()
    try:
        saved = state["random"]
        random.setstate((saved["version"], tuple(saved["words"].tolist()), saved["gauss"]))
        np.random.set_state(_with_arrays(state["numpy"]))
    except Exception as error:
        rewind()
        raise ValueError(
            f"the generators cannot be restored from {_shortened(state)} "
            f"({type(error).__name__}: {error}); expected what python_rng_state() returned"
        ) from error


def _numpy_state() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)
    return dict(state)


def _with_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _with_tensors(value)
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    return {name: plain(value) for name, value in state.items()}


def _with_arrays(state: Mapping[str, Any]) -> dict[str, Any]:
    def array(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _with_arrays(value)
        return value.numpy() if isinstance(value, torch.Tensor) else value

    return {name: array(value) for name, value in state.items()}


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
