"""Models and data that break a law on purpose are found out, and the culprit is named."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import nn
from torch.utils.data import DataLoader, Dataset

import helios
from helios.errors import LawError
from helios.testing import check_laws
from tests import zoo
from tests.data.samples import Noisy as NoisySamples
from tests.data.samples import NoisyStream, StatefulStream

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


class Base(helios.Model):
    """Clean but for what a subclass does in ``touch``, which returns a factor of the loss."""

    def setup(self, fast_init=False):
        self.net = nn.Linear(3, 2)
        self.optimizer = helios.optim.AdamW(lr=1e-2)
        self.begin()

    def begin(self):
        pass

    def touch(self, batch):
        return 1.0

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1]) * self.touch(batch)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0


class Nested(Base):
    def begin(self):
        self.parts = nn.ModuleList([Part()])

    def touch(self, batch):
        self.parts[0].calls += 1
        return 1.0


class Counting(Base):
    def begin(self):
        self.count = 0

    def touch(self, batch):
        self.count += 1
        return 1.0 / self.count


class Hoarding(Base):
    def begin(self):
        self.seen = {"losses": []}

    def touch(self, batch):
        self.seen["losses"].append(len(batch))
        return 1.0


class Lazy(Base):
    def touch(self, batch):
        if not hasattr(self, "scale"):
            self.scale = torch.full((3,), 2.0)
        return self.scale[0]


class Averaging(Base):
    def begin(self):
        self.mean = torch.zeros(3)

    def touch(self, batch):
        self.mean.mul_(0.9).add_(batch[0].mean(0), alpha=0.1)
        return 1 + self.mean.square().sum()


class Buffered(Averaging):
    def begin(self):
        self.register_buffer("mean", torch.zeros(3))


class OwnGenerator(Base):
    def begin(self):
        self.rng = torch.Generator().manual_seed(1)

    def touch(self, batch):
        return torch.rand((), generator=self.rng)


class NumpyGenerator(Base):
    def begin(self):
        self.rng = np.random.default_rng(1)

    def touch(self, batch):
        return float(self.rng.random())


class PythonRandom(Base):
    def touch(self, batch):
        return random.random()


class NumpyRandom(Base):
    def touch(self, batch):
        return float(np.random.rand())


class InPlace(Base):
    def loss(self, batch):
        batch[0].add_(1)
        return super().loss(batch)


class Thawing(Base):
    def begin(self):
        self.net.bias.requires_grad_(False)
        self.extra = nn.Parameter(torch.zeros(2), requires_grad=False)

    def touch(self, batch):
        self.extra.requires_grad_(True)
        return 1.0


class OfTheClass(Base):
    calls = 0

    def touch(self, batch):
        OfTheClass.calls += 1
        return 1.0


class GlobalClock(Base):
    ticks = staticmethod(itertools.count(1).__next__)

    def touch(self, batch):
        return 1.0 / self.ticks()


class UnseededSetup(Base):
    made = itertools.count(1)

    def begin(self):
        with torch.no_grad():
            self.net.bias.fill_(float(next(UnseededSetup.made)))


class NumpySetup(Base):
    """A trainer seeds numpy before ``setup``: that is allowed."""

    def begin(self):
        with torch.no_grad():
            self.net.bias.fill_(float(np.random.rand()))


class Aliasing(Base):
    """Keeps the weights of its start without a copy: a donated step overwrites them."""

    def begin(self):
        self.old = None

    def touch(self, batch):
        if self.old is None:
            self.old = self.net.weight.detach()
        return 1 + (self.net.weight - self.old).square().sum()


class OwnCarry(helios.Model):
    def setup(self, fast_init=False):
        pass

    def init_carry(self):
        return {"mean": torch.zeros(3), "seen": 0}

    def step(self, state, batch):
        seen = state.carry["seen"] + len(batch[0])
        mean = state.carry["mean"] + (batch[0] - state.carry["mean"]).sum(0) / seen
        return replace(state, carry={"mean": mean, "seen": seen})


class UnwritableCarry(OwnCarry):
    def step(self, state, batch):
        return replace(state, carry={"kept": {1, 2}})


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


class Remembering(Dataset):
    """Each sample depends on how many were fetched before."""

    def __init__(self):
        self.fetched = 0

    def __len__(self):
        return 24

    def __getitem__(self, index):
        self.fetched += 1
        return torch.full((3,), float(self.fetched)), torch.tensor(index % 2)


class Knowing(Dataset):
    """Each sample depends on whether a worker fetches it."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        worker = torch.utils.data.get_worker_info()
        return torch.full((3,), 0.0 if worker is None else 1.0), torch.tensor(index % 2)


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


class First(helios.Model):
    """Takes the batches of the samples of tests/data."""

    def setup(self, fast_init=False):
        self.net = nn.Linear(1, 1)
        self.optimizer = helios.optim.SGD(lr=1e-3)

    def loss(self, batch):
        return self.net(batch[:, :1].float()).square().mean()


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
