"""Names alone: which entry of a file goes to which entry of a module."""

from __future__ import annotations

import pytest

from helios.errors import PretrainedError
from helios.model.name_mapping import check_mapping, check_matches, propose, sources


def test_a_name_maps_to_a_name():
    assert sources(["a.w", "b.w"], {"a.w": "x"}) == {"a.w": "x"}


def test_a_prefix_maps_everything_below_it():
    assert sources(["a.w", "a.b.w", "c.w"], {"a.": "x."}) == {"a.w": "x.w", "a.b.w": "x.b.w"}


def test_the_empty_prefix_maps_everything():
    assert sources(["w", "a.w"], {"": "x."}) == {"w": "x.w", "a.w": "x.a.w"}


def test_a_prefix_may_map_to_the_empty_prefix():
    assert sources(["a.w"], {"a.": ""}) == {"a.w": "w"}


def test_a_prefix_ends_at_its_dot():
    assert sources(["fc.w", "fc2.w"], {"fc.": "x."}) == {"fc.w": "x.w"}


@pytest.mark.parametrize("turn", [1, -1])
def test_the_longest_match_wins_in_any_order(turn):
    mapping = dict([("", ""), ("a.", "x."), ("a.b.", "y."), ("a.b.w", "z")][::turn])
    names = ["w", "a.w", "a.b.v", "a.b.w"]
    assert sources(names, mapping) == {"w": "w", "a.w": "x.w", "a.b.v": "y.v", "a.b.w": "z"}


def test_none_keeps_what_is_below_a_prefix():
    found = sources(["a.w", "head.w"], {"": "", "head.": None})
    assert found == {"a.w": "a.w", "head.w": None}


@pytest.mark.parametrize("mapping", [[("a.", "b.")], "a.", 3, {1: "a"}, {"a": 1}, {"a": ["b"]}])
def test_a_mapping_of_another_type_is_refused(mapping):
    with pytest.raises(TypeError, match="mapping: received"):
        check_mapping(mapping)


@pytest.mark.parametrize("mapping", [{"a.": "b"}, {"a": "b."}, {"": "b"}, {"a": ""}])
def test_a_name_for_a_prefix_is_refused(mapping):
    with pytest.raises(PretrainedError, match="expected a name to a name, or a prefix to a prefix"):
        check_mapping(mapping)


def test_an_empty_mapping_is_refused():
    with pytest.raises(PretrainedError, match="an empty dict, which loads nothing"):
        check_mapping({})


def test_an_entry_that_matches_nothing_in_the_module_is_named_with_what_is_near():
    with pytest.raises(PretrainedError) as caught:
        check_matches({"": "", "hed.": None}, ["head.w", "body.w"], ["head.w", "body.w"])
    assert "'hed.': None: the module has no entry below 'hed.' (near it: 'head.'" in str(
        caught.value
    )


def test_an_entry_that_matches_nothing_in_the_file_is_named_with_what_is_near():
    with pytest.raises(PretrainedError) as caught:
        check_matches({"body.w": "encodr.w"}, ["body.w"], ["encoder.w", "fc.b"])
    assert "'body.w': 'encodr.w': the file has no entry 'encodr.w' (near it: 'encoder.w'" in str(
        caught.value
    )


def test_a_prefix_without_its_dot_is_pointed_out():
    with pytest.raises(PretrainedError, match=r"no entry 'head' \(near it: 'head\.'"):
        check_matches({"head": None}, ["head.w"], ["head.w"])


def test_every_entry_that_matches_nothing_is_named():
    with pytest.raises(PretrainedError) as caught:
        check_matches({"qqq": "zzz", "vvv.": None}, ["a"], ["a"])
    assert all(f"'{name}'" in str(caught.value) for name in ("qqq", "zzz", "vvv."))


@pytest.mark.parametrize(
    ("module", "file", "expected"),
    [
        (["0.w", "0.b"], ["module.0.w", "module.0.b"], {"": "module."}),
        (["net.0.w"], ["0.w"], {"net.": ""}),
        (["net.a.w", "net.b.w"], ["model.a.w", "model.b.w"], {"net.": "model."}),
        (["w"], ["a.b.w"], {"": "a.b."}),
        # The file has more: it is left aside.
        (["w"], ["w", "fc.w"], {"": ""}),
        (["w", "b"], ["backbone.w", "backbone.b", "fc.w"], {"": "backbone."}),
        # The module has more: it is kept.
        (["backbone.w", "backbone.b", "head.w"], ["w", "b"], {"backbone.": ""}),
        (["backbone.w", "backbone.b", "head.w"], ["m.w", "m.b"], {"backbone.": "m."}),
        # Two would fit: names do not tell which.
        (["backbone.w", "head.w"], ["w"], None),
        (["w"], ["backbone.w", "fc.w"], None),
        # Names that differ otherwise.
        (["a", "b"], ["a", "c"], None),
        (["fc.w"], ["fc2.v"], None),
        (["x.a", "y.b"], ["m.x.a", "n.y.b"], None),
        (["a"], [], None),
        ([], ["a"], None),
    ],
)
def test_the_mapping_of_one_prefix_that_would_fit_is_found(module, file, expected):
    assert propose(module, file) == expected


def test_what_is_proposed_finds_every_name_that_it_maps():
    module, file = ["net.a.w", "net.b.w", "head.w"], ["module.a.w", "module.b.w"]
    mapping = propose(module, file)
    assert set(sources(module, mapping).values()) == set(file)
