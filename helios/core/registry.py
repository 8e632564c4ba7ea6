"""Objects by name, so that a configuration can name a class or a function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, KeysView
from typing import Any, TypeVar, overload

from helios.core.arguments import check_arguments, closest
from helios.errors import RegistryError

T = TypeVar("T")


class Registry:
    """A mapping from names to classes or functions, which fill it themselves.

    Args:
        name: what the objects are, such as ``"model"``; error messages say it.

    Example:
        >>> registry = Registry("shape")
        >>> @registry.register
        ... class Circle:
        ...     pass
        >>> @registry.register(suffix="v2")
        ... class Square:
        ...     pass
        >>> list(registry.keys()), registry.get("Circle") is Circle
        (['Circle', 'Square_v2'], True)
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._objects: dict[str, Any] = {}
        self._specs: dict[str, Any] = {}

    @overload
    def register(self, obj: T, suffix: str = "") -> T: ...

    @overload
    def register(self, obj: None = None, suffix: str = "") -> Callable[[T], T]: ...

    def register(self, obj: Any = None, suffix: str = "") -> Any:
        """Register a class or a function under its ``__name__``.

        Works as ``@R.register``, as ``@R.register(suffix="v2")`` and as ``R.register(X)``.
        Registering the same object again changes nothing, and when its module is reloaded the new
        object takes the old one's place.

        Args:
            obj: the class or function; None returns a decorator.
            suffix: (optional) appended to the name, after an underscore.

        Returns:
            The object, or the decorator.

        Raises:
            RegistryError: if another object has the name.
            TypeError: if the object has no name, or the suffix is not a string.
        """
        # None is what the public API has for "no suffix", and callers still pass it.
        if suffix is not None and not isinstance(suffix, str):
            raise TypeError(f"suffix: received a {type(suffix).__name__}; expected a string")
        if obj is None:
            return lambda decorated: self.register(decorated, suffix)
        name = getattr(obj, "__name__", None)
        if not isinstance(name, str):
            raise TypeError(
                f"the {self._name} registry received {obj!r}, which has no __name__; expected a "
                "class or a function"
            )
        name = _joined(name, suffix)
        if name in self._objects and not self._takes_the_place(name, obj):
            raise RegistryError(
                f"the {self._name} registry has {name!r} already: "
                f"{_origin(self._objects[name])}; received another one: {_origin(obj)}. Rename "
                "one of them, or register it with a suffix."
            )
        self._objects[name] = obj
        self._specs[name] = _module_spec(obj)
        return obj

    def get(self, name: str, suffix: str = "") -> Any:
        """Return the object that is registered under ``name``.

        Args:
            name: the name.
            suffix: (optional) if nothing has the plain name, ``<name>_<suffix>`` is looked up.

        Raises:
            RegistryError: if there is none; the message lists the names there are.
        """
        if name in self._objects:
            return self._objects[name]
        joined = _joined(name, suffix)
        if joined in self._objects:
            return self._objects[joined]
        asked = repr(name) if joined == name else f"{name!r} or {joined!r}"
        raise RegistryError(f"the {self._name} registry has no {asked}{self._advice(name)}")

    def create(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Call what is registered under ``name`` with the arguments, and return the result.

        Raises:
            RegistryError: if there is nothing of that name.
            TypeError: if it takes no such arguments; the message lists those that it takes.

        Example:
            >>> registry = Registry("number")
            >>> _ = registry.register(complex)
            >>> registry.create("complex", 1, 2)
            (1+2j)
        """
        obj = self.get(name)
        check_arguments(f"{self._name} {name!r}", obj, args, kwargs)
        return obj(*args, **kwargs)

    def keys(self) -> KeysView[str]:
        """Return a view of the names, in the order of registration."""
        return self._objects.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._objects

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Iterate over ``(name, object)``."""
        return iter(list(self._objects.items()))

    def __len__(self) -> int:
        return len(self._objects)

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"Registry({self._name!r}, {list(self._objects)})"

    def _takes_the_place(self, name: str, obj: Any) -> bool:
        """Tell whether ``obj`` is the registered object, or the same definition run again."""
        known = self._objects[name]
        if known is obj:
            return True
        if not _same_definition(known, obj):
            return False
        # A module that is executed again has a new spec. Two definitions in one execution have
        # the same one: the second would hide the first. An interactive session has none.
        spec = _module_spec(obj)
        if spec is None:
            return not hasattr(sys.modules.get("__main__"), "__file__")
        return spec is not self._specs[name]

    def _advice(self, name: Any) -> str:
        names = sorted(self.keys())
        if not names:
            return (
                "; it is empty. Import the modules that register something first, such as with "
                "update_all_registries()."
            )
        close = closest(name, names)
        hint = f" Did you mean {close!r}?" if close else ""
        return f"; it has {', '.join(map(repr, names))}.{hint}"


def _joined(name: str, suffix: str | None) -> str:
    return f"{name}_{suffix}" if suffix else name


def _origin(obj: Any) -> str:
    return f"{getattr(obj, '__module__', '?')}.{getattr(obj, '__qualname__', obj)}"


def _same_definition(a: Any, b: Any) -> bool:
    return type(a) is type(b) and _origin(a) == _origin(b)


def _module_spec(obj: Any) -> Any:
    module = sys.modules.get(getattr(obj, "__module__", None) or "")
    return getattr(module, "__spec__", None)
