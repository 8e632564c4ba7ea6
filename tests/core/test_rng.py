import contextlib
import random

import numpy as np
import pytest
import torch

from helios.core import rng
from helios.functional.rng import fold


@pytest.fixture(autouse=True)
def _as_before():
    with rng.preserved_rng():
        yield


def _draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_the_same_key_gives_the_same_numbers():
    rng.seed_all(fold(0, "a"))
    first = _draw()
    rng.seed_all(fold(0, "a"))
    assert _draw() == first


@pytest.mark.parametrize("source", [0, 1, 2], ids=["random", "numpy", "torch"])
def test_another_key_gives_other_numbers_everywhere(source):
    rng.seed_all(1)
    first = _draw()
    rng.seed_all(2)
    assert _draw()[source] != first[source]


def test_numpy_and_torch_do_not_draw_the_same_stream():
    rng.seed_all(5)
    from_numpy = set(np.random.randint(0, 2**32, 2000, dtype=np.uint32).tolist())
    from_torch = set(torch.randint(0, 2**32, (2000,)).tolist())
    assert len(from_numpy & from_torch) < 5


def test_random_and_numpy_do_not_draw_the_same_stream():
    rng.seed_all(5)
    from_random = {random.getrandbits(32) for _ in range(2000)}
    from_numpy = set(np.random.randint(0, 2**32, 2000, dtype=np.uint32).tolist())
    assert len(from_numpy & from_random) < 5


def test_the_largest_key_is_taken():
    rng.seed_all(2**63 - 1)


def test_restored_states_give_the_same_numbers():
    with rng.preserved_rng():
        first = _draw()
    assert _draw() == first


def test_a_normal_number_kept_back_is_restored():
    random.gauss(0, 1)
    np.random.randn()
    with rng.preserved_rng():
        first = random.gauss(0, 1), np.random.randn()
    assert (random.gauss(0, 1), np.random.randn()) == first


def test_preserved_puts_the_generators_back():
    rng.seed_all(1)
    expected = _draw()
    rng.seed_all(1)
    with rng.preserved_rng():
        rng.seed_all(2)
        _draw()
    assert _draw() == expected


def test_preserved_puts_the_generators_back_after_an_exception():
    rng.seed_all(1)
    expected = _draw()
    rng.seed_all(1)
    with contextlib.suppress(RuntimeError), rng.preserved_rng():
        _draw()
        raise RuntimeError
    assert _draw() == expected


def test_a_generator_of_the_same_key_draws_the_same():
    assert rng.generator(3).random() == rng.generator(3).random()


def test_a_generator_leaves_the_global_one_alone():
    before = np.random.get_state()[1].copy()
    rng.generator(3).random()
    assert (np.random.get_state()[1] == before).all()


def test_a_saved_state_gives_the_same_numbers_after_a_safe_load(tmp_path):
    random.gauss(0, 1)
    np.random.randn()
    torch.save(rng.python_rng_state(), tmp_path / "rng.pth")
    first = random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand()
    rng.restore_python_rng(torch.load(tmp_path / "rng.pth", weights_only=True))
    assert (random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand()) == first


def test_a_saved_state_keeps_its_values():
    state = rng.python_rng_state()
    words = state["numpy"]["state"]["key"].clone()
    np.random.rand(1000)
    assert torch.equal(state["numpy"]["state"]["key"], words)


@pytest.mark.parametrize("state", [{}, {"random": 3}, {"random": {"version": 3}}])
def test_a_state_of_something_else_is_an_error(state):
    with pytest.raises(ValueError, match="cannot be restored"):
        rng.restore_python_rng(state)


def test_a_state_that_fails_half_way_changes_nothing():
    state = rng.python_rng_state()
    rng.seed_all(1)
    expected = _draw()
    rng.seed_all(1)
    with pytest.raises(ValueError, match="cannot be restored"):
        rng.restore_python_rng({**state, "numpy": {"bit_generator": "?"}})
    assert _draw() == expected
