"""The pickle inside of a checkpoint, followed without building what it describes.

``torch.load(weights_only=True)`` runs no code of a file's, but it builds what the file says: a
tensor of 10**12 elements over 16 bytes, a list that doubles itself 40 times. Here the pickle runs
on a stack of symbols first, so that what it would build is known, and bounded, before torch builds
any of it. Accepted is what ``torch.save`` writes for builtin types and for tensors that own their
memory; a program that only another pickler would write is refused, even if it is harmless.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from helios.trainer.store.rebuild import Rebuild
from helios.trainer.store.symbols import (
    GLOBALS,
    MAX_DEPTH,
    Container,
    described,
    fill,
    make_tuple,
    refused,
    set_keys,
    shown,
    weigh,
)

MAX_OPCODES = 2**22
"""How many instructions a pickle may have; a tensor takes about 27, and a number 1."""

_MAX_MARKS = MAX_DEPTH + 4  # a container has one open at most, a tensor two more
_STOP = ord(".")
_UINT16, _UINT32, _INT32 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<i")
_FLOAT64 = struct.Struct(">d")


def check_pickle(data: bytes, storages: Mapping[str, int]) -> None:
    """Follow a pickle and check what it would build.

    Args:
        data: the record ``data.pkl``.
        storages: the size in bytes of every record ``data/<key>``, by its key.

    Raises:
        CorruptCheckpointError: if ``torch.save`` does not write such a pickle for builtin types and
            tensors that own their memory, if it goes beyond a bound, or if it does not use every
            storage, whole.
    """
    machine = _Machine(data, Rebuild(storages, budget=len(data)))
    machine.run()
    machine.rebuild.check_all_used()


class _Machine:
    """The stacks and the memo of an unpickler, with symbols on them."""

    def __init__(self, data: bytes, rebuild: Rebuild) -> None:
        self.data = data
        self.at = 0
        self.rebuild = rebuild
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: list[Any] = []

    def run(self) -> None:
        if self.take(2) != b"\x80\x02":
            raise refused("its pickle does not begin as that of torch.save")
        methods, data, size = _METHODS, self.data, len(self.data)
        for _ in range(MAX_OPCODES):
            if self.at >= size:
                raise refused("its pickle does not end")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.end()
            method = methods.get(code)
            if method is None:
                raise refused(f"its pickle has the instruction {code:#04x}, not one of torch.save")
            method(self)
        raise refused(f"its pickle has more than {MAX_OPCODES} instructions")

    def end(self) -> None:
        if self.outer or len(self.stack) != 1 or self.at != len(self.data):
            raise refused("its pickle ends in the middle, or goes on after its end")
        weigh(self.stack[0])

    # Arguments.

    def take(self, size: int) -> bytes:
        data = self.data[self.at : self.at + size]
        if len(data) != size:
            raise refused("its pickle ends in the middle of a value")
        self.at += size
        return data

    def number(self, form: struct.Struct) -> Any:
        return form.unpack(self.take(form.size))[0]

    def pop(self) -> Any:
        if not self.stack:
            raise refused("its pickle takes more values than there are")
        return self.stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def pop_group(self) -> list[Any]:
        if not self.outer:
            raise refused("its pickle ends a group that did not begin")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def top(self, *kinds: str) -> Container:
        """Return the container on top, which is of one of some kinds."""
        value = self.stack[-1] if self.stack else None
        if type(value) is not Container or value.kind not in kinds:
            raise refused(f"its pickle fills {described(value)}; expected a {' or '.join(kinds)}")
        return value

    # Instructions.

    def mark(self) -> None:
        if len(self.outer) == _MAX_MARKS:
            raise refused(f"it is nested more than {MAX_DEPTH} deep")
        self.outer.append(self.stack)
        self.stack = []

    def put(self, index: int) -> None:
        if index != len(self.memo) or not self.stack:
            raise refused("its pickle numbers its values in another order than torch.save")
        self.memo.append(self.stack[-1])

    def get(self, index: int) -> None:
        if index >= len(self.memo):
            raise refused("its pickle refers to a value that it does not have")
        self.stack.append(self.memo[index])

    def integer(self) -> None:
        self.stack.append(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))

    def text(self) -> None:
        data = self.take(self.number(_UINT32))
        try:
            self.stack.append(data.decode("utf-8", "surrogatepass"))
        except UnicodeDecodeError:
            raise refused("its pickle has a string that is not UTF-8") from None

    def name(self) -> None:
        middle = self.data.find(b"\n", self.at)
        stop = self.data.find(b"\n", middle + 1)
        name = self.data[self.at : stop] if 0 <= middle < stop else b""
        if name not in GLOBALS:
            name = name[:60].replace(b"\n", b".")
            raise refused(f"its pickle names {shown(name)}, not a builtin type or part of a tensor")
        self.at = stop + 1
        self.stack.append(GLOBALS[name])

    def append(self, items: list[Any]) -> None:
        fill(self.top("list"), items)

    def set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise refused("its pickle has a key without a value")
        set_keys(self.top("dict", "OrderedDict"), items)

    def build(self) -> None:
        """Take the ``_metadata`` that the ``state_dict`` of a module has as an attribute."""
        state = self.pop()
        if type(state) is not Container or state.kind != "dict" or state.keys != {"_metadata"}:
            raise refused("its pickle sets attributes that torch.save does not write")
        fill(self.top("OrderedDict"), [state])

    def call(self) -> None:
        function, arguments = self.pop_many(2)
        self.stack.append(self.rebuild.call(function, arguments))

    def push_tuple(self, items: list[Any]) -> None:
        self.stack.append(make_tuple(items))


_Method: TypeAlias = Callable[[_Machine], None]

_METHODS: dict[int, _Method] = {
    ord("q"): lambda m: m.put(m.take(1)[0]),  # BINPUT
    ord("r"): lambda m: m.put(m.number(_UINT32)),  # LONG_BINPUT
    ord("h"): lambda m: m.get(m.take(1)[0]),  # BINGET
    ord("j"): lambda m: m.get(m.number(_UINT32)),  # LONG_BINGET
    ord("K"): lambda m: m.stack.append(m.take(1)[0]),  # BININT1
    ord("M"): lambda m: m.stack.append(m.number(_UINT16)),  # BININT2
    ord("J"): lambda m: m.stack.append(m.number(_INT32)),  # BININT
    0x8A: _Machine.integer,  # LONG1
    ord("G"): lambda m: m.stack.append(m.number(_FLOAT64)),  # BINFLOAT
    ord("X"): _Machine.text,  # BINUNICODE
    ord("N"): lambda m: m.stack.append(None),  # NONE
    0x88: lambda m: m.stack.append(True),  # NEWTRUE
    0x89: lambda m: m.stack.append(False),  # NEWFALSE
    ord("("): _Machine.mark,  # MARK
    ord(")"): lambda m: m.push_tuple([]),  # EMPTY_TUPLE
    ord("t"): lambda m: m.push_tuple(m.pop_group()),  # TUPLE
    0x85: lambda m: m.push_tuple(m.pop_many(1)),  # TUPLE1
    0x86: lambda m: m.push_tuple(m.pop_many(2)),  # TUPLE2
    0x87: lambda m: m.push_tuple(m.pop_many(3)),  # TUPLE3
    ord("]"): lambda m: m.stack.append(Container("list")),  # EMPTY_LIST
    ord("a"): lambda m: m.append(m.pop_many(1)),  # APPEND
    ord("e"): lambda m: m.append(m.pop_group()),  # APPENDS
    ord("}"): lambda m: m.stack.append(Container("dict")),  # EMPTY_DICT
    ord("s"): lambda m: m.set_items(m.pop_many(2)),  # SETITEM
    ord("u"): lambda m: m.set_items(m.pop_group()),  # SETITEMS
    ord("c"): _Machine.name,  # GLOBAL
    ord("R"): _Machine.call,  # REDUCE
    ord("b"): _Machine.build,  # BUILD
    ord("Q"): lambda m: m.stack.append(m.rebuild.storage(m.pop())),  # BINPERSID
}
