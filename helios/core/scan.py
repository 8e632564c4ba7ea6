"""Finding the modules of a package that register something, and importing them."""

from __future__ import annotations

import ast
import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path


def update_all_registries(root: Path, recurse: bool = True, import_prefix: str = "") -> list[str]:
    """Import every module of a package that registers something, to fill the registries.

    A module registers something if it has a call or a decorator that ends in ``.register``,
    wherever it stands. Names that begin with ``__`` or ``.`` are passed over, except for the
    ``__init__.py`` of a package, and so is the script that is running. If the package is not found
    on ``sys.path``, the folder that holds it is appended to ``sys.path``, and stays there, so that
    other processes that this one starts can find it too.

    Args:
        root: the folder of the package, with an ``__init__.py``.
        recurse: whether to look into its sub-packages. Defaults to true.
        import_prefix: (optional) the package that ``root`` is in. Modules are imported as
            ``[<import_prefix>.]<name of root>.<sub-package>.<module>``.

    Returns:
        The names of the modules that register something, sorted by folder and name. Those that
        were imported before are not executed again.

    Raises:
        ValueError: if ``root`` is not the folder of a package.
        ImportError: if a sub-folder that is not a package has files that register something, or
            if the package cannot be imported under its name.
        SyntaxError: if a file cannot be parsed; the message names it.
    """
    root = Path(root).resolve()
    if not root.is_dir():
        raise ValueError(f"root: received {str(root)!r}; expected the folder of a package")
    if not (root / "__init__.py").is_file():
        raise ValueError(
            f"root: received {str(root)!r}, which has no __init__.py; expected the folder of a "
            "package. Add an empty __init__.py, or give the package that holds the code."
        )
    package = f"{import_prefix}.{root.name}" if import_prefix else root.name
    found = list(_registering(root, package, recurse, {root}))
    if found:
        importlib.invalidate_caches()  # the finders may not know of files that are new
        _import_package(root, package)
    for name, path in found:
        _import(name, package, path)
    return [name for name, _ in found]


def registers(path: Path) -> bool:
    """Tell whether a Python file has a call or a decorator that ends in ``.register``.

    Raises:
        SyntaxError: if it cannot be parsed; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they belong to whoever imports the file
            tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        details = (str(path), error.lineno, error.offset, error.text)
        raise SyntaxError(f"{path}, line {error.lineno}: {error.msg}", details) from error
    except ValueError as error:  # null bytes, before Python 3.12
        raise SyntaxError(f"{path}: {error}") from error
    for node in ast.walk(tree):
        uses: list[ast.expr] = []
        if isinstance(node, ast.Call):
            uses = [node.func]
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            uses = node.decorator_list
        if any(isinstance(use, ast.Attribute) and use.attr == "register" for use in uses):
            return True
    return False


def _registering(
    folder: Path, package: str, recurse: bool, seen: set[Path]
) -> Iterator[tuple[str, Path]]:
    """Yield ``(module name, path)`` of the files of a package that register something."""
    entries = sorted(folder.iterdir())
    for path in entries:
        if not _is_module(path) or _is_running_script(path) or not registers(path):
            continue
        yield package if path.stem == "__init__" else f"{package}.{path.stem}", path
    if not recurse:
        return
    for path in entries:
        if path.name.startswith(("__", ".")) or not path.is_dir() or path.resolve() in seen:
            continue
        seen.add(path.resolve())
        if (path / "__init__.py").is_file():
            yield from _registering(path, f"{package}.{path.name}", recurse, seen)
        else:
            _check_not_a_package(path)


def _check_not_a_package(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        # What cannot be parsed here, such as a template, cannot be imported from here either.
        with contextlib.suppress(SyntaxError):
            if _is_module(path) and registers(path):
                raise ImportError(
                    f"{path} registers something, but its folder {folder} has no __init__.py and "
                    "cannot be imported. Add an empty __init__.py, or move the file."
                )


def _is_module(path: Path) -> bool:
    name = path.name
    hidden = name.startswith(("__", ".")) and name != "__init__.py"
    return path.suffix == ".py" and not hidden and path.is_file()


def _is_running_script(path: Path) -> bool:
    # Imported under its other name it would be executed, and register everything, twice.
    running = getattr(sys.modules.get("__main__"), "__file__", None)
    return running is not None and Path(running).resolve() == path.resolve()


def _import_package(root: Path, package: str) -> None:
    """Import the root package, and see that it is the one at ``root``."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if not _is_part_of(error.name, package):
            raise
        parts = package.split(".")
        folder = root.parents[len(parts) - 1] if len(root.parents) >= len(parts) else root.parent
        if list(root.relative_to(folder).parts) != parts or str(folder) in sys.path:
            raise _cannot_import(package, root) from error
        sys.path.append(str(folder))
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError as again:
            if not _is_part_of(again.name, package):
                raise
            sys.path.remove(str(folder))
            raise _cannot_import(package, root) from again
    folders = [str(Path(path).resolve()) for path in getattr(module, "__path__", [])]
    if str(root) not in folders:
        raise ImportError(
            f"{package!r} was imported from {', '.join(folders) or module}; expected {root}. "
            "Another module has the same name: rename the package, or put its parent folder first "
            "on sys.path."
        )


def _import(name: str, package: str, path: Path) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not _is_part_of(error.name, name) or _is_part_of(error.name, package):
            raise
        raise ImportError(
            f"{path} registers something, but cannot be imported as {name!r}; expected a file "
            "name that is a Python name"
        ) from error


def _is_part_of(missing: str | None, name: str) -> bool:
    """Tell whether the module that was not found is ``name`` or a package that it is in."""
    return missing is not None and f"{name}.".startswith(f"{missing}.")


def _cannot_import(package: str, root: Path) -> ImportError:
    return ModuleNotFoundError(
        f"the package at {root} cannot be imported as {package!r}. Put the folder that holds "
        f"{package.split('.')[0]!r} on sys.path, by running from there or with PYTHONPATH, or give "
        "the import_prefix under which it can be imported.",
        name=package,
    )
