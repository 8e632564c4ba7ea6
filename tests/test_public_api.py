"""The public surface: that of the seed, name by name, and what stands beside it."""

from __future__ import annotations

import enum
import inspect
import subprocess
import sys
from pathlib import Path

import torch

import helios
from helios import trainer

COUNTERS = {
    "current_iteration": 0,
    "global_iteration": 0,
    "global_epoch": 0,
    "validation_cycles": 0,
    "dataset_iter": 0,
    "early_stop_count": 0,
    "average_iter_time": 0,
    "running_iter": 0,
}
ARGUMENTS = {
    "run_name": "",
    "train_unit": trainer.TrainingUnit.EPOCH,
    "total_steps": 0,
    "valid_frequency": None,
    "chkpt_frequency": None,
    "print_frequency": None,
    "accumulation_steps": 1,
    "enable_cudnn_benchmark": False,
    "enable_deterministic": False,
    "early_stop_cycles": None,
    "use_cpu": None,
    "gpus": None,
    "random_seed": None,
    "enable_tensorboard": False,
    "enable_file_logging": False,
    "enable_progress_bar": False,
    "chkpt_root": None,
    "log_path": None,
    "run_path": None,
    "src_root": None,
    "import_prefix": "",
    "print_banner": True,
}
PROPERTIES = {
    "model",
    "datamodule",
    "local_rank",
    "rank",
    "gpu_ids",
    "train_exceptions",
    "test_exceptions",
    "plugins",
    "queue",
}


def test_the_trainer_module_exports_the_names_of_the_seed():
    assert set(trainer.__all__) == {
        "TrainingUnit",
        "TrainingState",
        "Trainer",
        "get_trainer_safe_types_for_load",
        "register_trainer_types_for_safe_load",
        "find_last_checkpoint",
    }


def test_training_unit_is_the_enum_of_the_seed():
    assert issubclass(trainer.TrainingUnit, enum.Enum)
    assert trainer.TrainingUnit.ITERATION.value == 0
    assert trainer.TrainingUnit.EPOCH.value == 1


def test_a_training_state_begins_with_the_counters_of_the_seed():
    fields = trainer.TrainingState.__struct_fields__
    assert list(fields[:8]) == list(COUNTERS)
    assert trainer.TrainingState().dict() == COUNTERS


def test_the_trainer_takes_the_arguments_of_the_seed_in_its_order():
    parameters = list(inspect.signature(trainer.Trainer).parameters.values())
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert {p.name: p.default for p in positional} == ARGUMENTS
    assert [p.name for p in positional] == list(ARGUMENTS)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[len(ARGUMENTS) :])


def test_the_trainer_has_the_properties_of_the_seed_to_be_read():
    for name in PROPERTIES:
        attribute = inspect.getattr_static(trainer.Trainer, name)
        assert isinstance(attribute, property)
        assert attribute.fset is None


def test_fit_and_test_take_a_model_and_a_datamodule():
    for method in (trainer.Trainer.fit, trainer.Trainer.test):
        signature = inspect.signature(method)
        assert list(signature.parameters) == ["self", "model", "datamodule"]
        assert signature.return_annotation == "bool"


def test_fit_many_takes_a_trainer_models_and_a_datamodule():
    parameters = list(inspect.signature(helios.fit_many).parameters.values())
    assert [p.name for p in parameters] == ["trainer", "models", "datamodule", "seeds"]
    assert parameters[-1].kind is inspect.Parameter.KEYWORD_ONLY


def test_a_saved_state_opens_with_the_registered_types_alone(tmp_path):
    state = helios.TrainingState(global_epoch=3, carry={"w": torch.ones(2)})
    torch.save(state, tmp_path / "state.pth")
    with torch.serialization.safe_globals(trainer.get_trainer_safe_types_for_load()):
        assert torch.load(tmp_path / "state.pth", weights_only=True) == state


def test_registering_the_types_lasts():
    trainer.register_trainer_types_for_safe_load()
    assert set(trainer.get_trainer_safe_types_for_load()) <= set(
        torch.serialization.get_safe_globals()
    )


def test_the_modules_that_the_seed_names_are_where_it_says():
    from helios.core.utils import update_all_registries
    from helios.data import DataModule
    from helios.model import Model
    from helios.plugins import Plugin

    assert callable(update_all_registries)
    assert DataModule is helios.DataModule
    assert Model is helios.Model
    assert Plugin is helios.Plugin


def test_the_package_is_typed():
    assert (Path(helios.__file__).parent / "py.typed").exists()


def test_importing_helios_imports_no_tensorboard():
    code = "import sys, helios; sys.exit('tensorboard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_few_need_is_imported_when_they_need_it():
    few = [
        *("torch.distributed.fsdp", "torch.distributed.tensor", "torch.distributed.checkpoint"),
        *("torch._dynamo", "helios.trainer.many.fit"),
    ]
    code = f"import sys, helios; sys.exit(any(name in sys.modules for name in {few}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
