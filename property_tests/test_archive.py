"""The guard of checkpoints: what can be saved is accepted, and what is accepted can be loaded."""

from __future__ import annotations

import io
import os
import struct
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.errors import CorruptCheckpointError
from helios.testing.strategies import whole_tensors
from helios.trainer.store.guard import check_archive, check_content
from helios.trainer.store.tensors import DTYPES
from tests.trainer.store import forge

# Torch says once a process that complex32 is experimental, and copies its bits all the same.
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

fuzzed = settings(max_examples=settings.default.max_examples * 2)
"""For the four kinds of fuzzing: 2,400 examples together in CI, since one takes a few ms."""


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file


# What can be saved is accepted, and comes back.


@st.composite
def tensors(draw):
    """Draw a tensor that is the whole of its memory, or a parameter."""
    tensor = draw(whole_tensors(st.sampled_from(sorted(DTYPES, key=str))))
    dtype = tensor.dtype
    trainable = dtype.is_floating_point or dtype.is_complex
    kind = draw(st.sampled_from(["plain", "parameter", "trained"]))
    if kind == "plain" or (kind == "trained" and not trainable):
        return tensor
    return torch.nn.Parameter(tensor, requires_grad=kind == "trained")


FLOATS = st.one_of(
    st.floats(allow_nan=False),
    st.integers(1, 2**52 - 1).map(
        lambda payload: struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000000 | payload))[0]
    ),
)
LEAVES = st.one_of(
    FLOATS,
    st.builds(complex, FLOATS, FLOATS),
    st.integers(-(2**80), 2**80),
    st.sampled_from([2**2039 - 1, -(2**2039) + 1, 2**63, 0, -1]),
    st.booleans(),
    st.none(),
    st.text(st.characters()),
    st.binary(min_size=1),
)
KEYS = st.one_of(st.text(max_size=5), st.integers(-(2**60) + 1, 2**60 - 1))


def trees(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(KEYS, inner, max_size=4),
            st.dictionaries(KEYS, inner, max_size=2).map(OrderedDict),
        ),
        max_leaves=12,
    )


class Again:
    """Stands for a value that is there several times."""

    def __init__(self, index):
        self.index = index


def resolved(tree, shared):
    if isinstance(tree, Again):
        return shared[tree.index % len(shared)]
    if isinstance(tree, dict):
        return type(tree)((key, resolved(value, shared)) for key, value in tree.items())
    if isinstance(tree, (list, tuple)):
        return type(tree)(resolved(value, shared) for value in tree)
    return tree


SHARED = trees(st.one_of(LEAVES, tensors(), st.integers(0, 4).map(Again)))


@st.composite
def contents(draw):
    """Draw a tree in which tensors, strings and containers are there several times."""
    pool = draw(st.lists(st.one_of(tensors(), trees(LEAVES)), min_size=1, max_size=4))
    state = torch.nn.BatchNorm1d(2).state_dict() if draw(st.booleans()) else None
    return {"tree": resolved(draw(SHARED), pool), "pool": pool, "state": state}


