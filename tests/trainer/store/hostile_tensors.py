"""Hostile pickles in sound archives: tensors and values that are not what they say."""

from __future__ import annotations

import os
import pickle
import warnings
from collections import Counter, OrderedDict

import torch

from tests.trainer.store.corpus import FOUR, Reduced, hostile, pickled, saved, touch, written
from tests.trainer.store.forge import (
    FALSE,
    NO_HOOKS,
    NONE,
    TRUE,
    call,
    entries,
    group,
    listed,
    mapping,
    name,
    number,
    numbers,
    pack,
    program,
    storage,
    tensor,
    text,
)

# Tensors.


@hostile("has views that overlap", "not the whole of its storage")
def overlapping_views(folder):
    whole = torch.zeros(8)
    return saved([whole[:6], whole[2:]])


@hostile("overlaps within a tensor", "not the whole of its storage")
def overlapping_rows(folder):
    return saved(torch.zeros(8).as_strided((3, 4), (2, 1)))


@hostile("has more memory than it shows", "not the whole of its storage")
def gap(folder):
    return saved(torch.zeros(1000)[:2])


@hostile("begins inside of its storage", "does not begin where its storage does")
def offset(folder):
    return written(tensor(offset=number(3), size=numbers(1)), FOUR)


@hostile("begins before its storage", "does not begin where its storage does")
def negative_offset(folder):
    return written(tensor(offset=number(-4)), FOUR)


@hostile("walks backwards", "for a shape or strides")
def negative_stride(folder):
    return written(tensor(stride=numbers(-1)), FOUR)


@hostile("has a negative length", "for a shape or strides")
def negative_size(folder):
    return written(tensor(size=numbers(-4)), FOUR)


@hostile("reaches beyond its storage", "not the whole of its storage")
def out_of_bounds(folder):
    return written(tensor(size=numbers(4_000)), FOUR)


@hostile("has a storage of -4 elements", "-16 bytes by the pickle and 16")
def negative_storage(folder):
    return written(tensor(storage(numel=-4)), FOUR)


@hostile("has booleans for lengths", "for a shape or strides")
def boolean_shape(folder):
    return written(tensor(storage(numel=1), size=group(TRUE)), bytes(4))


@hostile("has fewer strides than lengths", "lacks strides")
def missing_stride(folder):
    return written(tensor(size=numbers(2, 2)), FOUR)


@hostile("is quantised", "names 'torch._utils._rebuild_qtensor'")
def quantised(folder):
    return written(tensor(storage(cls="CharStorage"), function="_rebuild_qtensor"), bytes(4))


@hostile("is sparse", "names 'torch._utils._rebuild_sparse_tensor'")
def sparse(folder):
    return saved(torch.eye(3).to_sparse())


