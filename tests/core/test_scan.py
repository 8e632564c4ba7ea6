import itertools
import sys
import textwrap

import pytest

from helios.core import utils
from helios.core.scan import registers

_numbers = itertools.count()


@pytest.fixture
def package(tmp_path):
    """A package of a name of its own, and a function that writes files into it."""
    name = f"scanned_{next(_numbers)}"
    root = tmp_path / name
    path = list(sys.path)

    def write(**files):
        for relative, text in files.items():
            file = root / (relative.replace("__in__", "/") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(text))
        return root

    write(__init__="")
    yield write
    sys.path[:] = path
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        del sys.modules[module]


_REGISTERS = """
from helios.core.utils import Registry
R = Registry("thing")
@R.register
class Thing:
    pass
"""


def test_a_decorator_is_found(package):
    root = package(thing=_REGISTERS)
    assert utils.update_all_registries(root) == [f"{root.name}.thing"]


def test_what_registers_is_imported(package):
    root = package(thing=_REGISTERS)
    utils.update_all_registries(root)
    assert "Thing" in sys.modules[f"{root.name}.thing"].R


@pytest.mark.parametrize(
    "source",
    [
        "R.register(X)",
        "if True:\n    class Outer:\n        @R.register\n        class X: pass",
        "class Outer:\n    @R.register\n    def f(self): pass",
        "@a.b.R.register(suffix='v2')\nclass X: pass",
        "def late():\n    R.register(X)",
        "@R.register\nasync def f(): pass",
    ],
    ids=["plain call", "indented", "method", "with suffix", "inside a function", "async"],
)
def test_every_form_of_registration_is_found(tmp_path, source):
    file = tmp_path / "module.py"
    file.write_text(source)
    assert registers(file)


@pytest.mark.parametrize(
    "source",
    ["x = 'R.register(X)'", "# @R.register", "R.register", "register(X)", "R.unregister(X)", ""],
)
def test_what_only_looks_like_a_registration_is_not_found(tmp_path, source):
    file = tmp_path / "module.py"
    file.write_text(source)
    assert not registers(file)


def test_what_registers_nothing_is_not_imported(package):
    root = package(thing=_REGISTERS, quiet="raise RuntimeError")
    assert utils.update_all_registries(root) == [f"{root.name}.thing"]


def test_sub_packages_are_visited(package):
    root = package(thing=_REGISTERS, sub__in____init__="", sub__in__other=_REGISTERS)
    assert utils.update_all_registries(root) == [f"{root.name}.thing", f"{root.name}.sub.other"]


def test_sub_packages_are_left_out_without_recurse(package):
    root = package(thing=_REGISTERS, sub__in____init__="", sub__in__other=_REGISTERS)
    assert utils.update_all_registries(root, recurse=False) == [f"{root.name}.thing"]


def test_an_init_that_registers_is_imported(package):
    root = package(__init__=_REGISTERS)
    assert utils.update_all_registries(root) == [root.name]


def test_hidden_and_dunder_names_are_passed_over(package):
    root = package(__main__="R.register(X)", __old____in____init__="", __old____in__x="R.register(")
    (root / ".hidden.py").write_text("R.register(X)")
    assert utils.update_all_registries(root) == []


def test_a_folder_that_is_no_package_and_registers_nothing_is_passed_over(package):
    root = package(thing=_REGISTERS, tools__in__script="print()", tools__in__broken="{{ x }")
    assert utils.update_all_registries(root) == [f"{root.name}.thing"]


def test_a_folder_that_is_no_package_and_registers_is_an_error_that_names_it(package):
    root = package(lost__in__thing=_REGISTERS)
    with pytest.raises(ImportError, match=r"lost has no __init__\.py"):
        utils.update_all_registries(root)


def test_a_syntax_error_names_the_file(package):
    root = package(broken="x = = 1")
    with pytest.raises(SyntaxError, match=rf"{root}/broken\.py, line 1"):
        utils.update_all_registries(root)


def test_null_bytes_name_the_file(package):
    root = package(broken="x = 1\0")
    with pytest.raises(SyntaxError, match=r"broken\.py"):
        utils.update_all_registries(root)


