"""Flight records: bytes and values are one, and bisection finds what a walk finds."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from helios.trainer.flight import Entry, FlightRecord, first_difference, what_differs
from helios.trainer.flight.record import START, Header, chained, decode, encode, encode_header
from property_tests.cases import few

COUNTS = st.integers(0, 2**32 - 1)
FLOATS = st.floats(allow_nan=False)
ENTRIES = st.builds(
    Entry,
    update=st.integers(1, 2**63),
    loss=FLOATS,
    norm=FLOATS,
    batches=COUNTS,
    indices=st.binary(min_size=16, max_size=16),
    rest=st.binary(min_size=8, max_size=8),
    skipped=st.booleans(),
    has_loss=st.booleans(),
    digest=st.binary(min_size=16, max_size=16),
)


@given(ENTRIES)
def test_decoding_gives_what_was_encoded(entry):
    assert decode(encode(entry)) == entry


@given(ENTRIES, ENTRIES)
def test_the_digest_tells_all_that_differs(a, b):
    same = replace(a, digest=START) == replace(b, digest=START)
    assert (chained(START, a) == chained(START, b)) == (same and a.loss.hex() == b.loss.hex())


def test_a_nan_is_a_nan_whatever_its_sign():
    entry = Entry(1, math.nan, 0.0, 1, START, bytes(8))
    assert encode(entry) == encode(replace(entry, loss=-math.nan))
    assert what_differs(entry, replace(entry, loss=-math.nan)) == []


def written(path, losses, before):
    digest, data = START, encode_header(Header(0, before))
    for number, loss in enumerate(losses, before + 1):
        entry = Entry(number, loss, 1.0, 1, START, bytes(8))
        digest = chained(digest, entry)
        data += encode(replace(entry, digest=digest))
    path.write_bytes(data)
    return FlightRecord(path)


LOSSES = st.lists(st.sampled_from([0.0, -0.0, 0.5]), max_size=40)


@few
@given(LOSSES, LOSSES, LOSSES, st.integers(0, 3))
def test_bisection_finds_the_first_difference_in_few_reads(common, a, b, before):
    with tempfile.TemporaryDirectory() as folder:
        one = written(Path(folder) / "one", common + a, before)
        two = written(Path(folder) / "two", common + b, before)
        found = first_difference(one, two)
        reads = one.reads
        pairs = zip(one, two, strict=False)
        expected = next((x.update for x, y in pairs if x.loss.hex() != y.loss.hex()), None)
        assert found == expected
        assert reads <= math.ceil(math.log2(len(common + a) + 1)) + 1
        one.check()
