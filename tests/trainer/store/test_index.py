"""An index describes what is there, once, and within the files, or it is refused."""

from __future__ import annotations

import msgspec
import pytest

from helios.errors import CheckpointError, CorruptCheckpointError
from helios.trainer.store.index import Chunk, Index, Stored, decode_index, encode_index
from helios.trainer.store.manifest import PartFile, decode, encode, part_names
from tests.trainer.store.tiny import manifest

SIZES = [64, 64]
SOUND = Index(
    1,
    {
        "a": Stored("float64", (3, 2), (Chunk(0, 2, 0, 0), Chunk(2, 1, 1, 0))),
        "b": Stored("int64", (2,), (Chunk(0, 2, 0, 32),)),
    },
)
FILE = "m_epoch_0_iter_7.pth"
STEM = FILE.removesuffix(".pth")


def with_tensor(**fields):
    values = msgspec.to_builtins(SOUND)
    values["tensors"]["a"] |= fields
    return msgspec.json.encode(values, order="sorted")


def with_chunk(**fields):
    chunk = {"start": 0, "count": 2, "file": 0, "offset": 0} | fields
    rest = {"start": 2, "count": 1, "file": 1, "offset": 0}
    return with_tensor(chunks=[chunk, rest])


def test_what_is_encoded_is_decoded():
    assert decode_index(encode_index(SOUND), SIZES) == SOUND


@pytest.mark.parametrize(
    "data",
    [
        with_chunk(file=2),
        with_chunk(file=-1),
        with_chunk(offset=-8),
        with_chunk(offset=40),
        with_chunk(offset=2**62),
        with_chunk(offset=16),  # where another tensor is
        with_chunk(count=3),
        with_chunk(count=1),
        with_chunk(count=0),
        with_chunk(count=-2),
        with_chunk(start=1),
        with_tensor(shape=[4, 2]),
        with_tensor(shape=[3, 2**60]),
        with_tensor(shape=[3, -2]),
        with_tensor(shape=[3, 0]),
        with_tensor(shape=[]),
        with_tensor(shape=[3] + [1] * 100),
        with_tensor(dtype="object"),
        with_tensor(dtype="complex128"),
        with_tensor(path="../../a"),
        b"{}",
        b"\x80\x04.",
        encode_index(SOUND) + b" ",
        encode_index(SOUND).replace(b"{", b"{ ", 1),
    ],
)
def test_any_other_index_is_refused(data):
    with pytest.raises(CorruptCheckpointError):
        decode_index(data, SIZES)


def test_an_index_of_a_newer_helios_is_told_apart():
    with pytest.raises(CheckpointError, match="Update helios"):
        decode_index(encode_index(Index(2, {})), SIZES)


def with_parts(*names):
    return manifest(FILE, 1, "0" * 64, 1, parts=tuple(PartFile(n, 1, "0" * 64) for n in names))


def test_a_manifest_keeps_its_parts():
    value = with_parts(*part_names(STEM, 3))
    assert decode(encode(value), FILE) == value


def test_a_manifest_without_parts_is_as_it_always_was():
    assert b"parts" not in encode(manifest(FILE, 1, "0" * 64, 1))


@pytest.mark.parametrize(
    "names",
    [
        (),
        (f"{STEM}.index",),
        (f"{STEM}.index", f"../{STEM}.0.shard"),
        (f"{STEM}.index", "/etc/passwd"),
        (f"{STEM}.index", "m_epoch_0_iter_6.0.shard"),
        (f"{STEM}.index", f"{STEM}.1.shard"),
        (f"{STEM}.0.shard", f"{STEM}.index"),
        (f"{STEM}.index", FILE),
    ],
)
def test_parts_of_other_names_are_refused(names):
    with pytest.raises(CorruptCheckpointError, match="parts"):
        decode(encode(with_parts(*names)), FILE)
