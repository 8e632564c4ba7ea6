import msgspec
import pytest

from helios.data import DataLoaderParams


def test_params_are_frozen():
    with pytest.raises(AttributeError):
        DataLoaderParams().batch_size = 2


def test_dicts_go_back_and_forth():
    params = DataLoaderParams(batch_size=4, shuffle=True, collate_fn=list, random_seed=3)
    assert DataLoaderParams.from_dict(params.to_dict()) == params


def test_missing_keys_have_their_defaults():
    assert DataLoaderParams.from_dict({}) == DataLoaderParams()


def test_a_sampler_is_read_from_a_dict():
    sampler = [1, 2]
    assert DataLoaderParams.from_dict({"sampler": sampler}).sampler is sampler


def test_unknown_keys_are_refused_with_the_valid_ones():
    with pytest.raises(ValueError, match=r"unknown keys 'batchsize'; .*batch_size, shuffle"):
        DataLoaderParams.from_dict({"batchsize": 4})


def test_a_table_must_be_a_dict():
    with pytest.raises(TypeError, match="received list; expected a dict"):
        DataLoaderParams.from_dict([("batch_size", 4)])


def test_debug_mode_has_no_workers():
    assert DataLoaderParams(num_workers=4, debug_mode=True).workers == 0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("batch_size", 0, ValueError),
        ("batch_size", True, TypeError),
        ("batch_size", 2.0, TypeError),
        ("num_workers", -1, ValueError),
        ("num_workers", "2", TypeError),
        ("prefetch_factor", 0, ValueError),
        ("random_seed", 1.5, TypeError),
        ("shuffle", 1, TypeError),
        ("pin_memory", None, TypeError),
        ("drop_last", "no", TypeError),
        ("debug_mode", 0, TypeError),
        ("is_distributed", 1, TypeError),
        ("persistent_workers", 1, TypeError),
        ("collate_fn", 3, TypeError),
        ("sampler", 3, TypeError),
        ("sampler", list, TypeError),
        ("sampler", ("Name", 1), TypeError),
    ],
)
def test_each_argument_is_checked(name, value, error):
    with pytest.raises(error, match=f"{name}: received .*; expected"):
        DataLoaderParams(**{name: value})


def test_a_changed_copy_is_checked_too():
    with pytest.raises(ValueError, match="batch_size: received 0"):
        msgspec.structs.replace(DataLoaderParams(), batch_size=0)
