import struct

import msgspec
import pytest
import torch

import helios
from helios.errors import SerialisationError, StateMismatchError
from helios.functional.serial import from_bytes, to_bytes
from tests.zoo import Line, Noisy, batches_for


def sealed(body):
    import hashlib

    return body + hashlib.blake2b(body, digest_size=16).digest()


def with_header(header, payload=b""):
    packed = msgspec.msgpack.encode(header)
    return sealed(b"helios-state\x00" + struct.pack("<Q", len(packed)) + packed + payload)


def tensor(shape, dtype="float32", order=None):
    return {"type": "tensor", "dtype": dtype, "shape": shape, "order": order}


def test_a_whole_run_state_survives():
    model = Noisy("noisy")
    step = helios.make_step(model, helios.Plan(accumulation_steps=3))
    state = helios.init_state(model, 0)
    for batch in batches_for(model, 5):
        state = step(state, batch)
    like = helios.init_state(Noisy("noisy"), 1)
    assert from_bytes(to_bytes(state)) == state
    # It has an open window and running metrics, which a fresh state has not.
    assert state.carry.metrics
    assert from_bytes(to_bytes(state), like=like) == state


def test_a_state_is_checked_against_a_template():
    state = helios.init_state(Line("line"), 0)
    assert helios.TrainingState.from_bytes(state.to_bytes(), like=state) == state
    with pytest.raises(StateMismatchError, match=r"params/net.0.weight: missing"):
        from_bytes(state.to_bytes(), like=helios.init_state(Noisy("noisy")))
    double = helios.init_state(Line("line", dtype=torch.float64))
    with pytest.raises(StateMismatchError, match=r"received float32\[1\]; expected float64\[1\]"):
        from_bytes(state.to_bytes(), like=double)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (object(), "received object"),
        ({1: 2}, "not a string"),
        (torch.zeros(2).to_sparse(), "torch.sparse_coo"),
        (torch.zeros(2, device="meta"), "meta"),
        ({1, 2}, "received set"),
    ],
)
def test_what_the_format_does_not_have_is_refused_with_its_path(leaf, message):
    with pytest.raises(SerialisationError, match=message):
        to_bytes(helios.TrainingState(carry={"x": leaf}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes that do not begin"),
        (b"PK\x03\x04" * 20, "do not begin"),
        (with_header({"schema": 2, "tree": {"type": "plain", "value": None}}), "schema 2"),
        (with_header({"schema": 1}), "cannot be read"),
        (with_header({"schema": 1, "tree": {"type": "plain", "value": 1}, "x": 1}), "cannot be"),
        (with_header({"schema": 1, "tree": {"type": "plain", "value": None}}), "a NoneType"),
        (with_header({"schema": 1, "tree": tensor([2**40])}), "more than are left"),
        (with_header({"schema": 1, "tree": tensor([-1])}), "not a tensor"),
        (with_header({"schema": 1, "tree": tensor([2], "object")}), "not a tensor"),
        (with_header({"schema": 1, "tree": tensor([2], order=[1])}), "not a tensor"),
        (with_header({"schema": 1, "tree": tensor([1])}, b"\0" * 9), "left over"),
        (
            with_header({"schema": 1, "tree": {"type": "struct", "name": "Popen", "values": []}}),
            "does not know",
        ),
        (
            with_header(
                {
                    "schema": 1,
                    "tree": {
                        "type": "dict",
                        "keys": ["a", "a"],
                        "values": [{"type": "plain", "value": None}] * 2,
                    },
                }
            ),
            "a key twice",
        ),
        (
            with_header({"schema": 1, "tree": {"type": "number", "kind": "int", "text": "x"}}),
            "not a int",
        ),
        (sealed(b"helios-state\x00" + struct.pack("<Q", 2**60)), "more than there are"),
    ],
)
def test_bytes_that_are_no_state_are_refused(data, message):
    with pytest.raises(SerialisationError, match=message):
        from_bytes(data)


def test_deep_nesting_is_refused_both_ways():
    tree = None
    for _ in range(5000):
        tree = [tree]
    with pytest.raises(SerialisationError, match="too deeply"):
        to_bytes(helios.TrainingState(carry=tree))
    node = {"type": "plain", "value": None}
    packed = msgspec.msgpack.encode(node)
    wrap = msgspec.msgpack.encode({"type": "sequence", "kind": "list"})[1:]
    for _ in range(5000):
        packed = b"\x83" + wrap + msgspec.msgpack.encode("values") + b"\x91" + packed
    header = b"\x82" + msgspec.msgpack.encode("schema") + b"\x01"
    header += msgspec.msgpack.encode("tree") + packed
    data = sealed(b"helios-state\x00" + struct.pack("<Q", len(header)) + header)
    with pytest.raises(SerialisationError, match="cannot be read"):
        from_bytes(data)
