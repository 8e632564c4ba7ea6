"""Law: a fit has the bits of the loop that one would write by hand.

The loop takes three things from the run: the initial weights, the order of the samples, and
``torch.manual_seed(helios.train_key(seed, n))`` before the n-th loss. The rest is plain PyTorch.
"""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import helios
from property_tests.fits import Data, Stopping, a_share, batches_of, fit, sizes

OPTIMIZERS = {
    "adamw": (helios.optim.AdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    "sgd": (helios.optim.SGD, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
}
RATES = st.floats(1e-4, 0.5)
SEEDS = st.integers(0, 2**63 - 1)


def by_hand(model, data, optimizer, seed, *, micro_batches, window=1):
    """Train ``model`` for whole windows, and return the optimizer."""
    done = epoch = 0
    loader, sampler = data.train_dataloader()
    model.train()
    while done < micro_batches:
        sampler.set_epoch(epoch)
        for x, y in loader:
            done += 1
            torch.manual_seed(helios.train_key(seed, done))
            loss, _ = model.loss((x, y))
            (loss / window).backward()
            if done % window == 0:
                optimizer.step()
                optimizer.zero_grad()
            if done == micro_batches:
                break
        epoch += 1
    return optimizer


def assert_same_bits(model, state, twin, optimizer):
    expected = {name: value.detach() for name, value in twin.state_dict().items()}
    assert helios.first_difference(dict(model.state_dict()), expected) is None
    assert helios.first_difference({**state.carry.params, **state.carry.buffers}, expected) is None
    slots = state.carry.opt_state["loss"]["slots"]
    native = {name: optimizer.state[p] for name, p in twin.named_parameters()}
    assert helios.first_difference(slots, native) is None


def both(kind, lr, size, seed, micro_batches, window=1, **arguments):
    """Fit a model, train its twin by hand, and compare."""
    of_helios, of_torch, options = OPTIMIZERS[kind]
    model = Stopping(lambda: of_helios(lr=lr, **options))
    state = fit(model, Data(*size), random_seed=seed, accumulation_steps=window, **arguments)
    twin, data = Stopping(lambda: None), Data(*size)
    twin.prepare(seed)
    data.seed = seed
    data.setup()
    with torch.random.fork_rng():
        optimizer = by_hand(
            twin,
            data,
            of_torch(twin.parameters(), lr=lr, **options),
            seed,
            micro_batches=micro_batches,
            window=window,
        )
    assert state.global_iteration == micro_batches
    assert_same_bits(model, state, twin, optimizer)


@a_share(10)
@given(st.sampled_from(sorted(OPTIMIZERS)), RATES, sizes(), SEEDS, st.integers(1, 3))
def test_epochs_are_those_of_a_loop(kind, lr, size, seed, epochs):
    both(kind, lr, size, seed, epochs * batches_of(size), total_steps=epochs)


@a_share(10)
@given(st.sampled_from(sorted(OPTIMIZERS)), RATES, sizes(), SEEDS, st.integers(1, 9))
def test_updates_are_those_of_a_loop(kind, lr, size, seed, updates):
    both(kind, lr, size, seed, updates, total_steps=updates, train_unit="iteration")


@a_share(10)
@given(
    st.sampled_from(sorted(OPTIMIZERS)),
    RATES,
    sizes(),
    SEEDS,
    st.integers(1, 4),
    st.sampled_from([2, 4]),
)
def test_windows_are_those_of_a_loop_that_divides_the_loss(kind, lr, size, seed, updates, window):
    # A division by a power of two is exact, so that it may come before the sum or after it.
    both(
        kind,
        lr,
        size,
        seed,
        updates * window,
        window,
        total_steps=updates,
        train_unit="iteration",
    )