def test_an_encoding_that_the_file_declares_is_understood(package):
    root = package()
    (root / "latin.py").write_bytes("# coding: latin-1\nx = 'é'\nR = 0\n".encode("latin-1"))
    assert utils.update_all_registries(root) == []


def test_imported_modules_are_not_executed_again(package):
    root = package(thing=_REGISTERS)
    utils.update_all_registries(root)
    before = sys.modules[f"{root.name}.thing"].Thing
    assert utils.update_all_registries(root) == [f"{root.name}.thing"]
    assert sys.modules[f"{root.name}.thing"].Thing is before


def test_the_parent_is_put_on_the_path_if_need_be(package):
    root = package(thing=_REGISTERS)
    utils.update_all_registries(root)
    assert sys.path[-1] == str(root.parent)


def test_the_path_is_left_alone_if_the_package_is_found(package, monkeypatch):
    root = package(thing=_REGISTERS)
    monkeypatch.syspath_prepend(root.parent)
    before = list(sys.path)
    utils.update_all_registries(root)
    assert sys.path == before


def test_a_prefix_comes_first_in_the_names(package):
    root = package(inner__in____init__="", inner__in__thing=_REGISTERS)
    found = utils.update_all_registries(root / "inner", import_prefix=root.name)
    assert found == [f"{root.name}.inner.thing"]


def test_a_prefix_that_does_not_fit_says_what_to_do(package):
    root = package(thing=_REGISTERS)
    with pytest.raises(ModuleNotFoundError, match=r"sys\.path.*or give the import_prefix"):
        utils.update_all_registries(root, import_prefix="nowhere_to_be_found")


def test_another_package_of_the_name_is_an_error_that_says_where_it_is(package, tmp_path):
    root = package(thing=_REGISTERS)
    utils.update_all_registries(root)
    double = tmp_path / "elsewhere" / root.name
    double.mkdir(parents=True)
    (double / "__init__.py").touch()
    (double / "thing.py").write_text(_REGISTERS)
    with pytest.raises(ImportError, match=f"was imported from {root}; expected {double}"):
        utils.update_all_registries(double)


def test_a_missing_dependency_of_a_module_is_its_own_error(package):
    root = package(thing="import not_there_at_all\nR.register(X)")
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_there_at_all'"):
        utils.update_all_registries(root)


def test_a_file_name_with_a_dot_is_an_error_that_names_it(package):
    root = package()
    (root / "a.b.py").write_text(_REGISTERS)
    with pytest.raises(ImportError, match=r"a\.b\.py registers something, but cannot be imported"):
        utils.update_all_registries(root)


def test_the_running_script_is_not_imported_a_second_time(package, monkeypatch):
    root = package(train=_REGISTERS)
    script = str(root / "train.py")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", script, raising=False)
    assert utils.update_all_registries(root) == []


def test_a_folder_that_links_to_its_parent_is_visited_once(package):
    root = package(thing=_REGISTERS)
    (root / "loop").symlink_to(root, target_is_directory=True)
    assert utils.update_all_registries(root) == [f"{root.name}.thing"]


def test_a_relative_root_is_resolved(package, monkeypatch):
    root = package(thing=_REGISTERS)
    monkeypatch.chdir(root)
    assert utils.update_all_registries(".") == [f"{root.name}.thing"]


def test_a_root_that_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"root: received .*missing.*expected the folder"):
        utils.update_all_registries(tmp_path / "missing")


def test_a_root_that_is_no_package_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"has no __init__\.py"):
        utils.update_all_registries(tmp_path)


@pytest.mark.parametrize("on_path", [False, True])
def test_a_missing_dependency_of_the_package_is_its_own_error(package, monkeypatch, on_path):
    root = package(__init__="import not_there_at_all", thing=_REGISTERS)
    if on_path:
        monkeypatch.syspath_prepend(root.parent)
    with pytest.raises(ModuleNotFoundError, match="No module named 'not_there_at_all'"):
        utils.update_all_registries(root)
