import collections
import dataclasses

import msgspec
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from helios.data import move_to_device, mover

X = torch.ones(2)
Pair = collections.namedtuple("Pair", "x name")


@dataclasses.dataclass(frozen=True)
class Record:
    x: torch.Tensor
    name: str = "a"
    size: int = dataclasses.field(init=False, default=2)


class Packed(msgspec.Struct, frozen=True):
    x: torch.Tensor
    name: str = "a"


class Graph:
    def __init__(self, x, options=None):
        self.x, self.options = x, options

    def to(self, device, non_blocking=False):
        return Graph(self.x.to(device), non_blocking)


class Plain:
    def __init__(self, x):
        self.x = x

    def to(self, device):
        return Plain(self.x.to(device))


class Node:
    def __init__(self, x):
        self.x = x


torch.utils._pytree.register_pytree_node(
    Node, lambda node: ([node.x], None), lambda children, _: Node(*children)
)


def read(batch):
    """Return the tensor that a batch holds, wherever."""
    if isinstance(batch, torch.Tensor):
        return batch
    if isinstance(batch, collections.abc.Mapping):
        return read(batch["x"])
    return batch.x if hasattr(batch, "x") else read(batch[0])


STRUCTURES = {
    "tensor": X,
    "dict": {"x": X, "n": 1},
    "ordered": collections.OrderedDict(x=X),
    "default": collections.defaultdict(list, x=X),
    "user": collections.UserDict(x=X),
    "list": [X, "a", None],
    "tuple": (X, 3.0),
    "named": Pair(X, "a"),
    "dataclass": Record(X),
    "struct": Packed(X),
    "node": Node(X),
    "graph": Graph(X),
    "plain": Plain(X),
    "nested": [{"x": (Pair(X, "a"),)}],
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_structure_moves_and_keeps_its_type(name):
    batch = STRUCTURES[name]
    moved = move_to_device(batch, "meta")
    assert type(moved) is type(batch)
    assert read(moved).device.type == "meta"
    assert read(batch).device.type == "cpu"


@pytest.mark.parametrize("name", [n for n in STRUCTURES if n not in ("graph", "plain")])
def test_a_batch_that_is_there_already_is_returned_itself(name):
    assert move_to_device(STRUCTURES[name], "cpu") is STRUCTURES[name]


def test_fields_that_are_no_tensors_are_kept():
    assert move_to_device(Record(X, "b"), "meta").name == "b"
    assert move_to_device(Record(X, "b"), "meta").size == 2


def test_a_default_factory_is_kept():
    moved = move_to_device(collections.defaultdict(list, x=X), "meta")
    assert moved["new"] == []


def test_a_packed_sequence_is_moved():
    assert move_to_device(pack_sequence([X, X]), "meta").data.device.type == "meta"


def test_non_blocking_is_passed_on():
    assert move_to_device(Graph(X), "meta").options is True
    assert move_to_device(Graph(X), "meta", non_blocking=False).options is False


def test_copies_to_the_cpu_wait():
    assert move_to_device(Graph(X), "cpu").options is False


@pytest.mark.parametrize("batch", [None, 3, "text", b"bytes", {1, 2}, int])
def test_what_holds_no_tensor_stays(batch):
    assert move_to_device(batch, "meta") is batch


def test_the_mover_to_the_cpu_is_the_identity():
    batch = [X]
    assert mover("cpu")(batch) is batch


def test_a_mover_moves():
    assert mover(torch.device("meta"))([X])[0].device.type == "meta"
