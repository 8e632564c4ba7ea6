"""Between two log points the host reads nothing from the device, and waits for no copy.

Three times the same fits. On the CPU, the operators that hand a value to the host are counted. Some
code reads a CPU tensor by ``tolist()``, which costs nothing there and is no operator; so the fits
run on the device "meta" too, whose tensors have no values: whatever reads one raises. They take the
path of any device that is not the CPU. On CUDA, torch itself raises.
"""

from __future__ import annotations

import traceback

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _get_value
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import helios
from helios.functional import nonfinite
from tests import zoo
from tests.trainer import runs

WINDOWS = 6
READS = {
    "_local_scalar_dense",  # item(), float(), int(), bool(), and of one element tolist()
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_static",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "repeat_interleave",
}


class Watching(TorchDispatchMode):
    """Collects the operators that hand a value to the host, or make it wait for a copy."""

    def __init__(self):
        super().__init__()
        self.is_on = False
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        result = function(*args, **(kwargs or {}))
        waits = name in READS or self._waits(name, args, kwargs or {}, result)
        if waits and self.is_on and not is_count_of_steps(args[0]):
            self.found.append(name)
        return result

    @staticmethod
    def _waits(name, args, kwargs, result):
        if name == "_to_copy":
            return args[0].device != result.device and not kwargs.get("non_blocking")
        if name == "copy_":
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            return args[0].device != args[1].device and not non_blocking
        return False


class WatchingConstructors(TorchFunctionMode):
    """Tells a `Watching` of values that are copied to a device as a tensor is made of them.

    A constructor does so below the operators, and waits.
    """

    def __init__(self, watching):
        super().__init__()
        self.watching = watching

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        copies = function in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
        if self.watching.is_on and copies and not result.is_cpu:
            self.watching.found.append(function.__name__)
        return result


def is_count_of_steps(tensor):
    """Tell whether a tensor is read by torch's optimizer as its count of steps.

    That is on the CPU whatever the device of the parameters, and reading it waits for nothing.
    """
    if tensor.is_cpu and tensor.dim() == 0:
        for frame, _ in traceback.walk_stack(None):
            if frame.f_code is _get_value.__code__:
                return True
    return False


def between_logs(model, begin, end):
    """Call functions where a stretch without log points begins, and where it ends."""

    class Marked(type(model)):
        def on_training_batch_start(self, state):
            super().on_training_batch_start(state)
            begin()

        def on_training_batch_end(self, state, should_log=False):
            super().on_training_batch_end(state, should_log)
            if should_log:
                end()

        def on_training_end(self):
            end()

    model.__class__ = Marked
    return model


class Noisy(zoo.Noisy):
    """Dropout, batch normalisation, metrics, a schedule; more on demand."""

    def __init__(self, precision="fp32", average=False, clip=None):
        super().__init__("noisy")
        self.choices = precision, average, clip

    def setup(self, fast_init=False):
        super().setup(fast_init)
        precision, average, clip = self.choices
        self.precision = precision
        if average:
            self.average = helios.optim.average(decay=0.9)
        rate = helios.optim.rates.warmup_cosine(peak=1e-2, warmup=2, total=20)
        adamw = helios.optim.AdamW(lr=rate, weight_decay=0.01)
        self.optimizer = adamw if clip is None else helios.optim.chain(clip=clip, adamw=adamw)


class Plain(helios.Model):
    """A loss alone."""

    def setup(self, fast_init=False):
        self.net = nn.Linear(3, 2)
        self.optimizer = helios.optim.SGD(lr=0.1, momentum=0.9)

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


CASES = {
    "plain": (lambda: Plain("plain"), {}),
    "noisy": (Noisy, {}),
    "accumulation": (Noisy, {"accumulation_steps": 3}),
    "clipped by norm": (lambda: Noisy(clip=helios.optim.clip_by_global_norm(1.0)), {}),
    "clipped by value": (lambda: Noisy(clip=helios.optim.clip_by_value(0.1)), {}),
    "average": (lambda: Noisy(average=True), {}),
    "bf16": (lambda: Noisy("bf16"), {"accumulation_steps": 2}),
    "weighted": (zoo.Weighted, {"accumulation_steps": 2}),
    "objectives": (lambda: zoo.Game("game"), {"accumulation_steps": 2}),
}


def batches_for(model, count):
    if isinstance(model, zoo.Game):
        return zoo.regression(count, dtype=torch.float64)
    if isinstance(model, Plain):
        return zoo.classes(count)
    return zoo.batches_for(model, count)


