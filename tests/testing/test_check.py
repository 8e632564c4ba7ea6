"""Models and data that break a law on purpose are found out, and the culprit is named."""

from __future__ import annotations

import random

import pytest
import torch
from torch.utils.data import DataLoader

import helios
from helios.errors import LawError
from helios.testing import check_laws
from tests import zoo
from tests.data.samples import Noisy as NoisySamples
from tests.data.samples import NoisyStream, StatefulStream
from tests.testing.culprits import (
    Aliasing,
    Averaging,
    Base,
    Buffered,
    Counting,
    First,
    GlobalClock,
    Hoarding,
    InPlace,
    Knowing,
    Lazy,
    Nested,
    NumpyGenerator,
    NumpyRandom,
    NumpySetup,
    OfTheClass,
    OwnCarry,
    OwnGenerator,
    PythonRandom,
    Remembering,
    Thawing,
    UnseededSetup,
    UnwritableCarry,
)

LAWS = ["pure", "deterministic", "donated", "resumable", "workers", "position"]
STEP, DATA = LAWS[:4], LAWS[4:]


def rows(size=24):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, 3, generator=generator)
    return x, (x.sum(1) > 0).long()


def data(**params):
    return helios.data.from_datasets(train=rows(), **{"batch_size": 4, **params})


def check(model, datamodule=None, **arguments):
    arguments = {"workers": (0,), "raises": False, **arguments}
    return check_laws(model, datamodule or data(), **arguments)


def broken(report):
    return [result.law for result in report.broken]


@pytest.mark.parametrize(
    "model",
    [
        lambda: Base("base"),
        lambda: Buffered("buffered"),
        lambda: NumpySetup("numpy"),
        lambda: zoo.Noisy("noisy"),
    ],
)
def test_a_clean_model_keeps_all_laws(model):
    report = check(model, data(shuffle=True), workers=(0, 2), raises=True)
    assert [(r.law, r.holds, r.culprit) for r in report.results] == [(n, True, "") for n in LAWS]


def test_an_open_window_is_resumed_too():
    assert not check(lambda: zoo.Noisy("n"), plan=helios.Plan(accumulation_steps=3)).broken


@pytest.mark.parametrize(
    ("model", "culprit"),
    [
        (Counting, "self.count changed from 0 to 1"),
        (Nested, "self.parts.0.calls changed from 0 to 1"),
        (Hoarding, "self.seen['losses'] changed from a list of 0 to a list of 1"),
        (Lazy, "self.scale appeared: float32[3]"),
        (Averaging, "self.mean changed: float32[3] of other values"),
        (OwnGenerator, "self.rng (Generator) drew random numbers"),
        (NumpyGenerator, "self.rng (Generator) drew random numbers"),
        (PythonRandom, "Python's global generator random (Random) drew random numbers"),
        (NumpyRandom, "numpy's global generator numpy.random (RandomState) drew random numbers"),
        (InPlace, "batch[0] changed: float32[4, 3] of other values"),
        (Thawing, "self.extra.requires_grad changed from False to True"),
        (OfTheClass, "OfTheClass.calls changed from 0 to 1"),
        (Aliasing, "self.old changed from None to float32[2, 3]"),
    ],
)
def test_an_impure_loss_is_named_by_what_it_changed(model, culprit):
    OfTheClass.calls = 0
    assert check(lambda: model("m"))["pure"].culprit == f"micro-batch 1: {culprit}"


def test_what_changes_later_is_seen_later():
    class Late(Base):
        def begin(self):
            self.kept = [0, 0]

        def touch(self, batch):
            self.kept = [*self.kept, 0][-2:]  # equal values in another list are no change
            self.kept[0] += self.trained_for(2)
            return 1.0

        def trained_for(self, updates):
            return int(self.clock >= updates)

    class Clocked(Late):
        def begin(self):
            super().begin()
            self.register_buffer("clock", torch.zeros(()))

        def touch(self, batch):
            self.clock = self.clock + 1
            return super().touch(batch)

    culprit = check(lambda: Clocked("m"))["pure"].culprit
    assert culprit == "micro-batch 2: self.kept[0] changed from 0 to 1"


def test_a_second_run_that_differs_names_the_place_and_the_attribute():
    result = check(lambda: Counting("m"))["deterministic"]
    assert not result.holds
    assert result.culprit == (
        "the second run of the same model differs in carry/params/net.bias after micro-batch 1; "
        "what a run leaves behind: self.count changed from 0 to 4"
    )


def test_a_loss_that_reads_a_clock_is_not_deterministic_though_no_attribute_changes():
    report = check(lambda: GlobalClock("m"))
    assert report["pure"].holds
    assert "differs in carry/params/net.bias after micro-batch 1" in report["deterministic"].culprit


@pytest.mark.parametrize("model", [PythonRandom, NumpyRandom])
def test_global_generators_that_no_state_holds_are_named(model):
    assert "draw from torch's" in check(lambda: model("m"))["deterministic"].culprit


