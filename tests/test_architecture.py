"""The arrows of the house: who may import whom, read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import helios

ROOT = Path(helios.__file__).parent
LEAVES = {"errors", "version"}
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "functional": {"errors"},
    "optim": {"functional", "core"} | LEAVES,
    "core": {"functional"} | LEAVES,
    "model": {"functional", "core"} | LEAVES,
    "data": {"functional", "core"} | LEAVES,
    "plugins": {"functional", "core"} | LEAVES,
    "loggers": {"functional", "core"} | LEAVES,
    "trainer": {"functional", "core", "optim", "model", "data", "plugins", "loggers"} | LEAVES,
    "debug": {"trainer", "data", "model"} | LEAVES,
    "testing": {"functional", "core", "model", "data"} | LEAVES,
    "tuning": {"functional", "core", "model", "data"} | LEAVES,
    "exporting": {"functional", "model", "trainer"} | LEAVES,
    "cli": {"functional", "trainer", "exporting"} | LEAVES,
    "__main__": {"cli"},
}
IMPURE = {"os", "pathlib", "time", "logging", "random", "socket", "subprocess", "threading", "io"}
IMPURE_TORCH = {"torch.distributed", "torch.cuda", "torch.multiprocessing"}
SOURCES = sorted(p for p in ROOT.rglob("*.py") if "examples" not in p.parts)


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The modules that a file imports at run time; those for the type checker alone are not."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    part = part_of(path)
    if part == "__init__":
        return
    for module in imports(path):
        names = module.split(".")
        if names[0] == "helios" and len(names) > 1 and (ROOT / names[1]).exists():
            assert names[1] == part or names[1] in MAY_IMPORT[part], f"{part} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "functional").glob("*.py")), ids=lambda p: p.name)
def test_the_core_is_pure(path):
    for module in imports(path):
        assert module.split(".")[0] not in IMPURE, module
        assert not any(module.startswith(name) for name in IMPURE_TORCH), module
    used = {ast.unparse(n) for n in ast.walk(ast.parse(path.read_text())) if _is_attribute(n)}
    # Dropout on a device draws from its default generator: the one thing to name CUDA for.
    allowed = {"torch.cuda"} if path.name == "rng.py" else set()
    assert not (used & IMPURE_TORCH) - allowed


@pytest.mark.parametrize("path", sorted((ROOT / "functional").glob("*.py")), ids=lambda p: p.name)
def test_the_core_imports_little(path):
    third_party = {"torch", "optree", "msgspec", "helios"}
    import sys

    for module in imports(path):
        top = module.split(".")[0]
        assert top in third_party or top in sys.stdlib_module_names, module


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_are_small(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "pickle.load", "pickle.loads"}
            if called == "torch.load":
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("weights_only") == "True"


def _is_attribute(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
