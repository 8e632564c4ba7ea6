"""Hostile pickles in sound archives: what would run code, and what would take all memory."""

from __future__ import annotations

import builtins
import functools
import io
import operator
import os
import pickle
import struct
import subprocess
from typing import Any

import torch

from tests.trainer.store.corpus import FOUR, Reduced, hostile, pickled, saved, touch, written
from tests.trainer.store.forge import (
    NO_HOOKS,
    NONE,
    call,
    entries,
    group,
    listed,
    mapping,
    name,
    number,
    numbers,
    pack,
    storage,
    tensor,
    text,
)

# Code.


@hostile("calls os.system", "names 'posix.system'")
def os_system(folder):
    return pickled({"schema": 1, "carry": Reduced(os.system, touch(folder))})


@hostile("evaluates an expression", "names '__builtin__.eval'")
def builtins_eval(folder):
    return pickled(Reduced(builtins.eval, f"open({str(folder / 'ran')!r}, 'w')"))


@hostile("runs statements", "names '__builtin__.exec'")
def builtins_exec(folder):
    return pickled(Reduced(builtins.exec, f"open({str(folder / 'ran')!r}, 'w')"))


@hostile("reaches os.system through getattr", "names '__builtin__.getattr'")
def getattr_chain(folder):
    module = call(name("__builtin__", "__import__"), text("os"))
    function = call(name("__builtin__", "getattr"), module, text("system"))
    return written(call(function, text(touch(folder))))


@hostile("starts a process", "names 'commands.Popen'")
def popen(folder):
    return pickled(Reduced(subprocess.Popen, ["touch", str(folder / "ran")]))


@hostile("imports a module", "names '__builtin__.__import__'")
def imports(folder):
    return pickled(Reduced(__import__, "antigravity"))


@hostile("unpickles a second, unrestricted pickle", "names 'torch.storage._load_from_bytes'")
def torch_load_from_bytes(folder):
    inner = io.BytesIO()
    torch.save(Reduced(os.system, touch(folder)), inner, _use_new_zipfile_serialization=False)
    return pickled(Reduced(torch.storage._load_from_bytes, inner.getvalue()))


@hostile("loads code from a folder", "names 'torch.hub.load'")
def torch_hub(folder):
    return written(call(name("torch.hub", "load"), text(str(folder)), text("model")))


@hostile("defers a call", "names 'functools.partial'")
def partial(folder):
    return pickled(functools.partial(os.system, touch(folder)))


@hostile("looks up an attribute of its choice", "names 'operator.attrgetter'")
def attrgetter(folder):
    return pickled(operator.attrgetter("system"))


@hostile("imports the module of a codec", "encodes a string as torch.save does not")
def codec(folder):
    return written(call(name("_codecs", "encode"), text("x"), text("rot13")))


@hostile("uses the old opcode of an instance", "instruction 0x69")
def inst_opcode(folder):
    return pack(entries(b"\x80\x02(X\x02\0\0\0idios\nsystem\n."))


@hostile("takes its names from the stack", "does not begin as that of torch.save")
def stack_global(folder):
    return pack(entries(pickle.dumps(Reduced(os.system, touch(folder)), 4)))


@hostile("takes its names from the stack, with the old protocol's number", "instruction 0x93")
def hidden_stack_global(folder):
    return written(text("posix") + text("system") + b"\x93" + group(text(touch(folder))) + b"R")


@hostile("makes an object of a class", "instruction 0x81")
def newobj(folder):
    return written(name("collections", "OrderedDict") + b")\x81")


@hostile("replaces the methods of a dict", "sets attributes that torch.save does not write")
def shadowed_methods(folder):
    return written(NO_HOOKS + mapping(text("items"), NONE) + b"b")


@hostile("calls what is not a function", "calls 'system'")
def call_of_a_string(folder):
    return written(call(text("system"), text(touch(folder))))


@hostile("gives a tensor a class and attributes", "names 'torch._tensor._rebuild_from_type_v2'")
def rebuilt_from_type(folder):
    value = torch.zeros(4)
    value.note = "mine"
    return saved(value)


