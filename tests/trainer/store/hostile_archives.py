"""Hostile archives around a sound pickle."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile

from tests.trainer.store.corpus import FOUR, Reduced, hostile, touch
from tests.trainer.store.forge import Entry, entries, listed, pack, program, storage, tensor

TWO = program(listed(tensor(), tensor(storage(key="1"))))
ZIP64 = 0xFFFFFFFF


def good() -> list[Entry]:
    """Return the records of a sound file of two tensors."""
    return entries(TWO, FOUR, FOUR)


def changed(record_name: str, **changes) -> bytes:
    """Return the sound file with one record changed."""
    records = good()
    for record in records:
        if record.name == f"archive/{record_name}".encode():
            for field, value in changes.items():
                setattr(record, field, value)
    return pack(records)


def added(name: bytes, data: bytes = b"x") -> bytes:
    return pack([*good(), Entry(name, data)])


# Names.


@hostile("has a record twice, the second with code", "two records 'data.pkl'")
def duplicate_record(folder):
    return added(b"archive/data.pkl", pickle.dumps(Reduced(os.system, touch(folder)), 2))


@hostile("has a record with the name in capitals", "has a record 'DATA.PKL'")
def capital_record(folder):
    return added(b"archive/DATA.PKL", program(b"N"))


@hostile("goes up with ..", "not under 'archive/'|has a record")
def dotdot(folder):
    return added(b"archive/../../ran")


@hostile("has .. for its root", "no record under a root folder")
def dotdot_root(folder):
    return pack(entries(TWO, FOUR, FOUR, root=b".."))


@hostile("has an absolute name", "not under 'archive/'")
def absolute(folder):
    return added(str(folder / "ran").encode())


@hostile("has a NUL in a name", r"has a record 'version\\x00")
def nul(folder):
    return added(b"archive/version\0.py")


@hostile("has a backslash in a name", "not under 'archive/'")
def backslash(folder):
    return added(b"archive\\data.pkl")


@hostile("has a second root", "not under 'archive/'")
def second_root(folder):
    return added(b"other/data.pkl", program(b"N"))


@hostile("has a record of its own", "has a record 'extra'")
def extra_record(folder):
    return added(b"archive/extra")


@hostile("has a storage that nothing uses", "no tensor has the storage '2'")
def unused_storage(folder):
    return added(b"archive/data/2")


@hostile("has a storage by another spelling", "has a record 'data/00'")
def padded_key(folder):
    return added(b"archive/data/00")


@hostile("lacks a storage", "lacks the record of the storage '1'")
def missing_storage(folder):
    return pack(entries(TWO, FOUR))


@hostile("lacks its pickle", "lacks the record 'data.pkl'")
def missing_pickle(folder):
    return pack(good()[1:])


@hostile("lacks its byte order", "lacks the record 'byteorder'")
def missing_byteorder(folder):
    return pack([record for record in good() if b"byteorder" not in record.name])


@hostile("is for other processors", "its record 'byteorder' has a value")
def big_endian(folder):
    return changed("byteorder", data=b"big")


@hostile(
    "has code for TorchScript", "has a record 'code/__torch__.py'|has a record 'constants.pkl'"
)
def torchscript(folder):
    records = [
        *good(),
        Entry(b"archive/code/__torch__.py", b"x"),
        Entry(b"archive/constants.pkl", b"x"),
    ]
    return pack(records)


# Records.


@hostile("has a compressed record of 64 MiB in 66 kB", "does not end as an archive")
def deflated(folder):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in entries(program(tensor(storage(numel=2**24))), bytes(2**26)):
            archive.writestr(record.name.decode(), record.data)
    return file.getvalue()


@hostile("is compressed, between sound ends", "a record that is compressed")
def deflated_record(folder):
    return changed("data/0", central={"method": 8, "size": 2**30}, local={"method": 8})


@hostile("is encrypted", "is encrypted")
def encrypted(folder):
    return changed("data/0", central={"flags": 0x0809}, local={"flags": 0x0809})


@hostile("gives two storages each other's sizes", "another size at its place|not right after")
def swapped_sizes(folder):
    records = entries(program(listed(tensor(), tensor(storage("1", numel=1)))), FOUR, bytes(4))
    records[4].central, records[5].central = {"size": 4, "packed": 4}, {"size": 16, "packed": 16}
    return pack(records)


@hostile("says that a record has 1 TiB", "a field that torch.save does not write")
def claimed_size(folder):
    extra = struct.pack("<2H2Q", 1, 16, 2**40, 2**40)
    return changed("data/1", central={"size": ZIP64, "packed": ZIP64}, central_extra=extra)


@hostile("has a zip64 field without need", "a field that torch.save does not write")
def needless_zip64(folder):
    return changed("data/1", central_extra=struct.pack("<2H2Q", 1, 16, 16, 16))


@hostile("has two records in one place", "not right after the one before it")
def overlapping(folder):
    place = pack(good()).index(b"archive/data/0") - 30
    return changed("data/1", central={"offset": place})


@hostile("has a record inside of another", "not right after the one before it")
def record_in_a_record(folder):
    inner = pack(entries(program(b"N")))
    records = entries(program(tensor(storage(numel=len(inner) // 4))), inner)
    records[1].central = {"offset": 64}
    return pack(records)


@hostile("has another name at a record's place", "another name at its place")
def two_names(folder):
    return changed("data/0", local_name=b"archive/data/1")


@hostile("has another length at a record's place", "described differently at its place")
def two_lengths(folder):
    return changed("data/0", local={"size": 8, "packed": 8})


@hostile("has another length after a record", "another size at its place")
def two_lengths_after(folder):
    return changed("data/0", descriptor={"size": 8})


@hostile("hides bytes in the padding", "a field that torch.save does not write")
def smuggled(folder):
    return changed("data/0", extra=struct.pack("<2sH", b"FB", 60) + b"code" * 15)


@hostile("hides bytes between the records", "not right after the one before it")
def hidden(folder):
    return changed("data/0", after=b"code")


@hostile("hides a record that is not in its directory", "not right after the one before it")
def unlisted(folder):
    records = good()
    records.insert(4, Entry(b"archive/data/7", b"code", listed=False))
    return pack(records)


@hostile("is not aligned", "not aligned to 64 bytes")
def unaligned(folder):
    return changed("data/0", extra=b"FB\0\0")


@hostile("is aligned to nothing", "its record '.storage_alignment' has a value")
def no_alignment(folder):
    return changed(".storage_alignment", data=b"0")


@hostile("is a folder by its attributes, so that torch reads memory as it finds it", "not one of")
def folder_attribute(folder):
    return changed("data/0", central={"external": 0x10})


@hostile("has a name of 400 bytes", "a name that is too long")
def long_name(folder):
    return changed("data/0", name=b"archive/" + b"0" * 400)


@hostile("has a date", "not one of torch.save")
def dated(folder):
    return changed("data/0", central={"date": 0x5A21})


@hostile("has a date at a record's place", "described differently at its place")
def dated_at_its_place(folder):
    return changed("data/0", local={"date": 0x5A21})


@hostile("is on a second disk", "not one of torch.save")
def second_disk(folder):
    return changed("data/0", central={"disk": 1})


@hostile("has a comment on a record", "not one of torch.save")
def record_comment(folder):
    return changed("data/0", central={"comment_size": 4})


@hostile("says that its last record has 2 GiB", "ends before what it points to")
def claimed_last_size(folder):
    size = {"size": 2**31, "packed": 2**31}
    return changed(".data/serialization_id", central=size)


@hostile("says in 64 bits what has room in 32", "sizes that contradict each other")
def wide_size(folder):
    extra = struct.pack("<2H2Q", 1, 16, 16, 16)
    return changed("data/1", central={"size": ZIP64, "packed": ZIP64}, central_extra=extra)


@hostile("has two sizes in 64 bits", "sizes that contradict each other")
def two_wide_sizes(folder):
    extra = struct.pack("<2H2Q", 1, 16, 2**33, 2**34)
    return changed("data/1", central={"size": ZIP64, "packed": ZIP64}, central_extra=extra)


@hostile("has a directory of 60 kB for nine records", "larger than its records need")
def large_directory(folder):
    return changed("data/0", central_extra=bytes(60_000))


# Ends.


@hostile("has a comment", "does not end as an archive|a comment follows")
def comment(folder):
    return pack(good(), end={"comment_size": 4}, after=b"code")


@hostile("has bytes after its end", "does not end as an archive")
def trailing(folder):
    return pack(good()) + b"\0"


@hostile("has bytes before its beginning", "not right after the one before it")
def leading(folder):
    return pack(good(), before=b"#!/bin/sh\n")


@hostile("has two directories", "bytes between its last record and its directory")
def two_directories(folder):
    other = pack(entries(program(b"N")))
    return pack(good(), between=other)


@hostile("is two archives, one after the other", "does not end as an archive")
def two_archives(folder):
    return pack(entries(program(b"N"))) + pack(good())


@hostile("counts fewer records than it has", "more bytes than records")
def fewer_counted(folder):
    count = len(good()) - 1
    return pack(good(), end={"here": count, "count": count}, end64={"here": count, "count": count})


@hostile("counts more records than it has", "fewer records than it says")
def more_counted(folder):
    count = len(good()) + 1
    return pack(good(), end={"here": count, "count": count}, end64={"here": count, "count": count})


@hostile("counts a different number at either end", "contradict each other")
def counted_twice(folder):
    return pack(good(), end={"count": 1})


@hostile("says that it has 2**40 records", "records; at most 131072|contradict")
def many_records(folder):
    return pack(
        good(),
        end64={"here": 2**40, "count": 2**40},
        end={"here": 2**16 - 1, "count": 2**16 - 1},
    )


@hostile("points beyond its end", "not right before its end")
def far_directory(folder):
    return pack(good(), end64={"offset": 2**63})


@hostile("points to another end", "does not end as an archive")
def far_end(folder):
    return pack(good(), locator={"offset": 0})


@hostile("is cut in the middle", "does not end as an archive")
def truncated(folder):
    raw = pack(good())
    return raw[: len(raw) // 2]


@hostile("is cut by one byte", "does not end as an archive")
def cut_by_one(folder):
    return pack(good())[:-1]


@hostile("has zeros in its directory", "directory|not one of torch.save")
def zeroed(folder):
    raw = bytearray(pack(good()))
    raw[-400:-150] = bytes(250)
    return bytes(raw)
