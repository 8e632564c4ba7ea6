"""A registry that also knows the classes of a library by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, KeysView, Mapping
from typing import Any

from helios.core.registry import Registry


class LookupRegistry(Registry):
    """A registry beside which a library is looked up, when a name is asked for the first time.

    What is registered goes before what the library has.

    Args:
        name: what the objects are; error messages say it.
        look_up: returns the objects of the library by name; called when they are needed.
        advice: (optional) said where a name is not found, such as what to install.

    Example:
        >>> import math
        >>> registry = LookupRegistry("function", lambda: {"sqrt": math.sqrt})
        >>> registry.create("sqrt", 4.0)
        2.0
    """

    def __init__(
        self,
        name: str,
        look_up: Callable[[], Mapping[str, Any]],
        advice: Callable[[], str] = str,
    ) -> None:
        super().__init__(name)
        self._look_up = look_up
        self._found: Mapping[str, Any] | None = None
        self._says = advice

    def get(self, name: str, suffix: str = "") -> Any:
        """Return the object that is registered under ``name``, or that of the library.

        Raises:
            RegistryError: if there is none; the message lists the names there are.
        """
        if name not in self._objects and name in self._library:
            return self._library[name]
        return super().get(name, suffix)

    def keys(self) -> KeysView[str]:
        """Return the names: those that are registered, and then those of the library."""
        return {**self._objects, **self._library}.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._objects or name in self._library

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Iterate over ``(name, object)``."""
        return iter({**self._library, **self._objects}.items())

    def __len__(self) -> int:
        return len(self.keys())

    @property
    def _library(self) -> Mapping[str, Any]:
        if self._found is None:
            self._found = dict(self._look_up())
        return self._found

    def _advice(self, name: Any) -> str:
        more = self._says()
        return super()._advice(name) + (f" {more}" if more else "")
