"""Each kind of mistake in a configuration, and what is said about it."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from helios.core.config import build, call, check_keys, read_config
from helios.core.plain_types import as_plain
from helios.core.registry import Registry
from helios.errors import ConfigError

RATES, RULES = Registry("rate"), Registry("rule")


@RATES.register
def cosine(peak: float, total: int = 10):
    return ("cosine", peak, total)


@RULES.register
def adam(
    lr: float | torch.Tensor | Callable[[int], float],
    betas: tuple[float, float] = (0.9, 0.99),
    mode: Literal["slow", "fast"] = "slow",
    names: list[str] | None = None,
    verbose: bool = False,
):
    if betas[0] >= 1:
        raise ValueError("betas: expected less than 1")
    return lr, betas, mode, names, verbose


def built(**table):
    return build(RULES, table, "rule", nested={"lr": RATES})


def test_a_table_is_built_with_what_is_nested_in_it():
    lr = {"type": "cosine", "peak": 1}
    assert built(type="adam", lr=lr, betas=[0, 0.5]) == (
        ("cosine", 1.0, 10), (0.0, 0.5), "slow", None, False,
    )  # fmt: skip
    assert built(type="adam", lr=0.5)[0] == 0.5


def test_a_list_of_tables_is_built_one_by_one():
    registry = Registry("group")

    @registry.register
    def joined(parts):
        return parts

    table = {"type": "joined", "parts": [{"type": "cosine", "peak": 1.0}, 2]}
    assert build(registry, table, "r", nested={"parts": RATES}) == [("cosine", 1.0, 10), 2]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, "rule.type: is missing; expected one of adam"),
        ({"type": "adm"}, "rule.type: the rule registry has no 'adm'; it has 'adam'. Did you mean"),
        ({"type": 3}, "rule.type: received 3; expected a name"),
        ({"type": "adam"}, "rule.lr: is missing; expected a value"),
        ({"type": "adam", "lr": 1.0, "beta": 1}, "rule.beta: received an unknown key; expected some"
         " of lr, betas, mode, names, verbose. Did you mean 'betas'?"),
        ({"type": "adam", "lr": {"type": "cosine", "peek": 1}}, "rule.lr.peek: received an unknown "
         "key; expected some of peak, total. Did you mean 'peak'?"),
        ({"type": "adam", "lr": {"type": "cosine", "peak": "1"}}, "rule.lr.peak: received '1'; exp"
         "ected float"),
        ({"type": "adam", "lr": 1.0, "betas": [0.9, "x"]}, "rule.betas[1]: received [0.9, 'x']"),
        ({"type": "adam", "lr": 1.0, "betas": [0.9]}, "rule.betas: received [0.9]; expected tuple"),
        ({"type": "adam", "lr": 1.0, "mode": "fst"}, "rule.mode: received 'fst'; expected 'slow' or"
         " 'fast'"),
        ({"type": "adam", "lr": 1.0, "verbose": 1}, "rule.verbose: received 1; expected bool"),
        ({"type": "adam", "lr": 1.0, "names": "a"}, "rule.names: received 'a'; expected"),
        ({"type": "adam", "lr": 1.0, "betas": [1.5, 0.9]}, "rule: betas: expected less than 1"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_path_of_its_key(table, says):
    with pytest.raises(ConfigError, match=r"^" + re.escape(says)):
        built(**table)


def test_what_is_given_is_no_key():
    with pytest.raises(
        ConfigError, match=r"rule.lr: received an unknown key; expected some of bet"
    ):
        build(RULES, {"type": "adam", "lr": 1.0}, "rule", given={"lr": 2.0})


def test_no_table_is_refused():
    with pytest.raises(ConfigError, match=r"rule: received 3; expected a table or a name"):
        build(RULES, 3, "rule")
    with pytest.raises(ConfigError, match=r"data: received 3; expected a table of keys"):
        check_keys(3, "data")
    with pytest.raises(ConfigError, match=r"trainer: received 3; expected a table of arguments"):
        call(dict, 3, "trainer")


def test_keys_that_are_needed_and_known():
    assert check_keys({"a": 1, "b": 2}, "", needed=["a"], known=["b", "c"]) == {"a": 1, "b": 2}
    with pytest.raises(ConfigError, match=r"^x.a: is missing"):
        check_keys({}, "x", needed=["a"])
    with pytest.raises(ConfigError, match=r"^d: received an unknown key; expected some of a, b"):
        check_keys({"d": 1}, "", known=["a", "b"])


def test_any_keyword_passes_where_any_is_taken():
    assert call(lambda **options: options, {"a": 1}, "x") == {"a": 1}


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        ([1, 2], Sequence[int], [1, 2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ("x", Path, "x"),
        ("x", str | Path, "x"),
        ("anything", "a name that is not known", "anything"),
        (None, float | None, None),
        ([torch.float32], list[torch.dtype], [torch.float32]),
        (float("inf"), int | float, float("inf")),
    ],
    ids=str,
)
def test_a_value_becomes_what_its_annotation_says(value: Any, annotation: Any, result: Any):
    found = as_plain(value, annotation, "x")
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("name", "text"),
    [("c.toml", "[a]\nb = 1.5"), ("c.json", '{"a": {"b": 1.5}}'), ("c.yaml", "a:\n  b: 1.5")],
)
def test_files_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_config(tmp_path / name) == {"a": {"b": 1.5}}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("c.ini", "", "received a '.ini'; expected one of"),
        ("c.toml", "a = ", "Invalid value"),
        ("c.json", "[1]", "received a list; expected a table"),
        ("c.yaml", "a: [", "while parsing"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_config(tmp_path / name)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_config(tmp_path / "none.toml")
