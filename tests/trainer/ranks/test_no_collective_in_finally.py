"""No collective stands where it runs after a failure: the other ranks would wait for it in vain.

Looked at is every file of helios: the blocks of ``finally``, the methods ``__exit__`` and
``__del__``, and what is given to ``callback`` and ``push`` of an ``ExitStack``; and the functions
of the same file that are called there, and what they call there. Sought are the functions of
torch.distributed that wait for others, and those of helios that all ranks call at the same place.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import helios
from helios.core import distributed
from helios.trainer.agreement import Agreement
from helios.trainer.ranks.group import Ranks
from helios.trainer.ranks.saving import RankSaver

ROOT = Path(helios.__file__).parent
OF_TORCH = {
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_gather_single"),
    *("all_reduce", "all_reduce_coalesced", "all_to_all", "all_to_all_single", "barrier"),
    *("batch_isend_irecv", "broadcast", "broadcast_object_list", "gather", "gather_object"),
    *("init_process_group", "irecv", "isend", "monitored_barrier", "new_group", "recv", "reduce"),
    *("reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list", "send"),
}
OF_HELIOS = {
    # what ranks say to each other, and what is decided by that
    *("exchange", "told_by_first", "together", "once", "agree"),
    *("after_update", "after_event", "at_end", "of_first", "all_have", "merged", "whole"),
    # what saves on several ranks; "finish" of it has the name of what is none
    *("holds", "save_resumable", "check_same", "content_of_all"),
    *("safe_barrier", "all_reduce_tensors", "gather_into_tensor"),
}
CLOSING = {"__exit__", "__aexit__", "__del__"}
GIVEN_TO_A_STACK = {"callback", "push"}


def name_of(node: ast.AST) -> str:
    """Return the last name of ``a.b.c`` and of ``c``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def names_in(nodes: list[ast.stmt] | list[ast.expr]) -> set[str]:
    """Return the last names of what is mentioned: a function that is passed on is called, too."""
    mentioned = (node for part in nodes for node in ast.walk(part))
    return {name_of(node) for node in mentioned} - {""}


def runs_after_a_failure(tree: ast.Module) -> Iterator[tuple[int, set[str]]]:
    """Yield the places of a file that run whatever happened before, and the names in them."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Try, ast.TryStar)) and node.finalbody:
            yield node.finalbody[0].lineno, names_in(node.finalbody)
        elif isinstance(node, ast.FunctionDef) and node.name in CLOSING:
            yield node.lineno, names_in(node.body)
        elif isinstance(node, ast.Call) and name_of(node.func) in GIVEN_TO_A_STACK:
            yield node.lineno, names_in(node.args)


def collectives_in(source: str) -> list[tuple[int, str]]:
    """Return the lines of a file where a collective runs after a failure, and which one."""
    tree = ast.parse(source)
    bodies = {
        node.name: names_in(node.body)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }
    found = []
    for line, names in runs_after_a_failure(tree):
        reached: set[str] = set()
        ahead = names
        while ahead:
            reached |= ahead
            ahead = {name for one in ahead for name in bodies.get(one, ())} - reached
        found += [(line, name) for name in sorted(reached & (OF_TORCH | OF_HELIOS))]
    return found


FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_no_collective_runs_after_a_failure(file):
    assert collectives_in((ROOT / file).read_text()) == []


def test_there_are_places_to_look_at():
    places = [
        (file, line)
        for file in FILES
        for line, _ in runs_after_a_failure(ast.parse((ROOT / file).read_text()))
    ]
    assert {"trainer/loop.py", "trainer/fit.py", "trainer/ranks/join.py"} <= {f for f, _ in places}
    assert len(places) > 20


@pytest.mark.parametrize("owner", [Ranks, Agreement, RankSaver, distributed])
def test_what_is_sought_is_what_helios_has(owner):
    """A collective that is renamed is still sought."""
    functions = {
        name: ast.parse(textwrap.dedent(inspect.getsource(function)))
        for name, function in inspect.getmembers(owner, inspect.isfunction)
        if function.__module__ == (owner.__module__ if inspect.isclass(owner) else owner.__name__)
    }
    waiting = {
        name
        for name, tree in functions.items()
        if names_in(tree.body) & (OF_TORCH | OF_HELIOS) - {"reduce"}
    }
    own = {"__call__", "finish"}  # of `RankSaver`: names of what is none elsewhere, too
    public = {name for name in waiting if not name.startswith("_") or name == "__call__"}
    assert public - own <= OF_HELIOS


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    pass\nfinally:\n    dist.barrier()",
        "def late():\n    dist.all_reduce(x)\ntry:\n    pass\nfinally:\n    late()",
        "class A:\n    def __exit__(self, *exc):\n        self.ranks.exchange(1)",
        "stack.callback(loop.save_resumable)",
        "stack.callback(lambda: ranks.together(act, 'it'))",
    ],
)
def test_a_collective_that_runs_after_a_failure_is_found(source):
    assert len(collectives_in(source)) == 1
