"""The trainer's arguments: their order, and what is said about a wrong one."""

from __future__ import annotations

import math

import pytest
import torch

import helios
from helios import Trainer, TrainingUnit
from tests import zoo
from tests.test_public_api import ARGUMENTS
from tests.trainer.runs import Batches, run

COUNTS = ["valid_frequency", "chkpt_frequency", "print_frequency", "early_stop_cycles"]
FLAGS = [name for name, default in ARGUMENTS.items() if isinstance(default, bool)]
PATHS = ["chkpt_root", "log_path", "run_path", "src_root"]


def test_every_default_together_is_accepted():
    assert Trainer().total_steps == 0


WRONG_TYPES = [
    ("run_name", 3),
    ("run_name", None),
    ("train_unit", 1),
    ("train_unit", None),
    ("total_steps", True),
    ("total_steps", "10"),
    ("total_steps", None),
    *[(name, value) for name in COUNTS for value in (True, 1.0, "1")],
    ("accumulation_steps", None),
    ("accumulation_steps", 2.0),
    ("accumulation_steps", True),
    *[(name, value) for name in FLAGS for value in (1, None, "yes")],
    ("use_cpu", 1),
    ("gpus", 0),
    ("gpus", ["0"]),
    ("gpus", [True]),
    ("random_seed", 1.0),
    ("random_seed", True),
    *[(name, 3) for name in PATHS],
    ("import_prefix", None),
    ("plugins", "cuda"),
    ("plugins", helios.Plugin("alone")),
    ("plugins", [helios.Plugin]),
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES)
def test_a_wrong_type_is_refused_with_name_and_value(name, value):
    with pytest.raises(TypeError) as caught:
        Trainer(**{name: value})
    assert str(caught.value).startswith(f"{name}: received")
    received = value[0] if name == "plugins" and isinstance(value, list) else value
    shown = repr(received) in str(caught.value) or type(value).__name__ in str(caught.value)
    assert shown
    assert "expected" in str(caught.value)


WRONG_VALUES = [
    ("run_name", "a/b"),
    ("run_name", ".."),
    ("train_unit", "epochs"),
    ("train_unit", "EPOCH"),
    ("total_steps", -3),
    ("total_steps", 2.5),
    ("total_steps", -math.inf),
    ("total_steps", math.nan),
    *[(name, value) for name in COUNTS for value in (0, -1)],
    ("accumulation_steps", 0),
    ("accumulation_steps", -2),
    ("gpus", []),
    ("gpus", [0, 1]),
    ("gpus", [1000]),
    ("gpus", [-1]),
    ("random_seed", -1),
    ("random_seed", 2**63),
]


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_a_wrong_value_is_refused_with_name_and_value(name, value):
    with pytest.raises(ValueError, match="expected") as caught:
        Trainer(**{name: value})
    assert str(caught.value).startswith(f"{name}: received {value!r}")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"enable_cudnn_benchmark": True, "enable_deterministic": True}, "enable_deterministic"),
        ({"use_cpu": True, "gpus": [0]}, "use_cpu"),
        ({"early_stop_cycles": 2}, "valid_frequency"),
        ({"chkpt_frequency": 2}, "chkpt_root"),
        ({"enable_tensorboard": True}, "run_path"),
        ({"enable_file_logging": True}, "log_path"),
    ],
)
def test_arguments_that_need_or_exclude_each_other_are_named(arguments, named):
    with pytest.raises(ValueError, match=named) as caught:
        Trainer(**arguments)
    assert next(iter(arguments)) in str(caught.value) or "gpus" in str(caught.value)
    assert "received" in str(caught.value)


def test_two_plugins_with_one_id_are_refused():
    with pytest.raises(ValueError, match="plugins: received two with the id 'a'"):
        Trainer(plugins=[helios.Plugin("a"), helios.Plugin("a")])


@pytest.mark.parametrize("steps", [1, 10**12, math.inf])
def test_total_steps_may_be_any_count_or_infinite(steps):
    assert Trainer(total_steps=steps).total_steps == steps


def test_labels_stand_for_units():
    assert Trainer(train_unit="iteration").train_unit is TrainingUnit.ITERATION
    assert Trainer(train_unit="epoch").train_unit is TrainingUnit.EPOCH


@pytest.mark.parametrize("unit", list(TrainingUnit))
def test_a_unit_is_made_of_its_label(unit):
    assert TrainingUnit.from_str(unit.name.lower()) is unit


@pytest.mark.parametrize("label", ["", "EPOCH", "epochs", "step"])
def test_another_label_is_refused(label):
    with pytest.raises(ValueError, match="expected 'iteration' or 'epoch'"):
        TrainingUnit.from_str(label)


def test_units_have_the_seed_s_values():
    assert (TrainingUnit.ITERATION.value, TrainingUnit.EPOCH.value) == (0, 1)


def test_paths_are_fixed_at_construction(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(
        total_steps=1, use_cpu=True, print_banner=False, chkpt_root="runs", train_unit="iteration"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert trainer.fit(zoo.Line(), Batches(zoo.regression(1)))
    assert (tmp_path / "runs" / "line").is_dir()
    assert trainer.chkpt_root == tmp_path / "runs"


def test_the_nine_properties_before_a_run():
    plugin = helios.Plugin("a")
    trainer = Trainer(use_cpu=True, plugins=[plugin])
    assert (trainer.local_rank, trainer.rank, trainer.gpu_ids) == (0, 0, [])
    assert (trainer.train_exceptions, trainer.test_exceptions) == ([], [])
    assert trainer.plugins == {"a": plugin}
    assert trainer.queue is None
    for name in ("model", "datamodule"):
        with pytest.raises(RuntimeError, match=f"no {name} yet"):
            getattr(trainer, name)


def test_the_nine_properties_after_a_run():
    model, data = zoo.Line(), Batches(zoo.regression(1))
    trainer = run(model=model, data=data, steps=1)
    assert trainer.model is model
    assert trainer.datamodule is data
    assert model.trainer is trainer
    assert data.trainer is trainer


def test_a_trainer_without_a_run_has_no_state():
    with pytest.raises(RuntimeError, match="no state yet"):
        _ = Trainer().state


def test_without_cuda_the_cpu_computes():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert Trainer().device == torch.device("cpu")


def test_sources_are_registered_before_the_run(tmp_path, monkeypatch):
    package = tmp_path / "scanned_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(
        "import helios\n"
        "from helios.model import MODEL_REGISTRY\n\n\n"
        "@MODEL_REGISTRY.register\n"
        "class Scanned(helios.Model):\n"
        "    def setup(self, fast_init=False):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run(steps=1, src_root=package)
    assert "Scanned" in helios.model.MODEL_REGISTRY