def same(a, b):
    """Return whether two trees have the same types, structure and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        attributes = getattr(a, "_metadata", None), getattr(b, "_metadata", None)
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a) and same(*attributes)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        facts = [(t.dtype, t.shape, t.stride(), t.requires_grad) for t in (a, b)]
        return facts[0] == facts[1] and bytes(a.untyped_storage()) == bytes(b.untyped_storage())
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    return a == b


@given(contents())
def test_what_can_be_saved_is_accepted_and_comes_back_bit_for_bit(content):
    check_content(content, 2**40)
    file = saved(content)
    size = file.seek(0, 2)
    check_archive(file, size)
    back = torch.load(file, weights_only=True, map_location="cpu")
    check_content(back, size)
    assert same(content, back)


class Holes(io.RawIOBase):
    """A file of zeros with something here and there."""

    def __init__(self):
        self.pieces, self.at, self.size = {}, 0, 0

    def write(self, data):
        data = bytes(data)
        if len(data) < 2**12 or data.strip(b"\0"):
            self.pieces[self.at] = data
        self.at += len(data)
        self.size = max(self.size, self.at)
        return len(data)

    def writable(self):
        return True

    def seek(self, offset, whence=0):
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def read(self, size=-1):
        size = min(size, self.size - self.at)
        out = bytearray(size)
        for start, data in self.pieces.items():
            low, high = max(start, self.at), min(start + len(data), self.at + size)
            if low < high:
                out[low - self.at : high - self.at] = data[low - start : high - start]
        self.at += size
        return bytes(out)


@pytest.mark.nightly
@pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="torch sums 4 GiB for 15 seconds"
)
def test_a_file_of_more_than_4_gib_is_accepted():
    large = torch.zeros(2**32 + 10, dtype=torch.uint8)
    file = Holes()
    torch.save({"small": torch.ones(3), "large": large, "after": [torch.ones(2)] * 2}, file)
    assert file.size > 2**32
    check_archive(file, file.size)


# What is accepted can be loaded; nothing else leaves the guard than its own error.


def decide(raw):
    """Give bytes to the guard; load and return what it accepts, and return None for the rest."""
    file = io.BytesIO(raw)
    try:
        check_archive(file, len(raw))
    except CorruptCheckpointError as error:
        reason = str(error)
    else:
        reason = ""
    assert reason.isascii()
    assert reason.isprintable()
    if reason:
        return None
    content = torch.load(file, weights_only=True, map_location="cpu")
    check_content(content, len(raw))
    return content


SAMPLES = [
    {"w": torch.ones(4), "n": [1, 2.5, None, True, -7, 2**70], "b": b"\xff\x01", "t": (1, 2)},
    torch.nn.BatchNorm1d(2).state_dict(),
    {"p": torch.nn.Parameter(torch.ones(2, 2)), "u": torch.zeros(2, dtype=torch.uint32), 3: 1j},
    [torch.ones(2, 3).t(), torch.empty(0, 3), torch.tensor(1), "é"],
]


def parts(content):
    """Return the pickle and the storages of a file that torch wrote."""
    file = saved(content)
    file.seek(0)
    reader = torch._C.PyTorchFileReader(file)
    names = [n for n in reader.get_all_records() if n.startswith("data/")]
    storages = [reader.get_record(f"data/{key}") for key in range(len(names))]
    return reader.get_record("data.pkl"), storages


PARTS = [parts(content) for content in SAMPLES]
CODES = bytes(sorted({*b"qrhjKMJGXNxtu)]}aescRbQ(.\x80\x85\x86\x87\x88\x89\x8a\x81\x93\x8b"}))
INSTRUCTIONS = st.sampled_from([bytes([code]) for code in CODES])


@st.composite
def edited(draw, data):
    """Draw bytes that differ from some others in a few places."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        span = draw(st.integers(0, 4))
        new = draw(
            st.one_of(st.binary(max_size=4), st.sampled_from(CODES).map(lambda c: bytes([c])))
        )
        data[at : at + span] = new
    return bytes(data)


@fuzzed
@given(st.data())
def test_an_edited_pickle_is_refused_or_loads(data):
    pickled, storages = data.draw(st.sampled_from(PARTS))
    decide(forge.pack(forge.entries(data.draw(edited(pickled)), *storages)))


@fuzzed
@given(st.data())
def test_an_edited_file_is_refused_or_loads(data):
    pickled, storages = data.draw(st.sampled_from(PARTS))
    raw = forge.pack(forge.entries(pickled, *storages))
    decide(data.draw(edited(raw)))


NUMBERS = st.one_of(
    st.integers(0, 70),
    st.sampled_from([2**16 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1]),
    st.integers(0, 2**64 - 1),
)


@st.composite
def fields(draw, kind):
    """Draw a few changes of the fields of a header, each of its own width."""
    names = forge.NAMES[kind].split()
    widths = list(struct_codes(forge.FORMS[kind]))
    changes = {}
    for name in draw(st.sets(st.sampled_from(names), max_size=2)):
        width = widths[names.index(name)]
        changes[name] = draw(st.binary(max_size=4)) if width == 0 else draw(NUMBERS) % 2**width
    return changes


