"""The pages of the API, written from what the packages export: none is kept by hand.

Every public name has one place, under the name that a user would import; other packages that
export it point there.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = {
    "helios": "The face: what most scripts need.",
    "helios.trainer": "The trainer, its state, and the checkpoints.",
    "helios.model": "Models, networks and pretrained weights.",
    "helios.data": "Data modules, loaders, and samplers whose position is an integer.",
    "helios.optim": "Optimizers as pure functions, clipping, chains and averages.",
    "helios.optim.rates": "Learning rates as functions of the updates completed.",
    "helios.functional": "The pure core: state, step, schedule, replay.",
    "helios.functional.schedule": "The calendar: events, and what is answered to them.",
    "helios.functional.calendar": "The calendar in lines and numbers.",
    "helios.functional.observe": "What a step tells of its updates.",
    "helios.plugins": "What extends a run without changing its model.",
    "helios.plugins.optuna": "A search with Optuna that can be interrupted.",
    "helios.loggers": "Where metrics go, and what hooks log.",
    "helios.exporting": "The trained network, for use without helios.",
    "helios.trainer.flight": "The record of a run's updates.",
    "helios.tuning": "A learning rate and a batch size that fit.",
    "helios.testing": "The laws of a run, tried on a model of your own.",
    "helios.testing.strategies": "Hypothesis strategies for plans and states.",
    "helios.core.utils": "Registries, and what the seed of this library calls utilities.",
    "helios.core.config": "Runs from a configuration file.",
    "helios.core.logging": "The log and TensorBoard.",
    "helios.core.rng": "The generators that are not keyed.",
    "helios.core.distributed": "What a process knows of its ranks.",
    "helios.core.cuda": "Switches of CUDA and cuDNN.",
    "helios.errors": "Every error that helios raises by a name of its own.",
}
"""The packages that have a page, in the order of the menu."""

KNOWN_HERE = (
    "helios.core.lookup",
    "helios.functional.share",
    "helios.functional.trainable",
    "helios.trainer.flight.record",
    "helios.trainer.store.fs",
    "optuna",
    "optuna.samplers",
)
"""Where names of annotations are looked for that are imported for the type checker alone."""

PREFERRED = {"helios.trainer": {"Trainer", "TrainingState", "TrainingUnit"}}
"""Names that are looked for where they are, and not at the top."""


def public(module: ModuleType) -> dict[str, Any]:
    """Return the classes, functions and values that a module offers, by name."""
    is_package = hasattr(module, "__path__")
    found = {}
    for name in getattr(module, "__all__", [n for n in vars(module) if not n.startswith("_")]):
        value = getattr(module, name)
        if inspect.ismodule(value):
            continue
        origin = getattr(value, "__module__", "")
        if inspect.isclass(value) or inspect.isroutine(value):
            # A package exports what it imports; a module offers what it defines.
            is_own = origin.startswith("helios") if is_package else origin == module.__name__
        else:
            is_own = name.isupper() and len(name) > 1
        if is_own:
            found[name] = value
    return found


@functools.cache
def _offered() -> dict[str, dict[str, Any]]:
    return {name: public(importlib.import_module(name)) for name in PACKAGES}


@functools.cache
def _described() -> dict[int, str]:
    """Return the full name under which each object is described, by its identity."""
    offered, described = _offered(), {}
    for package, names in PREFERRED.items():
        described |= {id(offered[package][name]): f"{package}.{name}" for name in names}
    for package in sorted(offered, key=lambda package: package.count(".")):
        for name, value in offered[package].items():
            described.setdefault(id(value), f"{package}.{name}")
    return described


def homes() -> dict[str, dict[str, str]]:
    """Return, for each package, its public names and under which full name each is described."""
    return {
        package: {name: _described()[id(value)] for name, value in names.items()}
        for package, names in _offered().items()
    }


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Lead a reference to the page of what it names, wherever it is named from.

    What is not described on any page, such as a class of torch or an inner part of helios, is left
    as it is written, if it exists. What does not exist anywhere is Sphinx' to complain about.
    """
    target = node.get("reftarget", "")
    for dotted in _candidates(target, node):
        found = _existing(dotted)
        if found is None:
            continue
        owner, member = found
        full = _described().get(id(owner))
        if full is not None:
            domain = env.get_domain("py")
            name = f"{full}.{member}" if member else full
            made = domain.resolve_xref(
                env, node["refdoc"], app.builder, "obj", name, node, contnode
            )
            if made is not None:
                return made
        return contnode
    return None


def _is_attribute(owner: Any, name: str) -> bool:
    """Tell whether a class says that its instances have an attribute."""
    bases = getattr(owner, "__mro__", ())
    return any(
        name in getattr(base, "__annotations__", {})
        or re.search(rf"^ +{name}: ", base.__doc__ or "", re.MULTILINE)
        for base in bases
    )


def _candidates(target: str, node: Any) -> list[str]:
    """Return the full names that a name may stand for."""
    inside = [node.get("py:module"), node.get("py:class")]
    module, owner = inside
    starts = [f"{module}.{owner}", module] if module and owner else [module]
    places = [*starts, *_offered(), *KNOWN_HERE, "builtins", ""]
    return [f"{place}.{target}" if place else target for place in places]


def _existing(dotted: str) -> tuple[Any, str] | None:
    """Return the module-level object that a dotted name leads to, and the member of it."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except (ImportError, ValueError):
            continue
        owner = value
        for depth, part in enumerate(parts[cut:]):
            if not hasattr(value, part) and not _is_attribute(value, part):
                return None
            value = getattr(value, part, None)
            if depth == 0:
                owner = value
        return owner, ".".join(parts[cut + 1 :])
    return None


def write_pages(folder: Path) -> None:
    """Write a page for each package into a folder, and nothing where nothing has changed."""
    folder.mkdir(exist_ok=True)
    index = ["API", "===", "", ".. toctree::", "   :maxdepth: 1", ""]
    for package, names in homes().items():
        index.append(f"   {package}")
        _write(folder / f"{package}.rst", _page(package, names))
    _write(folder / "index.rst", "\n".join(index) + "\n")


def _page(package: str, names: dict[str, str]) -> str:
    module = importlib.import_module(package)
    lines = [package, "=" * len(package), "", PACKAGES[package], ""]
    elsewhere = {name: full for name, full in names.items() if full != f"{package}.{name}"}
    if elsewhere:
        links = ", ".join(f":py:obj:`{name} <{full}>`" for name, full in sorted(elsewhere.items()))
        lines += [f"Exported here as well: {links}.", ""]
    lines += [f".. py:module:: {package}", ""]
    for name in names:
        if name in elsewhere:
            continue
        value = getattr(module, name)
        if inspect.isclass(value):
            lines += [f".. autoclass:: {package}.{name}", "   :members:", "   :show-inheritance:"]
        elif inspect.isroutine(value):
            lines += [f".. autofunction:: {package}.{name}"]
        else:
            lines += [f".. py:data:: {package}.{name}", f"   :type: {type(value).__name__}"]
        lines.append("")
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
