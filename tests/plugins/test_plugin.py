from types import SimpleNamespace

import pytest
import torch

from helios.errors import RegistryError
from helios.functional.state import TrainingState
from helios.plugins import RESERVED_IDS, Plugin, UniquePluginOverrides


@pytest.fixture
def trainer():
    return SimpleNamespace(plugins={}, train_exceptions=[], test_exceptions=[])


def test_the_id_is_kept():
    assert Plugin("mine").plug_id == "mine"


def test_an_empty_id_is_an_error():
    with pytest.raises(ValueError, match="plug_id: received an empty string"):
        Plugin("")


@pytest.mark.parametrize("plug_id", sorted(RESERVED_IDS))
def test_a_reserved_id_is_an_error(plug_id):
    with pytest.raises(ValueError, match=f"received '{plug_id}', which checkpoints use"):
        Plugin(plug_id)


def test_an_id_that_is_no_string_is_a_type_error():
    with pytest.raises(TypeError, match="plug_id: received a int"):
        Plugin(3)


def test_nothing_is_claimed_by_default():
    assert Plugin("mine").unique_overrides == UniquePluginOverrides(False, False, False, False)


def test_claims_are_kept():
    claims = UniquePluginOverrides(training_batch=True)
    assert Plugin("mine", claims).unique_overrides is claims


def test_claims_are_frozen():
    with pytest.raises(AttributeError, match="immutable"):
        Plugin("mine").unique_overrides.training_batch = True


def test_claims_of_another_type_are_a_type_error():
    with pytest.raises(TypeError, match="received a bool; expected UniquePluginOverrides"):
        Plugin("mine", True)


def test_batches_pass_through_by_default():
    plugin, batch = Plugin("mine"), object()
    assert plugin.process_training_batch(batch, TrainingState()) is batch
    assert plugin.process_validation_batch(batch, 0) is batch
    assert plugin.process_testing_batch(batch, 0) is batch


def test_training_goes_on_by_default():
    assert Plugin("mine").should_training_stop() is False


def test_there_is_no_state_by_default():
    plugin = Plugin("mine")
    assert plugin.state_dict() == {}
    plugin.load_state_dict({"left": "over"})


def test_hooks_do_nothing_by_default(trainer):
    plugin = Plugin("mine")
    plugin.configure_trainer(trainer)
    plugin.configure_model(None)
    plugin.setup()
    plugin.on_training_start()
    plugin.on_validation_start(0)
    plugin.on_validation_end(0)
    plugin.on_training_end()
    plugin.on_testing_start()
    plugin.on_testing_end()
    assert trainer == SimpleNamespace(plugins={}, train_exceptions=[], test_exceptions=[])


@pytest.mark.parametrize("name", ["device", "trainer"])
def test_what_a_run_sets_is_an_error_before_it(name):
    with pytest.raises(ValueError, match=f"plugin 'mine' has no {name} yet; the trainer sets it"):
        getattr(Plugin("mine"), name)


def test_what_a_run_sets_can_be_read(trainer):
    plugin = Plugin("mine")
    plugin.trainer, plugin.device = trainer, torch.device("cpu")
    plugin.rank, plugin.is_distributed = 2, True
    assert (plugin.trainer, plugin.device) == (trainer, torch.device("cpu"))
    assert (plugin.rank, plugin.is_distributed) == (2, True)


def test_one_process_is_the_default():
    assert (Plugin("mine").rank, Plugin("mine").is_distributed) == (0, False)


def test_files_are_mapped_to_the_device_of_the_run():
    plugin = Plugin("mine")
    plugin.device = torch.device("cuda", 1)
    assert plugin.map_loc == "cuda:1"


def test_files_are_mapped_to_where_they_are_asked_to():
    plugin = Plugin("mine")
    plugin.map_loc = {"cuda:0": "cuda:1"}
    assert plugin.map_loc == {"cuda:0": "cuda:1"}


def test_a_plugin_registers_itself(trainer):
    plugin = Plugin("mine")
    plugin._register_in_trainer(trainer)
    assert trainer.plugins == {"mine": plugin}


def test_registering_again_changes_nothing(trainer):
    plugin = Plugin("mine")
    plugin._register_in_trainer(trainer)
    plugin._register_in_trainer(trainer)
    assert trainer.plugins == {"mine": plugin}


def test_registering_another_of_the_id_is_an_error(trainer):
    plugin = Plugin("mine")
    plugin._register_in_trainer(trainer)
    with pytest.raises(RegistryError, match="has a plugin with the id 'mine' already"):
        Plugin("mine")._register_in_trainer(trainer)
    assert trainer.plugins == {"mine": plugin}


def test_one_exception_is_added(trainer):
    Plugin("mine")._append_train_exceptions(KeyError, trainer)
    assert trainer.train_exceptions == [KeyError]
    assert trainer.test_exceptions == []


@pytest.mark.parametrize("kinds", [[KeyError, OSError], (KeyError, OSError)])
def test_several_exceptions_are_added(trainer, kinds):
    Plugin("mine")._append_test_exceptions(kinds, trainer)
    assert trainer.test_exceptions == [KeyError, OSError]
    assert trainer.train_exceptions == []


def test_an_exception_is_added_once(trainer):
    Plugin("mine")._append_train_exceptions(KeyError, trainer)
    Plugin("mine")._append_train_exceptions([KeyError, OSError], trainer)
    assert trainer.train_exceptions == [KeyError, OSError]


@pytest.mark.parametrize("kind", [int, "KeyError", KeyboardInterrupt, KeyError("x")])
def test_anything_but_an_exception_is_a_type_error(trainer, kind):
    with pytest.raises(TypeError, match="expected a type of exception"):
        Plugin("mine")._append_train_exceptions(kind, trainer)
    assert trainer.train_exceptions == []
