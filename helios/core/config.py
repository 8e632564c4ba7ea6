"""Configurations: tables of plain values that say which registered thing to make, and how.

A table is a dict as TOML, YAML and JSON give it. Its ``type`` is a name in a registry, and its
other keys are arguments. What is wrong is an error that names the path of the key, such as
``optimizer.lr.peak``, before anything is called.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from helios.core.arguments import choices, names_of, signature_of, unknown_keys
from helios.core.plain_types import as_plain
from helios.core.registry import Registry
from helios.errors import ConfigError, RegistryError

TYPE = "type"
"""The key that names what is registered."""


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a configuration from a file: ``.toml``, ``.json``, and ``.yaml`` with PyYAML.

    Args:
        path: of the file.

    Raises:
        ConfigError: if it is none of these, is not well formed, or is no table.
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    readers: dict[str, Callable[[str], Any]] = {
        ".toml": tomllib.loads,
        ".json": json.loads,
        ".yaml": _yaml,
        ".yml": _yaml,
    }
    if path.suffix not in readers:
        raise ConfigError(f"{path}: received a {path.suffix!r}; expected one of {list(readers)}")
    text = path.read_text(encoding="utf-8")
    try:
        table = readers[path.suffix](text)
    except ConfigError:
        raise
    except Exception as error:  # each format has errors of its own
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: received a {type(table).__name__}; expected a table")
    return table


def check_keys(
    table: Any, path: str, *, needed: Iterable[str] = (), known: Iterable[str] = ()
) -> dict[str, Any]:
    """Return a table that has the keys that it needs, and none that nobody knows.

    Args:
        table: the table.
        path: where it stands, ``""`` for the whole configuration.
        needed: keys that have to be there.
        known: others that may be there.

    Raises:
        ConfigError: if it is no table, or a key is missing or unknown.

    Example:
        >>> check_keys({"modle": {}}, "", needed=["model"])
        Traceback (most recent call last):
        helios.errors.ConfigError: modle: received an unknown key; expected some of model. Did you mean 'model'?
    """  # noqa: E501 - a message stands on one line
    if not isinstance(table, Mapping):
        raise ConfigError(
            f"{path or 'the configuration'}: received {table!r}; expected a table of keys"
        )
    needed = list(needed)
    names = [*needed, *known]
    for key in table:
        if key not in names:
            where = _below(path, key)
            raise ConfigError(f"{where}: received an unknown key; {choices(key, names)}")
    for key in needed:
        if key not in table:
            raise ConfigError(f"{_below(path, key)}: is missing; expected a value")
    return dict(table)


def build(
    registry: Registry,
    table: Any,
    path: str,
    *,
    given: Mapping[str, Any] | None = None,
    nested: Mapping[str, Registry] | None = None,
) -> Any:
    """Make what a table names.

    Args:
        registry: where its ``type`` is looked up.
        table: a table, or just a name for one without further keys.
        path: where it stands in the configuration, for errors.
        given: (optional) arguments that are no part of the configuration.
        nested: (optional) registries by key: a table under that key is built from it, and so is
            each one of a list of tables.

    Raises:
        ConfigError: if the name or a key is unknown, a key is missing, a value has a wrong type, or
            what is made refuses its arguments.

    Example:
        >>> registry = Registry("range")
        >>> @registry.register
        ... def between(low: float, high: float = 1.0) -> tuple[float, float]:
        ...     return low, high
        >>> build(registry, {"type": "between", "low": 0.5}, "data.range")
        (0.5, 1.0)
        >>> build(registry, {"type": "between", "low": "0.5"}, "data.range")
        Traceback (most recent call last):
        helios.errors.ConfigError: data.range.low: received '0.5'; expected float
    """
    table = {TYPE: table} if isinstance(table, str) else table
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: received {table!r}; expected a table or a name")
    keys = dict(table)
    if TYPE not in keys:
        known = ", ".join(sorted(registry.keys()))
        raise ConfigError(f"{_below(path, TYPE)}: is missing; expected one of {known}")
    name = keys.pop(TYPE)
    try:
        function = registry.get(name) if isinstance(name, str) else None
    except RegistryError as error:
        raise ConfigError(f"{_below(path, TYPE)}: {error}") from None
    if function is None:
        raise ConfigError(f"{_below(path, TYPE)}: received {name!r}; expected a name")
    for key, inner in (nested or {}).items():
        if key in keys:
            keys[key] = _built(inner, keys[key], _below(path, key))
    return call(function, keys, path, given=given, built=tuple(nested or ()))


def call(
    function: Callable[..., Any],
    table: Any,
    path: str,
    *,
    given: Mapping[str, Any] | None = None,
    built: Iterable[str] = (),
) -> Any:
    """Call a class or a function with the keys of a table as arguments.

    Values are checked against the types of its arguments where these are plain, such as ``float``,
    ``str | None`` or ``tuple[float, float]``.

    Args:
        function: the class or the function.
        table: its arguments.
        path: where the table stands in the configuration, for errors.
        given: (optional) arguments that are no part of the configuration.
        built: keys whose values are objects already, and are not checked.

    Raises:
        ConfigError: if a key is unknown or missing, a value has a wrong type, or ``function``
            refuses its arguments with a TypeError or a ValueError.
    """
    given, built = dict(given or {}), set(built)
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path}: received {table!r}; expected a table of arguments")
    keys = dict(table)
    signature = signature_of(function)
    if signature is not None:
        _check_names(signature, keys, given, path)
        for key, value in keys.items():
            parameter = signature.parameters.get(key)
            if parameter is not None and key not in built:
                keys[key] = as_plain(value, parameter.annotation, _below(path, key))
    try:
        return function(**keys, **given)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_names(
    signature: inspect.Signature, keys: Mapping[str, Any], given: Mapping[str, Any], path: str
) -> None:
    names = [name for name in names_of(signature) if name not in given]
    for key in keys:
        if key in given or unknown_keys(signature, [key]):
            where = _below(path, key)
            raise ConfigError(f"{where}: received an unknown key; {choices(key, names)}")
    for name in names:
        if name not in keys and signature.parameters[name].default is inspect.Parameter.empty:
            raise ConfigError(f"{_below(path, name)}: is missing; expected a value")


def _built(registry: Registry, value: Any, path: str) -> Any:
    if isinstance(value, list):
        return [_built(registry, part, f"{path}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, Mapping | str):
        return build(registry, value, path)
    return value


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            "reading YAML needs PyYAML: pip install pyyaml, or write the configuration as TOML"
        ) from None
    return yaml.safe_load(text)
