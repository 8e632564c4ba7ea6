"""Files of other formats, and paths that are no files."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import warnings

import torch

from tests.trainer.store.corpus import Reduced, hostile, path_level, touch
from tests.trainer.store.forge import pack
from tests.trainer.store.hostile_archives import good

# Other formats.


@hostile("is empty", "0 bytes, too few")
def empty(folder):
    return b""


@hostile("is text", "too few")
def plain_text(folder):
    return b"weights"


@hostile("is one large hole", "does not end as an archive")
def zeros(folder):
    return bytes(2**20)


@hostile("is an end without records", "no record under a root folder")
def only_an_end(folder):
    return pack([])


@hostile("is a bare pickle", "too few|does not end as an archive")
def bare_pickle(folder):
    return pickle.dumps(Reduced(os.system, touch(folder)), 4)


@hostile("is of torch's format before 1.6", "does not end as an archive")
def legacy_pickle(folder):
    file = io.BytesIO()
    value = Reduced(os.system, touch(folder))
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue() + bytes(100)


@hostile("is of torch's format before 0.1.10", "does not end as an archive")
def legacy_tar(folder):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        data = pickle.dumps(Reduced(os.system, touch(folder)), 2)
        member = tarfile.TarInfo("pickle")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


@hostile("is a TorchScript program", "has a record|compressed")
def scripted(folder):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


@hostile("is compressed as a whole", "too few|does not end as an archive")
def gzipped(folder):
    return gzip.compress(pack(good()), mtime=0)


# Paths.


@path_level("blocks whoever opens it")
def fifo(folder):
    os.mkfifo(folder / "fifo.pth")
    return folder / "fifo.pth"


@path_level("leads out of the folder")
def symlink(folder):
    (folder / "outside").write_bytes(pack(good()))
    (folder / "symlink.pth").symlink_to(folder / "outside")
    return folder / "symlink.pth"


@path_level("leads to itself")
def loop(folder):
    (folder / "loop.pth").symlink_to(folder / "loop.pth")
    return folder / "loop.pth"


@path_level("leads to a device that never ends")
def device(folder):
    (folder / "device.pth").symlink_to("/dev/zero")
    return folder / "device.pth"


@path_level("is a folder")
def directory(folder):
    (folder / "directory.pth").mkdir()
    return folder / "directory.pth"


@path_level("is a socket")
def socket(folder):
    import socket as sockets

    server = sockets.socket(sockets.AF_UNIX)
    place = os.getcwd()
    try:  # the name of a socket has room for 100 bytes
        os.chdir(folder)
        server.bind("socket.pth")
    finally:
        os.chdir(place)
        server.close()
    return folder / "socket.pth"