def test_a_setup_that_is_no_function_of_the_seed_is_found():
    assert check(lambda: UnseededSetup("m"))["deterministic"].culprit == (
        "carry/params/net.bias of a fresh model differs: setup() is no function of the seed"
    )


def test_a_step_of_ones_own_is_checked_as_any():
    assert not check(lambda: OwnCarry("m")).broken


def test_a_carry_that_cannot_be_written_is_not_resumable():
    assert "carry/kept: received set" in check(lambda: UnwritableCarry("m"))["resumable"].culprit


def test_a_tensor_kept_without_a_copy_breaks_donation():
    result = check(lambda: Aliasing("m"))["donated"]
    assert result.culprit.startswith("a donated run differs in carry/")
    assert "self.old changed" in result.culprit


def test_a_counter_does_not_break_donation():
    assert check(lambda: Counting("m"))["donated"].holds


@pytest.mark.parametrize(
    ("model", "lost"),
    [
        (Counting, "self.count was 1 and is 0"),
        (Averaging, "self.mean was float32[3] and is float32[3] of other values"),
        (OwnGenerator, "self.rng was a Generator and is a Generator of other values"),
    ],
)
def test_what_a_resume_loses_is_named(model, lost):
    result = check(lambda: model("m"))["resumable"]
    assert not result.holds
    assert result.culprit.startswith("resumed after micro-batch 1, the run differs in carry/")
    assert result.culprit.endswith(f"lost, as neither parameter nor buffer: {lost}")


def test_what_changes_no_bit_is_impure_and_resumable():
    assert broken(check(lambda: Nested("m"))) == ["pure"]


def test_a_dataset_that_remembers_is_named():
    report = check(lambda: Base("m"), helios.data.from_datasets(train=Remembering(), batch_size=4))
    assert broken(report) == DATA
    assert report["workers"].culprit.startswith(
        "batch 1, batch[0] differs when it is fetched again"
    )
    assert "dataset.fetched changed from" in report["workers"].culprit
    assert report["position"].culprit.startswith("opened after batch 1 of the epoch, batch 2, ")


def test_a_dataset_that_knows_its_worker_is_named():
    module = helios.data.from_datasets(train=Knowing(), batch_size=4)
    report = check(lambda: Base("m"), module, workers=(0, 2))
    assert broken(report) == ["workers"]
    assert report["workers"].culprit == "batch 1, batch[0] with 2 workers is not that with 0"


@pytest.mark.parametrize("dataset", [NoisySamples, NoisyStream, StatefulStream])
def test_random_samples_and_streams_keep_the_laws(dataset):
    module = helios.data.from_datasets(train=dataset(24), batch_size=4)
    report = check(lambda: First("m"), module)
    assert not report.broken, str(report)


def test_a_loader_of_the_users_own_has_workers_that_are_left_alone():
    class Own(helios.DataModule):
        def setup(self):
            self.rows = torch.utils.data.TensorDataset(*rows())

        def train_dataloader(self):
            return DataLoader(self.rows, batch_size=4)

    report = check(lambda: Base("m"), Own(), workers=(0, 2))
    assert not report.broken
    assert report["workers"].holds is None
    assert "train_dataloader()" in report["workers"].culprit


def test_few_batches_are_taken_from_several_epochs():
    module = helios.data.from_datasets(train=rows(4), batch_size=4)
    report = check(lambda: Base("m"), module)
    assert not report.broken
    assert report["position"].holds is None


def test_broken_laws_raise_with_the_whole_table():
    with pytest.raises(LawError, match="pure, deterministic, resumable") as caught:
        check_laws(lambda: Counting("m"), data(), workers=(0,))
    assert isinstance(caught.value, AssertionError)
    assert "workers        yes" in str(caught.value)


@pytest.mark.parametrize("wrong", [Base("m"), "model", lambda: 3])
def test_what_makes_no_model_is_refused(wrong):
    with pytest.raises(TypeError, match="make_model"):
        check_laws(wrong, data(), workers=(0,))


def test_one_model_given_twice_is_refused():
    model = Base("m")
    with pytest.raises(TypeError, match="the same model twice"):
        check_laws(lambda: model, data(), workers=(0,))


@pytest.mark.parametrize("arguments", [{"batches": 1}, {"workers": ()}, {"workers": (-1,)}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        check_laws(lambda: Base("m"), data(), **arguments)


def test_the_process_is_as_before_and_the_data_are_torn_down():
    class Module(helios.DataModule):
        ended = 0

        def setup(self):
            self._train_dataset = self._create_dataset(
                torch.utils.data.TensorDataset(*rows()), {"batch_size": 4}
            )

        def teardown(self):
            self.ended += 1

    module, before = Module(), (torch.get_rng_state().tolist(), random.getstate())
    check(lambda: PythonRandom("m"), module)
    assert (torch.get_rng_state().tolist(), random.getstate()) == before
    assert module.ended == 1
