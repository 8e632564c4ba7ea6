"""Which entry of a file goes to which entry of a module, by name alone.

A mapping goes from names of the module to names of the file. A name that ends in a dot stands for
everything below it, and ``""`` for everything; the longest one that fits a name decides.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from helios.errors import PretrainedError

NameMapping: TypeAlias = Mapping[str, str | None]

EVERYTHING: NameMapping = {"": ""}
"""Every entry of the module from the entry of its own name."""


def check_mapping(mapping: Any) -> None:
    """Check that a mapping maps names to names and prefixes to prefixes.

    Raises:
        TypeError: if it is not a mapping of strings to strings or None.
        PretrainedError: if it maps a name to a prefix or the other way round, or is empty.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(
            f"mapping: received {mapping!r}; expected a dict from names or prefixes of the module "
            'to those of the file, such as {"backbone.": "encoder.", "head.weight": "fc.weight"}'
        )
    if not mapping:
        raise PretrainedError(
            "mapping: received an empty dict, which loads nothing; leave it out to load everything "
            "by its own name"
        )
    for to, source in mapping.items():
        if not isinstance(to, str) or not (source is None or isinstance(source, str)):
            raise TypeError(
                f"mapping: received {to!r}: {source!r}; expected a string to a string or None"
            )
        if source is not None and is_prefix(to) != is_prefix(source):
            raise PretrainedError(
                f"mapping: received {to!r}: {source!r}; expected a name to a name, or a prefix to "
                "a prefix. A prefix ends in a dot, or is '' for everything."
            )


def is_prefix(name: str) -> bool:
    """Tell whether a name of a mapping stands for everything below it."""
    return not name or name.endswith(".")


def sources(names: Iterable[str], mapping: NameMapping) -> dict[str, str | None]:
    """Return where each entry of the module comes from, for those that a mapping names.

    Args:
        names: the names of the module.
        mapping: from names or prefixes of the module to those of the file.

    Returns:
        Names of the file by those of the module; None for an entry that shall stay as it is.

    Example:
        >>> sources(["fc.weight", "fc2.weight", "head.bias"], {"fc.": "a.", "head.bias": None})
        {'fc.weight': 'a.weight', 'head.bias': None}
    """
    # The longest first: what is more specific decides.
    prefixes = sorted(filter(is_prefix, mapping), key=len, reverse=True)
    found: dict[str, str | None] = {}
    for name in names:
        if name in mapping:
            found[name] = mapping[name]
            continue
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is not None:
            source = mapping[prefix]
            found[name] = None if source is None else source + name[len(prefix) :]
    return found


def check_matches(mapping: NameMapping, module: Collection[str], file: Collection[str]) -> None:
    """Check that each side of each entry of a mapping matches something.

    Args:
        mapping: from names or prefixes of the module to those of the file.
        module: the names of the module.
        file: the names of the file.

    Raises:
        PretrainedError: naming the entries that do not, and what comes near.
    """
    problems = []
    for to, source in mapping.items():
        for side, pattern, names in (("module", to, module), ("file", source, file)):
            if pattern is not None and not _matches(pattern, names):
                problems.append(
                    f"{to!r}: {source!r}: the {side} has no {_kind(pattern)} {pattern!r}"
                    f"{_near(pattern, names)}"
                )
    if problems:
        raise PretrainedError("mapping: " + "; ".join(problems))


def propose(module: Collection[str], file: Collection[str]) -> NameMapping | None:
    """Return the mapping of one prefix that would fit, or None if none does, or several do.

    It fills the whole module, or uses the whole file.

    Args:
        module: the names of the module.
        file: the names of the file.

    Example:
        >>> propose(["0.weight", "0.bias"], ["module.0.weight", "module.0.bias"])
        {'': 'module.'}
    """
    if not module or not file:
        return None
    if all(name in file for name in module):
        return EVERYTHING
    found = list(_fitting(module, file))
    # Mappings such as {"": "a."} and {"b.": "a.b."} may say the same. If two say different things,
    # names alone do not tell which one is meant.
    if not found or any(sources(module, m) != sources(module, found[0]) for m in found[1:]):
        return None
    return found[0]


def _fitting(module: Collection[str], file: Collection[str]) -> Iterator[NameMapping]:
    for to in _common(module):
        for source in _prefixes(file):
            if all(source + name[len(to) :] in file for name in module):
                yield {to: source}
    for source in _common(file):
        for to in _prefixes(module):
            # Two names of the module never come from one of the file: equal counts are all of it.
            below = [name for name in module if name.startswith(to)]
            if len(below) == len(file) and all(source + n[len(to) :] in file for n in below):
                yield {to: source}


def _matches(pattern: str, names: Collection[str]) -> bool:
    if is_prefix(pattern):
        return any(name.startswith(pattern) for name in names)
    return pattern in names


def _kind(pattern: str) -> str:
    return "entry below" if is_prefix(pattern) else "entry"


def _near(pattern: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(pattern, [*_prefixes(names)[1:], *names], n=3)
    return f" (near it: {', '.join(map(repr, near))})" if near else ""


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return every prefix that names have, the shortest first; ``""`` is one."""
    found = {""}
    for name in names:
        found.update(name[: i + 1] for i, character in enumerate(name) if character == ".")
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _common(names: Collection[str]) -> list[str]:
    """Return every prefix that all names have, the shortest first; ``""`` is one."""
    first = next(iter(names))
    return [p for p in _prefixes([first]) if all(name.startswith(p) for name in names)]
