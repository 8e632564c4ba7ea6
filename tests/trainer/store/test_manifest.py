"""A manifest is what was written, to the bit, or an error."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest

from helios.errors import CheckpointVersionError, CorruptCheckpointError
from helios.functional.plan import Plan
from helios.functional.state import TrainingUnit
from helios.trainer.store.manifest import SCHEMA, decode, encode
from tests.trainer.store.tiny import counters, manifest

FILE = "m_epoch_0_iter_7.pth"

PLAIN = manifest(FILE, 100, "0" * 64, 3)
FULL = manifest(
    FILE,
    100,
    "f" * 64,
    3,
    plan=Plan(unit=TrainingUnit.ITERATION, total_steps=9, valid_frequency=2),
    fingerprint={"torch": "2", "threads": 1, "deterministic": True},
    metric='añ\n"',
    mode="max",
    score=-0.1,
    finite=False,
    skipped=2,
)


def signed(body: bytes) -> bytes:
    """Return a body, an object without its closing brace, with the check that belongs to it."""
    return body + b',"check":"%s"}\n' % hashlib.sha256(body).hexdigest().encode()


def with_fields(**fields) -> bytes:
    """Return a manifest with other fields and a check that holds."""
    values = msgspec.to_builtins(PLAIN) | fields
    return signed(json.dumps(values, separators=(",", ":")).encode()[:-1])


@pytest.mark.parametrize("value", [PLAIN, FULL], ids=["plain", "full"])
def test_what_is_encoded_is_decoded(value):
    assert decode(encode(value), FILE) == value


def test_a_manifest_is_one_json_object_in_one_line():
    text = encode(FULL)
    assert text.endswith(b"}\n")
    assert text.count(b"\n") == 1
    assert json.loads(text)["file"] == FILE


def test_the_tests_know_how_a_manifest_is_signed():
    assert with_fields() == encode(PLAIN)


@pytest.mark.parametrize("value", [PLAIN, FULL], ids=["plain", "full"])
def test_no_flipped_bit_is_read(value):
    data = encode(value)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptCheckpointError):
            decode(bytes(flipped), FILE)


def test_no_truncation_is_read():
    data = encode(FULL)
    for end in range(len(data)):
        with pytest.raises(CorruptCheckpointError):
            decode(data[:end], FILE)


@pytest.mark.parametrize("more", [b" ", b"\n", b"\0", b"}", encode(PLAIN)])
def test_nothing_may_stand_behind_a_manifest(more):
    with pytest.raises(CorruptCheckpointError):
        decode(encode(PLAIN) + more, FILE)


@pytest.mark.parametrize("more", [b" ", b"\n", b"\xef\xbb\xbf", b"{"])
def test_nothing_may_stand_before_a_manifest(more):
    with pytest.raises(CorruptCheckpointError):
        decode(signed(more + encode(PLAIN)[:-77]), FILE)


@pytest.mark.parametrize(
    "body",
    [
        encode(PLAIN)[:-77].replace(b'"seed":0', b'"seed":0,"seed":0'),
        encode(PLAIN)[:-77].replace(b'"seed":0', b'"seed":1,"seed":0'),
        encode(PLAIN)[:-77].replace(b'"seed":0', b'"seed": 0'),
        encode(PLAIN)[:-77].replace(b'"seed":0', b'"seed":0.0'),
        encode(PLAIN)[:-77].replace(b'"seed":0', b'"seed":-0'),
        encode(PLAIN)[:-77].replace(b'"seed":0', b'"\\u0073eed":0'),
        encode(PLAIN)[:-77].replace(b'"score":null', b'"score":NaN'),
        encode(PLAIN)[:-77].replace(b'"score":null', b'"score":Infinity'),
        encode(PLAIN)[:-77].replace(b'"score":null', b'"score":1e999'),
        encode(PLAIN)[:-77].replace(b',"skipped":0', b""),
        encode(PLAIN)[:-77].replace(b',"seed":0', b""),
        b"{",
        b"[",
        b"",
        b"null",
        b'{"schema":2',
        b'{"a":' * 100_000,
    ],
    ids=range(17),
)
def test_a_manifest_in_another_form_is_not_read_even_if_its_check_holds(body):
    assert encode(PLAIN)[:-77] != body
    with pytest.raises(CorruptCheckpointError):
        decode(signed(body), FILE)


@pytest.mark.parametrize(
    "fields",
    [
        {"extra": 1},
        {"size": "100"},
        {"size": True},
        {"size": 1.5},
        {"size": -1},
        {"size": None},
        {"sequence": -1},
        {"window_iter": -1},
        {"skipped": -1},
        {"finite": 1},
        {"file": None},
        {"plan": None},
        {"plan": {"total_steps": -1}},
        {"plan": {"unit": 99}},
        {"fingerprint": [1]},
        {"fingerprint": {"a": 1.5}},
        {"counters": {}},
        {"counters": counters(7) | {"more": 1}},
        {"counters": counters(7) | {"global_epoch": -1}},
        {"counters": counters(7) | {"global_epoch": 0.5}},
        {"schema": "2"},
        {"schema": None},
    ],
    ids=str,
)
def test_a_manifest_with_other_fields_is_not_read_even_if_its_check_holds(fields):
    with pytest.raises(CorruptCheckpointError):
        decode(with_fields(**fields), FILE)


def test_the_manifest_of_another_file_is_not_read():
    with pytest.raises(CorruptCheckpointError, match="it is the manifest of 'm_epoch_0_iter_7"):
        decode(encode(PLAIN), "m_epoch_0_iter_8.pth")


@pytest.mark.parametrize("fields", [{}, {"new": 1}, {"plan": "other"}, {"size": "much"}], ids=str)
def test_a_manifest_of_a_newer_helios_is_refused_by_name(fields):
    with pytest.raises(CheckpointVersionError, match=r"helios 9\.9 wrote it\. Update helios"):
        decode(with_fields(schema=SCHEMA + 1, version="9.9", **fields), FILE)


def test_a_changed_manifest_of_a_newer_helios_is_broken():
    data = with_fields(schema=SCHEMA + 1).replace(b'"seed":0', b'"seed":1')
    with pytest.raises(CorruptCheckpointError):
        decode(data, FILE)