def fit(model, device=None, **arguments):
    """Fit for some updates, within an epoch."""
    made = runs.trainer(steps=WINDOWS, **arguments)
    if device is not None:
        made.device = torch.device(device)
    made.train_exceptions.append(Exception)
    assert made.fit(model, runs.Batches(batches_for(model, 40)))
    assert made.state.current_iteration == WINDOWS
    return made


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_read_between_two_logs(case, tmp_path):
    make, arguments = CASES[case]
    watching = Watching()

    def turn(on):
        watching.is_on = on

    model = between_logs(make(), lambda: turn(True), lambda: turn(False))
    with watching:
        fit(model, print_frequency=3, enable_file_logging=True, log_path=tmp_path, **arguments)
    assert watching.found == []


class Telling(Plain):
    """Hands a tensor to the logs in every micro-batch."""

    def on_training_batch_end(self, state, should_log=False):
        self.trainer.log.scalar("told/weight", self.net.weight.detach().mean())


def test_nothing_is_read_between_two_logs_for_the_logs_and_the_record_of_a_run(tmp_path):
    watching = Watching()

    def turn(on):
        watching.is_on = on

    model = between_logs(Telling("telling"), lambda: turn(True), lambda: turn(False))
    with watching:
        fit(
            model,
            print_frequency=3,
            enable_tensorboard=True,
            run_path=tmp_path / "board",
            logs=[helios.CSVLog(tmp_path / "log.csv")],
            chkpt_root=tmp_path / "root",
            flight_recorder=True,
        )
    assert watching.found == []
    assert len((tmp_path / "log.csv").read_text().splitlines()) > 1
    assert len(helios.flight_record(tmp_path / "root" / "telling")) == WINDOWS


def test_a_read_on_the_cpu_would_be_seen():
    watching = Watching()

    def turn(on):
        watching.is_on = on

    with watching:
        fit(between_logs(Reading(torch.Tensor.item), lambda: turn(True), lambda: turn(False)))
    assert set(watching.found) == {"_local_scalar_dense"}


def arriving(found, *others):
    """Stand in for the copy to page-locked memory, which alone "meta" cannot do.

    What is sent is made on the device as for CUDA; what arrives says that all is well.
    """
    wide = [nonfinite._on_device(number, found.device) for number in (found, *others)]
    assert torch.stack(wide).device == found.device
    return lambda: [0.0, *[1.0] * len(others)]


@pytest.fixture
def meta(monkeypatch):
    """Return a fit on the device "meta", which raises where a value is read."""
    monkeypatch.setattr(nonfinite, "send", arriving)

    def fit_on_meta(model, **arguments):
        watching = Watching()

        def begin():
            watching.is_on = True

        with watching, WatchingConstructors(watching):
            made = fit(between_logs(model, begin, lambda: None), "meta", **arguments)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert all(tensor.is_meta for tensor in made.state.carry.params.values())
        return watching.found

    return fit_on_meta


# torch has no autocast for this device.
@pytest.mark.parametrize("case", [case for case in CASES if case != "bf16"])
def test_nothing_is_read_from_another_device(case, meta):
    make, arguments = CASES[case]
    assert meta(make(), **arguments) == []


class Reading(Plain):
    """Reads its loss, in one way or another."""

    def __init__(self, read):
        super().__init__("reading")
        self.read = read

    def loss(self, batch):
        loss = super().loss(batch)
        self.read(loss.detach())
        return loss


READERS = [
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.cpu,
    torch.Tensor.numpy,
    bool,
    float,
    torch.Tensor.nonzero,
    lambda loss: torch.equal(loss, loss + 1),
    lambda loss: loss[loss > 0],
]


@pytest.mark.parametrize("read", READERS, ids=range(len(READERS)))
def test_a_read_would_be_seen(read, meta):
    try:
        seen = meta(Reading(read))
    except (NotImplementedError, RuntimeError, TypeError) as error:
        seen = [error]  # there is no value
    assert seen


@pytest.mark.parametrize(
    ("copy", "name"),
    [
        (lambda loss: loss + torch.tensor([1.0]).to("meta"), "_to_copy"),
        (lambda loss: torch.empty_like(loss).copy_(torch.zeros(())), "copy_"),
        (lambda loss: torch.tensor(1.0, device=loss.device), "tensor"),
        (lambda loss: loss.new_tensor(1.0), "new_tensor"),
    ],
)
def test_a_copy_to_the_device_that_is_waited_for_would_be_seen(copy, name, meta):
    assert meta(Reading(copy)) == [name] * WINDOWS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("case", CASES)
def test_cuda_is_not_waited_for_between_two_logs(case, tmp_path):
    make, arguments = CASES[case]
    before = torch.cuda.get_sync_debug_mode()
    model = between_logs(
        make(),
        lambda: torch.cuda.set_sync_debug_mode("error"),
        lambda: torch.cuda.set_sync_debug_mode(before),
    )
    try:
        fit(
            model,
            use_cpu=False,
            print_frequency=3,
            enable_file_logging=True,
            log_path=tmp_path,
            **arguments,
        )
    finally:
        torch.cuda.set_sync_debug_mode(before)
