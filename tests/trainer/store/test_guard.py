from __future__ import annotations

import io
import struct
from collections import OrderedDict

import pytest
import torch
from torch.utils.serialization import config

import helios
from helios.errors import CorruptCheckpointError
from helios.functional.serial import _DTYPES
from helios.trainer.store import archive
from helios.trainer.store.guard import check_archive, check_content
from helios.trainer.store.manifest import SCHEMA
from helios.trainer.store.symbols import MAX_DEPTH, MAX_INT_BITS, MAX_INT_KEY, MAX_VALUES
from helios.trainer.store.tensors import DTYPES
from tests import zoo
from tests.trainer.runs import Batches, trainer
from tests.trainer.store.forge import entries, name, pack, program, storage, tensor


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file


def loaded(file):
    """Read a file as a checkpoint is read."""
    size = file.seek(0, 2)
    check_archive(file, size)
    content = torch.load(file, map_location="cpu", weights_only=True)
    check_content(content, size)
    return content


def refusal(content, size=2**40):
    with pytest.raises(CorruptCheckpointError) as caught:
        check_content(content, size)
    return str(caught.value)


# What helios writes is accepted.


class Everything(zoo.Noisy):
    """AdamW, batch normalisation, an average, and a reassigned buffer."""

    def setup(self, fast_init=False):
        super().setup(fast_init)
        self.average = helios.optim.average(decay=0.9)