@hostile("names a class of numpy", "names 'numpy")
def numpy_array(folder):
    return pickled(__import__("numpy").zeros(3))


@hostile("holds a name as a value", "holds the name torch.FloatStorage as a value")
def bare_name(folder):
    return written(listed(name("torch", "FloatStorage")))


# Bombs.


@hostile("has 10**12 elements over one", "not the whole of its storage")
def stride_zero(folder):
    return saved(torch.zeros(1).expand(10**6, 10**6))


@hostile("doubles a list 40 times", "more than 2097152 values")
def doubled_list(folder):
    value: list[Any] = [0]
    for _ in range(40):
        value = [value, value]
    return pickled(value)


@hostile("doubles a tuple 40 times", "more than 2097152 values")
def doubled_tuple(folder):
    value: tuple[Any, ...] = (0,)
    for _ in range(40):
        value = (value, value)
    return pickled(value)


@hostile("nests 100,000 lists", "nested more than 200 deep")
def deep_lists(folder):
    return written(b"]" * 100_000 + b"a" * 99_999)


@hostile("nests 100,000 tuples", "nested more than 200 deep")
def deep_tuples(folder):
    return written(b")" + b"\x85" * 100_000)


@hostile("opens 100,000 groups", "nested more than 200 deep")
def deep_groups(folder):
    return written(b"(" * 100_000 + b"t" * 100_000)


@hostile("puts a list into itself", "into itself")
def cycle(folder):
    value: list[Any] = []
    value.append(value)
    return pickled(value)


@hostile("fills a list after it was counted", "changes a container")
def late_growth(folder):
    return written(b"]q\x00](h\x00h\x00e" + b"h\x00K\x01a" + b"\x86")


@hostile("has five million instructions", "more than 4194304 instructions")
def many_instructions(folder):
    return written(b"](" + b"N" * 5_000_000 + b"e")


@hostile("allocates by the class of a byte array", "names '__builtin__.bytearray'")
def bytearray_of_a_number(folder):
    return written(call(name("__builtin__", "bytearray"), number(10**12)))


@hostile("allocates by the class of a tensor", "names 'torch.FloatTensor'")
def tensor_of_a_number(folder):
    return written(call(name("torch", "FloatTensor"), number(10**12)))


@hostile("makes 100,000 times the bytes of one string", "encodes a string as torch.save does not")
def encoded_again(folder):
    one = name("_codecs", "encode") + b"q\x00" + text("x" * 2**20) + b"q\x01" + text("latin1")
    again = b"h\x00h\x01h\x02\x86R" * 100_000
    return written(b"](" + one + b"q\x02\x86R" + again + b"e")


@hostile("says that a string has 4 GiB", "ends in the middle of a value")
def long_string(folder):
    return written(b"X\xff\xff\xff\xff")


@hostile("says that an integer has 2 GiB", "instruction 0x8b")
def long_integer(folder):
    return written(b"\x8b" + struct.pack("<i", 2**31 - 1))


@hostile("numbers a value 4294967295", "in another order")
def sparse_memo(folder):
    return written(b"]r\xff\xff\xff\xff")


@hostile("has a million keys of one hash", "expected a string or an integer")
def equal_hashes(folder):
    prime = 2**61 - 1
    return written(mapping(*(number(i * prime) + NONE for i in range(1, 1_000_000))))


@hostile("says that a storage has 2**40 elements", "4398046511104 bytes by the pickle and 16")
def claimed_storage(folder):
    return written(tensor(storage(numel=2**40), size=numbers(2**40)), FOUR)


@hostile("has a shape whose product is 0 in 64 bits", "has the shape")
def wrapped_shape(folder):
    return written(tensor(storage(numel=0), size=numbers(2**32, 2**32), stride=numbers(1, 1)), b"")


@hostile("has 100,000 axes", "a tuple for a shape")
def many_axes(folder):
    ones = numbers(*[1] * 100_000)
    return written(tensor(storage(numel=1), size=ones, stride=ones), bytes(4))


@hostile("has a pickle of 64 MiB and a byte", "at most 67108864 are accepted")
def large_pickle(folder):
    return pack(entries(bytes(2**26 + 1)))