@hostile("is compressed by rows, with indices out of bounds", "_rebuild_sparse_tensor'")
def sparse_rows(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them beta once a process
        raw = saved(torch.eye(3).to_sparse_csr())
    return raw.replace(b"\2" + b"\0" * 7, b"\xff" * 8)


@hostile("has no memory at all", "names 'torch._utils._rebuild_meta_tensor_no_storage'")
def meta(folder):
    return saved(torch.zeros(10**6, 10**6, device="meta"))


@hostile("is a wrapper around nothing", "names 'torch._utils._rebuild_wrapper_subclass'")
def wrapper(folder):
    return written(call(name("torch._utils", "_rebuild_wrapper_subclass")))


@hostile("is nested", "names 'torch._utils._rebuild_nested_tensor'")
def nested(folder):
    return written(call(name("torch._utils", "_rebuild_nested_tensor"), tensor()), FOUR)


@hostile("has bits that are yet to be turned", "with arguments that torch.save does not write")
def conjugated(folder):
    return saved(torch.ones(2, dtype=torch.complex64).conj())


@hostile("is a parameter with attributes", "_rebuild_parameter_with_state'")
def parameter_with_state(folder):
    value = torch.nn.Parameter(torch.zeros(4))
    value.note = "mine"
    return saved(value)


@hostile("is a parameter of what is not a tensor", "with arguments that torch.save does not write")
def parameter_of_a_number(folder):
    return written(call(name("torch._utils", "_rebuild_parameter"), number(1), TRUE, NO_HOOKS))


@hostile("has a gradient of integers", "for requires_grad")
def gradient_of_integers(folder):
    return written(tensor(storage(cls="IntStorage"), grad=TRUE), FOUR)


@hostile("has hooks", "a tensor has hooks")
def hooks(folder):
    return written(tensor(hooks=NO_HOOKS + mapping(number(0), NONE)[1:]), FOUR)


@hostile("reads one storage as two dtypes", "has two dtypes")
def two_dtypes(folder):
    return written(listed(tensor(), tensor(storage(cls="IntStorage"))), FOUR)


@hostile("has an unknown class of storages", "names 'torch.QInt8Storage'")
def unknown_storage(folder):
    return written(tensor(storage(cls="QInt8Storage", numel=16)), FOUR)


@hostile("has bytes for a storage of numbers", "for a storage, or another dtype")
def untyped_storage(folder):
    memory = storage(cls="UntypedStorage", module="torch.storage", numel=16)
    return written(tensor(memory, size=numbers(16)), FOUR)


@hostile("has a dtype that torch does not store", "names 'torch.uint3'")
def unknown_dtype(folder):
    memory = storage(cls="UntypedStorage", module="torch.storage", numel=16)
    kind = name("torch", "uint3")
    return written(tensor(memory, more=(kind,), function="_rebuild_tensor_v3"), FOUR)


@hostile("has an integer for a storage", "takes 7 for a storage")
def storage_number(folder):
    return written(number(7) + b"Q")


@hostile("has a persistent name that is no storage", "a 'module' of the name torch.FloatStorage")
def persistent_module(folder):
    memory = storage().replace(b"\x07\0\0\0storage", b"\x06\0\0\0module")
    return written(tensor(memory), FOUR)


@hostile("has an integer for a key", "takes a tuple for a storage")
def key_number(folder):
    memory = group(
        text("storage"), name("torch", "FloatStorage"), number(0), text("cpu"), number(4)
    )
    return written(tensor(memory + b"Q"), FOUR)


@hostile("has a path for a key", "lacks the record of the storage '../version'")
def key_path(folder):
    return written(tensor(storage(key="../version")), FOUR)


@hostile("is on a device without memory", "on the device 'meta'")
def meta_location(folder):
    return written(tensor(storage(location="meta")), FOUR)


@hostile("holds a storage that no tensor has", "as a value|no tensor has")
def bare_storage(folder):
    return written(listed(storage()), FOUR)


# Values.


@hostile("has a key twice", "has the key 'a' twice")
def duplicate_key(folder):
    return written(mapping(text("a"), NONE, text("a"), TRUE))


@hostile("has a float for a key", "has the key 1.5")
def float_key(folder):
    return pickled({1.5: 0})


@hostile("holds a set", "names '__builtin__.set'")
def a_set(folder):
    return pickled({1, 2})


@hostile("holds a counter", "names 'collections.Counter'")
def counter(folder):
    return pickled(Counter("ab"))


@hostile("has a string that is not UTF-8", "not UTF-8")
def broken_string(folder):
    return written(b"X\x02\0\0\0\xff\xff")


@hostile("has terminal escapes in a name", r"names 'posix\.\\x1b\[2Jsystem'")
def terminal_escapes(folder):
    return written(name("posix", "\x1b[2Jsystem"))


# Pickles cut short or changed.


@hostile("has an empty pickle", "ends in the middle of a value")
def empty_pickle(folder):
    return pack(entries(b""))


@hostile("has a pickle without an end", "does not end")
def endless_pickle(folder):
    return pack(entries(b"\x80\x02}"))


@hostile("has a second pickle after the first", "goes on after its end")
def second_pickle(folder):
    return pack(entries(program(b"}") + pickle.dumps(Reduced(os.system, touch(folder)), 2)))


@hostile("leaves a value on the stack", "ends in the middle")
def left_over(folder):
    return written(b"}}")


@hostile("takes what is not there", "takes more values than there are")
def underflow(folder):
    return written(b"a")


@hostile("ends a group that did not begin", "ends a group that did not begin")
def lone_end(folder):
    return written(b"]e")


@hostile("refers to a value that is not there", "refers to a value that it does not have")
def missing_memo(folder):
    return written(b"h\x05")


@hostile("has one bit of its pickle flipped", "instruction 0x")
def flipped_bit(folder):
    raw = saved(OrderedDict(a=torch.zeros(4)))
    return raw.replace(b"q\x00", b"\xf1\x00", 1)


@hostile("requires a gradient by a number", "for requires_grad")
def number_for_a_flag(folder):
    return written(tensor(grad=number(1)), FOUR)


@hostile("calls a tensor with a list of storages", "for a storage, or another dtype")
def list_for_a_storage(folder):
    return written(tensor(listed(FALSE)), FOUR)


@hostile("appends to a number", "fills 1; expected a list")
def filled_number(folder):
    return written(number(1) + NONE + b"a")


@hostile("appends to a dict", "fills a dict; expected a list")
def appended_dict(folder):
    return written(b"}" + NONE + b"a")


@hostile("has a key without a value", "a key without a value")
def lone_key(folder):
    return written(mapping(text("a")))