class Remembers(helios.Plugin):
    """A plugin with the state of a module and of an optimizer of torch's own."""

    def __init__(self):
        super().__init__("remembers")
        self.net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        self.net.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.net.parameters())
        self.net(torch.ones(1, 1, 4, 4)).sum().backward()
        self.optimizer.step()

    def state_dict(self):
        return {"net": dict(self.net.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict):
        pass


@pytest.mark.parametrize("unit", ["iteration", "epoch"])
def test_the_checkpoints_of_a_run_are_accepted(tmp_path, unit):
    made = trainer(
        tmp_path, unit, steps=3, chkpt_frequency=1, accumulation_steps=2, plugins=[Remembers()]
    )
    data = Batches(zoo.classes(5), zoo.classes(2))
    made.train_exceptions.append(Exception)
    assert made.fit(Everything(), data)
    paths = list(tmp_path.rglob("*.pth"))
    assert len(paths) == 3
    for path in paths:
        with path.open("rb") as file:
            assert loaded(file)["plugins"]["remembers"]["optimizer"]["state"][0]["step"] == 1


@pytest.mark.parametrize("model", [zoo.Line, zoo.Noisy, zoo.Weighted, zoo.Adversarial])
def test_the_states_of_all_models_are_accepted(tmp_path, model):
    built = model("model")
    made = trainer(tmp_path, steps=2)
    assert made.fit(built, Batches([*zoo.batches_for(built.__class__("other"), 3)]))
    (path,) = tmp_path.rglob("*.pth")
    with path.open("rb") as file:
        assert loaded(file)["schema"] == SCHEMA


def test_the_dtypes_are_those_of_the_bytes_of_a_state():
    assert set(_DTYPES.values()) == DTYPES


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
def test_every_dtype_is_accepted(dtype):
    bits = torch.arange(4 * dtype.itemsize, dtype=torch.uint8) & 1
    value = torch.frombuffer(bytearray(bits.numpy().tobytes()), dtype=dtype)
    back = loaded(saved({"all": value.clone(), "none": value[:0].clone()}))
    assert back["all"].dtype is back["none"].dtype is dtype
    assert torch.equal(back["all"].view(torch.uint8), bits)


def test_the_file_is_left_at_its_beginning():
    file = saved([1])
    check_archive(file, file.seek(0, 2))
    assert file.tell() == 0


def test_tensors_that_are_one_storage_are_accepted():
    weight = torch.ones(3)
    back = loaded(saved({"model": weight, "carry": weight}))
    assert back["model"].data_ptr() == back["carry"].data_ptr()


def test_the_metadata_of_a_state_dict_is_kept():
    back = loaded(saved(torch.nn.BatchNorm1d(2).state_dict()))
    assert back._metadata[""] == {"version": 2}


@pytest.mark.parametrize("stem", ["digits_epoch_3_iter_171", "mit leerzeichen", "modèle", "v1.2"])
def test_the_root_of_a_file_saved_under_a_name_is_accepted(tmp_path, stem):
    torch.save([1], tmp_path / f"{stem}.pth")
    with (tmp_path / f"{stem}.pth").open("rb") as file:
        assert loaded(file) == [1]


@pytest.mark.parametrize("alignment", [1, 64, 4096])
def test_another_alignment_is_accepted(alignment):
    before = config.save.storage_alignment
    config.save.storage_alignment = alignment
    try:
        file = saved(torch.ones(3))
    finally:
        config.save.storage_alignment = before
    assert torch.equal(loaded(file), torch.ones(3))


def test_the_forge_writes_what_torch_writes():
    raw = saved([torch.ones(4), torch.zeros(0)]).getvalue()
    start = raw.index(b"\x80\x02")
    pickle = raw[start : raw.index(b"PK\7\10", start)]
    made = entries(pickle, torch.ones(4).numpy().tobytes(), b"")
    made[-1].data = raw[(end := raw.index(b"PK\1\2")) - 56 : end - 16]
    assert pack(made) == raw


def test_the_bounds_are_reached():
    deep: list = []
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    longest = 2 ** (MAX_INT_BITS - 1) - 1
    largest = MAX_INT_KEY - 1
    content = {"deep": deep[0], "int": [longest, -longest], largest: 0, -largest: 1}
    assert loaded(saved(content)) == content


def test_one_more_level_is_refused_by_both():
    deep: list = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert "nested more than 200 deep" in refusal(deep)
    with pytest.raises(CorruptCheckpointError, match="nested more than 200 deep"):
        loaded(saved(deep))


# Large archives.


@pytest.mark.parametrize("room", [17, 64, 300, 500, 1_000, 1_100])
def test_the_wide_fields_of_a_large_archive_are_accepted(monkeypatch, room):
    monkeypatch.setattr(archive, "_ROOM", room)  # property_tests/test_archive.py has 4 GiB
    raw = pack(entries(program(tensor()), bytes(16)), room=room)
    check_archive(io.BytesIO(raw), len(raw))


# Trees.


class Number(int):
    pass


class Named(dict):
    pass


class Wrapped(torch.Tensor):
    pass


def with_attribute(value):
    value.note = "mine"
    return value


def with_hook(value):
    value.register_hook(lambda grad: grad)
    return value


def ordered(**attributes):
    value = OrderedDict(a=1)
    vars(value).update(attributes)
    return value


REFUSED = {
    "set": ({1}, "a set"),
    "frozenset": (frozenset(), "a frozenset"),
    "byte array": (bytearray(b"x"), "a bytearray"),
    "subclass of int": (Number(1), "a Number"),
    "subclass of dict": (Named(), "a Named"),
    "subclass of tensor": (torch.ones(2).as_subclass(Wrapped), "a Wrapped"),
    "function": (len, "a builtin_function_or_method"),
    "dtype": (torch.float32, "a dtype"),
    "shape": (torch.Size([1]), "a Size"),
    "key of bool": ({True: 1}, "the key a bool"),
    "key of None": ({None: 1}, "the key a NoneType"),
    "key of tuple": ({(1,): 1}, "the key a tuple"),
    "key of a large int": ({2**60: 1}, "the key a int"),
    "long int": (2**2039, "an integer of 2040 bits"),
    "empty bytes": (b"", "empty bytes"),
    "attribute of a dict": (ordered(items=1), "attributes"),
    "metadata of a dict": (ordered(_metadata={1}), "a set"),
    "meta": (torch.ones(2, device="meta"), "on meta"),
    "sparse": (torch.eye(2).to_sparse(), "torch.sparse_coo on cpu"),
    "attribute of a tensor": (with_attribute(torch.ones(2)), "attributes"),
    "hook": (with_hook(torch.ones(2, requires_grad=True)), "hooks"),
    "conjugate": (torch.ones(2, dtype=torch.complex64).conj(), "yet to be turned"),
    "negative": (torch._neg_view(torch.ones(2)), "yet to be turned"),
    "stride 0": (torch.ones(1).expand(9), "not the whole of its storage"),
    "part": (torch.ones(9)[:3], "not the whole of its storage"),
    "part of none": (torch.ones(9)[:0], "not the whole of its storage"),
    "offset": (torch.ones(9)[3:], "not the whole of its storage"),
    "gaps": (torch.ones(9)[::2], "not the whole of its storage"),
    "overlap": (torch.ones(4).as_strided((3, 2), (1, 1)), "not the whole of its storage"),
    "axes": (torch.ones([1] * 65), "not the whole of its storage"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tree_is_refused_for_its(case):
    value, reason = REFUSED[case]
    assert reason in refusal({"a": [1, (value,)]})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_tensor_is_refused():
    value = torch._empty_affine_quantized([2], scale=1.0, zero_point=0, dtype=torch.qint8)
    assert "qint8" in refusal(value)


def test_memory_of_two_dtypes_is_refused():
    value = torch.ones(2)
    assert "the same memory" in refusal([value, value.view(torch.int32)])


def test_what_is_larger_than_the_file_is_refused():
    content = {"a": torch.ones(100), "b": "x" * 100, "c": b"y" * 100}
    check_content(content, 603)
    assert "larger than the file" in refusal(content, 602)


def test_shared_memory_counts_once():
    value, text = torch.ones(100), "x" * 100
    check_content([value, value, text, text], 500)


def test_doubled_containers_count_every_time():
    content: list = [0]
    for _ in range(40):
        content = [content, content]
    assert f"more than {MAX_VALUES} values" in refusal(content)


def test_a_cycle_is_refused():
    content: list = []
    content.append(content)
    assert "nested" in refusal(content)


def test_a_tree_of_accepted_values_is_accepted():
    content = {
        "a": [None, True, -1, 2.5, 1j, "é", b"\xff"],
        7: (torch.ones(2, 3).t(), torch.nn.Parameter(torch.ones(2)), torch.tensor(1)),
        "c": ordered(_metadata=OrderedDict()),
        "d": torch.empty(0, 5),
        "e": torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }
    check_content(content, 1_000)


# Small facts of the scan.


@pytest.mark.parametrize("location", ["cuda:0", "cuda", "mps", "xpu:12"])
def test_a_tensor_from_an_accelerator_is_read_onto_the_cpu(location):
    made = io.BytesIO(pack(entries(program(tensor(storage(location=location))), bytes(16))))
    assert loaded(made).device.type == "cpu"


def test_a_file_that_changes_its_size_is_refused():
    file = saved([1])
    with pytest.raises(CorruptCheckpointError, match="its size changes"):
        check_archive(file, file.seek(0, 2) - 1)


def test_an_error_of_the_disk_is_not_hidden():
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    file = Broken(saved([1]).getvalue())
    with pytest.raises(OSError, match="Input/output"):
        check_archive(file, file.seek(0, 2))


def test_a_name_out_of_a_file_is_shown_short():
    made = io.BytesIO(pack(entries(program(name("os", "x" * 10_000)))))
    with pytest.raises(CorruptCheckpointError) as caught:
        loaded(made)
    assert len(str(caught.value)) < 150


def test_a_nan_keeps_its_payload():
    value = struct.unpack("<d", struct.pack("<Q", 0x7FF0_0000_0000_0001))[0]
    back = loaded(saved([value]))[0]
    assert struct.pack("<d", back) == struct.pack("<d", value)
