import argparse
import fractions

import pytest
import torch

from helios.core.utils import safe_torch_load
from helios.errors import CheckpointError, CorruptCheckpointError


def test_tensors_and_numbers_are_loaded(tmp_path):
    torch.save({"w": torch.ones(2), "n": 3}, tmp_path / "a.pth")
    loaded = safe_torch_load(tmp_path / "a.pth")
    assert loaded["n"] == 3
    assert torch.equal(loaded["w"], torch.ones(2))


def test_a_string_is_a_path_too(tmp_path):
    torch.save(3, tmp_path / "a.pth")
    assert safe_torch_load(str(tmp_path / "a.pth")) == 3


def test_map_location_is_passed_on(tmp_path):
    torch.save(torch.ones(2), tmp_path / "a.pth")
    assert safe_torch_load(tmp_path / "a.pth", map_location="meta").device.type == "meta"


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth does not exist"):
        safe_torch_load(tmp_path / "none.pth")


def test_a_folder_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        safe_torch_load(tmp_path)


def test_unsafe_types_are_all_named_with_what_to_do(tmp_path):
    torch.save([argparse.Namespace(a=1), fractions.Fraction(1, 2)], tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        safe_torch_load(tmp_path / "a.pth")
    message = str(caught.value)
    assert "argparse.Namespace, fractions.Fraction" in message
    assert "add_safe_globals([Namespace, Fraction])" in message


def test_an_unsafe_file_is_not_called_corrupt(tmp_path):
    torch.save(argparse.Namespace(a=1), tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        safe_torch_load(tmp_path / "a.pth")
    assert not isinstance(caught.value, CorruptCheckpointError)


def test_an_allowed_type_is_loaded(tmp_path):
    torch.save(argparse.Namespace(a=1), tmp_path / "a.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        assert safe_torch_load(tmp_path / "a.pth").a == 1


@pytest.mark.parametrize("keep", [0, 1, 10, 400, 900])
def test_a_file_cut_short_is_corrupt(tmp_path, keep):
    file = tmp_path / "a.pth"
    torch.save({"w": torch.ones(20)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptCheckpointError, match=rf"a\.pth \({keep} bytes\) cannot be read"):
        safe_torch_load(file)


def test_a_file_of_something_else_is_corrupt(tmp_path):
    (tmp_path / "a.pth").write_text("hello, this is not a checkpoint")
    with pytest.raises(CorruptCheckpointError):
        safe_torch_load(tmp_path / "a.pth")
