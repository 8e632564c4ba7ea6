"""Laws of whole runs: resume, cadence, and the fold that a fit is."""

from __future__ import annotations

import msgspec
import torch
from hypothesis import given
from hypothesis import strategies as st

import helios
from helios.data import source_of
from helios.functional import replay
from helios.functional.state import end_epoch, start_epoch
from helios.trainer.store import find_last_checkpoint, read_checkpoint, stored_state
from property_tests.fits import (
    Data,
    Stopping,
    a_share,
    batches_of,
    cadences,
    fit,
    folder,
    last_content,
    lengths,
    sizes,
    trained,
)


@st.composite
def early_stops(draw, cadence):
    if cadence["valid_frequency"] is None:
        return None
    return draw(st.none() | st.integers(1, 2))


@a_share(12)
@given(lengths(), cadences(), sizes(), st.lists(st.integers(1, 14), max_size=4), st.data())
def test_a_fit_stopped_any_number_of_times_is_the_fit_that_was_not(
    length, cadence, size, stops, data
):
    early = data.draw(early_stops(cadence))
    arguments = {**length, **cadence, "early_stop_cycles": early}
    with folder() as root:
        fit(Stopping(), Data(*size), chkpt_root=root / "whole", **arguments)
        for stop in [*sorted(stops), None]:
            fit(Stopping(stop_at=stop), Data(*size), chkpt_root=root / "legs", **arguments)
        whole, legs = last_content(root / "whole"), last_content(root / "legs")
    assert helios.first_difference(whole, legs) is None


@a_share(6)
@given(lengths(), cadences(), cadences(), sizes())
def test_validation_logs_and_checkpoints_change_no_bit_of_the_training(length, one, other, size):
    with folder() as root:
        states = [
            fit(Stopping(), Data(*size), chkpt_root=root / name, **length, **cadence)
            for name, cadence in (("one", one), ("other", other))
        ]
    assert helios.first_difference(*map(trained, states)) is None


def batches(data, seed, epochs):
    """Yield the batches of some epochs as any user of the loader would see them."""
    data.seed = seed
    data.setup()
    loader, sampler = data.train_dataloader()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        yield from loader


def fold(model, plans, batches, seed):
    """Fold the pure step over micro-batches, one plan for each, and return the last state."""
    state = helios.init_state(model, seed)
    steps = {plan: helios.make_step(model, plan) for plan in set(plans)}
    for plan, batch in zip(plans, batches, strict=False):
        if state.dataset_iter == 0:
            state = start_epoch(state)
        state = steps[plan](state, batch)
        if state.dataset_iter == plan.batches_per_epoch:
            state = end_epoch(state)
    return state


@a_share(15)
@given(lengths(), sizes())
def test_a_fit_is_the_fold_of_the_pure_step(length, size):
    received = fit(Stopping(), Data(*size), **length)
    plan = helios.Plan(
        unit=helios.TrainingUnit.from_str(length["train_unit"]),
        batches_per_epoch=batches_of(size),
        accumulation_steps=length["accumulation_steps"],
    )
    count, seed = received.global_iteration, length["random_seed"]
    state = fold(
        Stopping(), [plan] * count, batches(Data(*size), seed, received.global_epoch), seed
    )
    assert helios.first_difference(trained(state), trained(received)) is None


class Indexed(torch.utils.data.Dataset):
    """Samples that know which they are."""

    def __init__(self, size):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(size, 3, generator=generator)
        self.y = torch.randint(0, 2, (size,), generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index], index


class IndexedData(Data):
    def setup(self):
        self._train_dataset = self._create_dataset(Indexed(self._samples), self._params)


class Logged(Stopping):
    """Writes down the samples of every micro-batch, and the state after it."""

    def __init__(self, log=None, **kwargs):
        super().__init__(**kwargs)
        self.log = [] if log is None else log

    def loss(self, batch):
        x, y, self.indices = batch
        return super().loss((x, y))

    def on_training_batch_end(self, state, should_log=False):
        self.log.append((self.indices.tolist(), state))


LEGS = st.lists(
    st.tuples(st.sampled_from(["epoch", "iteration"]), st.integers(1, 4), st.integers(1, 4)),
    min_size=2,
    max_size=4,
)


@a_share(15)
@given(sizes(), LEGS, st.integers(0, 99))
def test_other_windows_or_another_unit_at_a_resume_lose_no_data(size, legs, seed):
    per_epoch, log, plans, stop = batches_of(size), [], [], 0
    with folder() as root:
        for unit, window, length in legs:
            stop += length
            state = fit(
                Logged(log, stop_at=stop),
                IndexedData(*size),
                train_unit=unit,
                accumulation_steps=window,
                total_steps=float("inf"),
                random_seed=seed,
                chkpt_root=root,
            )
            plans += [
                helios.Plan(
                    unit=helios.TrainingUnit.from_str(unit),
                    batches_per_epoch=per_epoch,
                    accumulation_steps=window,
                )
            ] * length

    assert state.global_iteration == len(log) == stop
    for epoch in range(stop // per_epoch):
        consumed = log[epoch * per_epoch : (epoch + 1) * per_epoch]
        indices = [index for batch, _ in consumed for index in batch]
        assert len(set(indices)) == len(indices) == (per_epoch * size[1] if size[2] else size[0])

    open_window = updates = 0
    for number, (plan, (_, after)) in enumerate(zip(plans, log, strict=True), start=1):
        open_window += 1
        epoch_ends = plan.unit is helios.TrainingUnit.EPOCH and number % per_epoch == 0
        if open_window >= plan.accumulation_steps or epoch_ends:
            open_window, updates = 0, updates + 1
        assert (after.window_iter, after.current_iteration) == (open_window, updates)

    epochs = -(-stop // per_epoch)
    expected = fold(Logged(), plans, batches(IndexedData(*size), seed, epochs), seed)
    assert helios.first_difference(trained(expected), trained(state)) is None


@a_share(15)
@given(lengths(), cadences(), sizes(), st.integers(1, 6))
def test_the_pure_replay_of_a_serialised_state_gives_the_states_of_the_fit(
    length, cadence, size, stop
):
    """From the state of a run that was stopped anywhere, through bytes, to the run's end."""
    validated = cadence["valid_frequency"] is not None
    scores = {}

    class Scored(Stopping):
        def have_metrics_improved(self):
            improved = super().have_metrics_improved()
            best = self.valid_metrics["loss"] if improved else self.best_score
            scores[self.trainer.state.validation_cycles] = improved, best
            return improved

    with folder() as root:
        fit(Scored(stop_at=stop), Data(*size), chkpt_root=root / "legs", **length, **cadence)
        content = read_checkpoint(find_last_checkpoint(root / "legs" / "noisy"))
        whole = fit(Scored(), Data(*size), chkpt_root=root / "whole", **length, **cadence)
        plan = msgspec.convert(content["plan"], helios.Plan)
    model, data = Stopping(), Data(*size)
    data.setup()
    model.prepare(content["training_state"]["seed"])
    data.seed = content["training_state"]["seed"]
    state = helios.TrainingState.from_bytes(stored_state(content).to_bytes())
    source = source_of(data.train_dataloader(), seed=data.seed)
    states = replay(
        helios.make_step(model, plan),
        plan,
        state,
        source.open,
        validate=(lambda s: scores[s.validation_cycles + 1]) if validated else None,
    )
    updates = list(states)
    assert len(updates) == whole.current_iteration - state.current_iteration
    if updates:  # the stop may have come after the last update, with its epoch's end to be done
        assert helios.digest(updates[-1]) == helios.digest(whole)
