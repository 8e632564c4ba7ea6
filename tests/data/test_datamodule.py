import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from helios.data import DataLoaderParams, DataModule, DatasetSplit, from_datasets, source_of
from helios.errors import DataError
from helios.functional.share import Shares
from tests.data.samples import Noisy, NoisyStream


class Numbers(DataModule):
    def setup(self):
        self._train_dataset = self._create_dataset(
            range(50), DataLoaderParams(batch_size=5, shuffle=True)
        )
        self._valid_dataset = self._create_dataset(range(4), {"batch_size": 2})


def ready(seed=1):
    module = Numbers()
    module.seed = seed
    module.setup()
    return module


def flat(loaders):
    return torch.cat(list(loaders[0])).tolist()


def test_datasets_are_none_before_setup():
    module = Numbers()
    assert (module.train_dataset, module.valid_dataset, module.test_dataset) == (None, None, None)


def test_the_users_dataset_is_returned():
    assert ready().train_dataset == range(50)


def test_a_missing_dataset_has_no_loader():
    assert ready().test_dataloader() is None


def test_loaders_are_made_anew():
    module = ready()
    assert module.train_dataloader()[0] is not module.train_dataloader()[0]


def test_a_table_becomes_params():
    assert len(ready().valid_dataloader()[0]) == 2


def test_unknown_keys_of_a_table_are_refused():
    with pytest.raises(ValueError, match="unknown keys 'batch'"):
        Numbers()._create_dataset([1], {"batch": 1})


def test_the_seed_of_the_run_governs_the_order():
    assert flat(ready(1).train_dataloader()) == flat(ready(1).train_dataloader())
    assert flat(ready(1).train_dataloader()) != flat(ready(2).train_dataloader())


@pytest.mark.parametrize("asked", [None, True])
def test_a_distributed_run_leaves_the_sharing_to_the_trainer(asked):
    module = Numbers()
    module.is_distributed = True
    params = DataLoaderParams(is_distributed=asked)
    module._train_dataset = module._create_dataset(range(3), params)
    assert flat(module.train_dataloader()) == [0, 1, 2]
    shared = source_of(module.train_dataloader(), shares=Shares(pieces=2, first=1, end=2))
    assert shared.batches_per_epoch == 3


def test_params_may_opt_out_of_sharing():
    module = Numbers()
    module.is_distributed = True
    params = DataLoaderParams(is_distributed=False)
    module._train_dataset = module._create_dataset(range(3), params)
    assert flat(module.train_dataloader()) == [0, 1, 2]


def test_a_subclass_need_not_call_init():
    class Silent(Numbers):
        def __init__(self):
            pass

    assert Silent().train_dataloader() is None


def test_a_raw_dataset_as_attribute_is_refused():
    module = Numbers()
    module._train_dataset = Noisy(3)
    with pytest.raises(TypeError, match=r"holds a Noisy; expected what self\._create_dataset"):
        module.train_dataloader()


def test_the_trainer_is_missing_before_fit():
    with pytest.raises(DataError, match=r"Numbers\.trainer: there is none yet"):
        _ = Numbers().trainer


def test_the_trainer_is_kept():
    module, trainer = Numbers(), object()
    module.trainer = trainer
    assert module.trainer is trainer


def test_setup_is_needed():
    with pytest.raises(TypeError, match="abstract"):
        DataModule()


def test_hooks_may_be_left_out():
    assert (Numbers().prepare_data(), Numbers().teardown()) == (None, None)


def test_a_dataset_becomes_a_dict():
    table = ready()._valid_dataset.dict()
    assert (table["dataset"], table["batch_size"]) == (range(4), 2)


@pytest.mark.parametrize("split", DatasetSplit)
def test_splits_have_labels(split):
    assert DatasetSplit.from_str(split.name.lower()) is split


@pytest.mark.parametrize("label", ["TRAIN", "dev", ""])
def test_other_labels_are_refused(label):
    with pytest.raises(ValueError, match="expected one of 'train', 'valid', 'test'"):
        DatasetSplit.from_str(label)


def test_only_training_data_is_shuffled_and_cut():
    module = from_datasets(range(50), range(50), range(50), batch_size=4, drop_last=True)
    assert len(flat(module.train_dataloader())) == 48
    assert flat(module.train_dataloader()) != list(range(48))
    assert flat(module.valid_dataloader()) == list(range(50))
    assert flat(module.test_dataloader()) == list(range(50))


def test_shuffling_can_be_switched_off():
    assert flat(from_datasets(range(9), shuffle=False).train_dataloader()) == list(range(9))


def test_a_tuple_of_tensors_is_a_dataset():
    module = from_datasets((torch.zeros(6, 2), np.arange(6)), batch_size=6)
    assert type(module.train_dataset) is TensorDataset
    x, y = next(iter(module.train_dataloader()[0]))
    assert (x.shape, sorted(y.tolist())) == ((6, 2), list(range(6)))


@pytest.mark.parametrize("other", [torch.zeros(5), torch.zeros(())])
def test_tensors_of_other_sizes_are_refused(other):
    with pytest.raises(DataError, match=r"valid: received tensors of the shapes \(6, 2\), \("):
        from_datasets(valid=(torch.zeros(6, 2), other))


def test_a_list_of_samples_is_a_dataset():
    module = from_datasets([(torch.ones(2), 0), (torch.zeros(2), 1)], batch_size=2, shuffle=False)
    x, y = next(iter(module.train_dataloader()[0]))
    assert (x.tolist(), y.tolist()) == ([[1, 1], [0, 0]], [0, 1])


def test_a_stream_keeps_its_order():
    module = from_datasets(NoisyStream(3), batch_size=2)
    assert [len(batch) for batch in module.train_dataloader()[0]] == [2, 1]


def test_a_sampler_is_that_of_the_training_set():
    module = from_datasets(range(4), range(4), sampler=[3, 1])
    assert flat(module.train_dataloader()) == [3, 1]
    assert flat(module.valid_dataloader()) == [0, 1, 2, 3]


def test_further_arguments_are_those_of_the_params():
    assert from_datasets([1], random_seed=3)._train_dataset.params.random_seed == 3
    with pytest.raises(ValueError, match="unknown keys 'workers'"):
        from_datasets([1], workers=2)


@pytest.mark.parametrize("data", [3, "abc"])
def test_what_is_no_dataset_is_refused(data):
    with pytest.raises(TypeError, match="train: received a"):
        from_datasets(data)


def test_a_given_module_is_set_up_already():
    module = from_datasets([1, 2])
    assert module.setup() is None
    assert source_of(module.train_dataloader()).batches_per_epoch == 2
