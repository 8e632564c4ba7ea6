import contextlib
import random

import numpy as np
import pytest
import torch

from helios.core.rng import preserved_rng, python_rng_rewinder
from helios.functional.rng import fold
from tests.data.samples import global_state


def draw():
    torch.rand(3)
    random.gauss(0, 1)
    np.random.standard_normal(3)
    np.random.rand()


@pytest.mark.parametrize("normals", [0, 1, 2])
@pytest.mark.parametrize("key", [None, 5])
def test_the_global_generators_are_put_back(normals, key):
    np.random.seed(normals)
    random.gauss(0, 1)
    np.random.standard_normal(normals)  # an odd number keeps one back
    before = global_state()
    with preserved_rng(key):
        draw()
    assert global_state() == before


def test_they_are_put_back_after_an_exception():
    before = global_state()
    with contextlib.suppress(KeyError), preserved_rng(5):
        draw()
        raise KeyError
    assert global_state() == before


def test_another_bit_generator_is_put_back():
    twister = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(1))
    try:
        before = np.random.get_state(legacy=False)
        with preserved_rng():
            np.random.rand()
        assert np.random.get_state(legacy=False) == before
    finally:
        np.random.set_bit_generator(twister)


def test_a_key_seeds_all_three():
    seen = []
    for _ in range(2):
        with preserved_rng(11):
            seen.append((torch.rand(2).tolist(), random.random(), np.random.rand()))
    assert seen[0] == seen[1]


def test_torch_and_numpy_do_not_share_a_stream():
    with preserved_rng(fold(0, "sample", 0)):
        words = torch.randint(0, 2**20, (8,)).tolist()
        others = np.random.randint(0, 2**32, 8, dtype=np.uint32).tolist()
    assert not set(words) & {other % 2**20 for other in others}


def test_torch_and_numpy_share_a_stream_under_one_seed():
    # The reason for the test above.
    with preserved_rng():
        torch.manual_seed(5)
        np.random.seed(5)
        words = torch.randint(0, 2**20, (8,)).tolist()
        others = np.random.randint(0, 2**32, 8, dtype=np.uint32).tolist()
    assert words == [other % 2**20 for other in others]


@pytest.mark.parametrize("normals", [0, 1, 2])
def test_noting_the_generators_moves_none(normals):
    np.random.seed(normals)
    np.random.standard_normal(normals)
    before = global_state()
    rewind = python_rng_rewinder()
    assert global_state() == before
    draw_python()
    rewind()
    assert global_state() == before


def draw_python():
    random.gauss(0, 1)
    np.random.standard_normal(3)