def struct_codes(form):
    """Yield the bits of every field of a form, 0 for the magic number."""
    count = ""
    for code in form[1:]:
        if code.isdigit():
            count += code
            continue
        bits = {"s": 0, "H": 16, "I": 32, "Q": 64}[code]
        yield from [bits] * (1 if code == "s" else int(count or 1))
        count = ""


ENDS = st.sampled_from(["end64", "locator", "end"])


@fuzzed
@given(st.data())
def test_an_archive_with_other_headers_is_refused_or_is_what_it_was(data):
    sample = data.draw(st.integers(0, len(SAMPLES) - 1))
    pickled, storages = PARTS[sample]
    entries = forge.entries(pickled, *storages)
    for entry in data.draw(st.lists(st.sampled_from(entries), max_size=2)):
        entry.local = data.draw(fields("local"))
        entry.central = data.draw(fields("central"))
        entry.descriptor = data.draw(fields("descriptor"))
    ends = {kind: data.draw(fields(kind)) for kind in data.draw(st.sets(ENDS))}
    content = decide(forge.pack(data.draw(st.permutations(entries)), **ends))
    assert content is None or same(content, SAMPLES[sample])


# Pickles from a grammar: most of every one makes sense.

COUNTS = st.one_of(st.integers(-1, 5), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**70]))
SHAPES = st.one_of(
    st.lists(st.integers(0, 4), max_size=3).map(lambda n: forge.numbers(*n)),
    st.lists(COUNTS, max_size=3).map(lambda n: forge.numbers(*n)),
)
STORAGES = st.builds(
    forge.storage,
    st.sampled_from(["0", "1", "2", "x"]),
    st.sampled_from(["FloatStorage", "IntStorage", "UntypedStorage", "QInt8Storage"]),
    st.one_of(st.just(4), COUNTS),
    st.sampled_from(["cpu", "cuda:0", "meta"]),
)
SMALL = st.one_of(
    COUNTS.map(forge.number),
    st.sampled_from([forge.NONE, forge.TRUE, forge.FALSE, b"G" + bytes(8), b")", b"]", b"}"]),
    st.sampled_from(["", "a", "latin1", "storage"]).map(forge.text),
    st.integers(0, 3).map(lambda index: b"h" + bytes([index])),
    st.sampled_from(CODES).map(lambda code: bytes([code])),
)
SOUND = st.sampled_from(
    [forge.tensor(), forge.tensor(size=forge.numbers(2, 2), stride=forge.numbers(2, 1))]
)
TENSORS = st.one_of(
    SOUND,
    st.builds(
        lambda memory, size, stride, grad, offset: forge.tensor(
            memory, size=size, stride=stride, grad=grad, offset=offset
        ),
        STORAGES,
        SHAPES,
        SHAPES,
        st.sampled_from([forge.TRUE, forge.FALSE, forge.NONE]),
        st.sampled_from([0, 1, -1]).map(forge.number),
    ),
)
VALUES = st.recursive(
    st.one_of(SMALL, SOUND, TENSORS, STORAGES),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: forge.group(*items)),
        st.lists(inner, max_size=3).map(lambda items: forge.listed(*items)),
        st.lists(inner, max_size=4).map(lambda items: forge.mapping(*items)),
        inner.map(lambda value: value + b"q\x00"),
        st.tuples(
            st.sampled_from(
                [
                    ("collections", "OrderedDict"),
                    ("_codecs", "encode"),
                    ("__builtin__", "complex"),
                    ("torch._utils", "_rebuild_parameter"),
                    ("torch._utils", "_rebuild_tensor_v2"),
                ]
            ),
            st.lists(inner, max_size=3),
        ).map(lambda call: forge.call(forge.name(*call[0]), *call[1])),
    ),
    max_leaves=8,
)


@fuzzed
@given(VALUES)
def test_a_pickle_of_a_grammar_is_refused_or_loads(value):
    body = forge.listed(forge.tensor(), value)
    decide(forge.pack(forge.entries(forge.program(body), bytes(16))))


def test_the_samples_are_accepted():
    for sample, (pickled, storages) in zip(SAMPLES, PARTS, strict=True):
        assert same(decide(forge.pack(forge.entries(pickled, *storages))), sample)
