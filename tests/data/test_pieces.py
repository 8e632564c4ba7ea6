"""Law: the pieces of all ranks, joined in order and without padding, are the batch."""

import dataclasses
from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.data.pieces import cut, has_samples, own, repeated, samples_of, spans
from helios.errors import DataError
from helios.functional.share import Shares

Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass
class Fields:
    x: torch.Tensor
    names: list


class Struct(msgspec.Struct):
    x: torch.Tensor
    scale: float


class Rows(list):
    pass


class Graph:
    """Holds tensors where nobody can see them."""

    def to(self, device):
        return self


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 5), st.integers(1, 4))
def test_the_pieces_that_count_are_the_batch(samples, each, world):
    batch = torch.arange(samples)
    pieces = []
    for rank in range(world):
        pieces += cut(batch, samples, Shares.of_rank(each * world, rank, world))
    assert [piece.index for piece in pieces] == list(range(each * world))
    assert torch.equal(torch.cat([piece.batch[: piece.count] for piece in pieces]), batch)
    assert {piece.of for piece in pieces} == {samples}


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 60))
def test_no_piece_is_empty_and_sizes_differ_by_at_most_one(samples, pieces):
    found = spans(samples, Shares(pieces, 0, pieces))
    counts = [count for _, _, count in found]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1
    assert all(len(range(samples)[span]) == max(count, 1) for _, span, count in found)


def test_a_piece_without_samples_has_the_first_and_counts_nothing():
    batch = torch.arange(2) + 5
    pieces = cut(batch, 2, Shares(4, 1, 4))
    assert [(p.batch.tolist(), p.count, p.of) for p in pieces] == [
        ([6], 1, 2),
        ([5], 0, 2),
        ([5], 0, 2),
    ]


def second(batch):
    """Return the second of two pieces of a batch of three, which is its last sample."""
    (piece,) = cut(batch, 3, Shares(2, 1, 2))
    return piece.batch


X = torch.arange(6).reshape(3, 2)
LAST = X[2:]


def test_dicts_lists_and_tuples_are_seen_through():
    taken = second({"a": [X, (X, None)], "b": {"c": X}})
    assert torch.equal(taken["a"][0], LAST)
    assert type(taken["a"][1]) is tuple
    assert torch.equal(taken["a"][1][0], LAST)
    assert taken["a"][1][1] is None
    assert torch.equal(taken["b"]["c"], LAST)


def test_named_tuples_are_seen_through():
    taken = second(Pair(X, ["a", "b", "c"]))
    assert type(taken) is Pair
    assert torch.equal(taken.x, LAST)
    assert taken.y == ["c"]


@pytest.mark.parametrize("kind", [OrderedDict, UserDict, MappingProxyType])
def test_other_mappings_are_seen_through_and_left_alone(kind):
    batch = kind({"x": X, "n": 1})
    taken = second(batch)
    assert type(taken) is kind
    assert torch.equal(taken["x"], LAST)
    assert batch["x"] is X


@pytest.mark.parametrize("batch", [Fields(X, ["a", "b", "c"]), Struct(X, 2.0)])
def test_fields_are_seen_through_and_left_alone(batch):
    taken = second(batch)
    assert type(taken) is type(batch)
    assert torch.equal(taken.x, LAST)
    assert batch.x is X
    assert getattr(taken, "names", ["c"]) == ["c"]


def test_arrays_are_cut():
    assert second(np.arange(3)).tolist() == [2]


@pytest.mark.parametrize("names", [["a", "b", "c"], ("a", "b", "c"), Rows("abc"), [{"n": 1}] * 3])
def test_lists_of_samples_are_cut(names):
    assert second([X, names])[1] == type(names)(names[2:])


@pytest.mark.parametrize("other", [["a", "b"], 3, 2.5, "abc", None, b"abc"])
def test_what_is_not_of_samples_is_given_to_each_piece(other):
    assert second({"x": X, "other": other})["other"] == other


def test_a_tensor_without_dimensions_is_given_to_each_piece():
    scale = torch.tensor(2.0)
    assert second({"x": X, "scale": scale})["scale"] is scale


def test_a_list_of_as_many_tensors_as_samples_is_seen_through():
    assert [part.tolist() for part in second([X, X, X])] == [LAST.tolist()] * 3


def test_a_list_of_a_class_of_its_own_keeps_it():
    assert type(second(Rows([X, X]))) is Rows


def test_pieces_are_views():
    assert second(X).data_ptr() == LAST.data_ptr()


@pytest.mark.parametrize(
    "batch", ["text", {"n": 1}, torch.tensor(1.0), [torch.tensor(1)], object(), {}]
)
def test_a_batch_without_rows_is_refused(batch):
    assert not has_samples(batch)
    with pytest.raises(DataError, match=r"received a \w+ with no tensor that has a dimension"):
        samples_of(batch)


@pytest.mark.parametrize("batch", [[X, X[:2]], {"x": X, "boxes": [torch.zeros(5, 4)]}])
def test_tensors_that_differ_in_their_rows_are_refused(batch):
    with pytest.raises(DataError, match=r"of the shapes \[\[3, 2\], .*as many each.* create_data"):
        samples_of(batch)


def test_a_batch_of_no_rows_is_refused():
    with pytest.raises(DataError, match=r"shapes \[\[0, 2\]\]"):
        samples_of(X[:0])


def test_another_number_of_samples_is_refused():
    with pytest.raises(DataError, match="expected 4 rows in each tensor"):
        cut(X, 4, Shares(2, 0, 1))


def test_what_hides_its_tensors_is_refused():
    with pytest.raises(DataError, match="received a Graph"):
        second([X, Graph()])


def test_pieces_of_the_whole_batch_weigh_one_together():
    pieces = repeated(X, 3, Shares(4, 0, 4))
    assert all(piece.batch is X for piece in pieces)
    assert sum(piece.count for piece in pieces) == pieces[0].of


@pytest.mark.parametrize("each", [1, 2, 3])
def test_pieces_of_a_batch_of_ones_own_are_cut_from_it(each):
    pieces = own(X, 3, Shares(2 * each, each, 2 * each))
    assert [piece.index for piece in pieces] == list(range(each, 2 * each))
    assert torch.equal(torch.cat([piece.batch for piece in pieces]), X)
    assert [(sum(p.count for p in pieces), p.of) for p in pieces] == [(3, 6)] * each
