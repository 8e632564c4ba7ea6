"""C7: one writer to a folder, and who it is."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from pathlib import Path

import msgspec
import pytest

from helios.errors import CheckpointError, RunLockedError
from helios.trainer.store import Store
from helios.trainer.store.lock import Holder
from tests.trainer.store import campaigns
from tests.trainer.store.contests import Gate, Wire, fork
from tests.trainer.store.tiny import NAME, save, stem

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / NAME


def test_of_two_writers_released_at_once_one_has_it_and_the_other_is_told_who():
    assert campaigns.lock_contest(rounds=50).outcomes == {"one has it": 50}


def held_by_a_child(folder, *, with_worker=False):
    """Return a process that holds a lock and may have a forked child, and what ends that child."""
    gate, wire = Gate(), Wire()

    def worker():
        wire.send("working")
        gate.wait()
        wire.send("worker")  # fails unless the pipe still has a reader: it has

    def hold():
        with Store(folder):
            if with_worker:
                fork(worker)
            else:
                wire.send("working")
            gate.wait()

    pid = fork(hold)
    assert wire.receive(1) == ["working"]
    return pid, gate


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("with_worker", [False, True], ids=["alone", "with a worker"])
def test_the_lock_of_a_killed_process_is_free_at_once(folder, with_worker):
    for _ in range(5):
        pid, gate = held_by_a_child(folder, with_worker=with_worker)
        with pytest.raises(RunLockedError, match=f"process {pid} on {socket.gethostname()}"):
            Store(folder)
        kill(pid)
        Store(folder).close()
        gate.open()


def test_who_is_refused_has_changed_nothing(folder):
    with Store(folder) as store:
        save(store, 1)
        (folder / f".{stem(2)}.pth.tmp").touch()  # as if the holder was writing it
        before = sorted(os.listdir(folder)), (folder / ".lock").read_bytes()
        with pytest.raises(RunLockedError):
            Store(folder)
        assert (sorted(os.listdir(folder)), (folder / ".lock").read_bytes()) == before


def test_two_stores_in_one_process_are_two_writers(folder):
    with Store(folder), pytest.raises(RunLockedError, match=f"process {os.getpid()} on"):
        Store(folder)


def test_a_store_that_is_closed_gives_the_lock_back(folder):
    for _ in range(3):
        Store(folder).close()


def test_a_store_that_cannot_be_opened_gives_the_lock_back(folder):
    Store(folder).close()
    (folder / f".{stem(1)}.pth.tmp").mkdir()  # recovery cannot remove it
    with pytest.raises(CheckpointError, match="cannot write into"):
        Store(folder)
    (folder / f".{stem(1)}.pth.tmp").rmdir()
    Store(folder).close()


def test_stores_of_two_folders_do_not_disturb_each_other(tmp_path):
    with Store(tmp_path / "a"), Store(tmp_path / "b"):
        pass


def test_a_forked_child_does_not_keep_the_lock(folder):
    store, gate = Store(folder), Gate()
    child = fork(gate.wait)
    store.close()
    Store(folder).close()
    gate.open()
    os.waitpid(child, 0)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff" * 64, b'{"pid":"x"}', b"1" * 10_000])
def test_a_holder_whose_name_cannot_be_read_is_another_process(folder, text, monkeypatch):
    monkeypatch.setattr("helios.trainer.store.lock._PAUSE", 0.0)
    with Store(folder):
        (folder / ".lock").write_bytes(text)
        with pytest.raises(RunLockedError, match="another process is writing"):
            Store(folder)


@pytest.mark.parametrize("pid", [-1, 0, 1 << 70])
def test_a_holder_with_a_number_that_no_process_has_is_named_all_the_same(folder, pid):
    with Store(folder):
        text = f'{{"pid":{pid},"host":"{socket.gethostname()}","since":"now"}}'
        (folder / ".lock").write_text(text)
        with pytest.raises(RunLockedError, match=f"process {pid} on"):
            Store(folder)


def test_a_holder_on_another_machine_is_named(folder):
    with Store(folder):
        (folder / ".lock").write_text('{"pid":5,"host":"elsewhere","since":"noon"}')
        with pytest.raises(RunLockedError, match=r"process 5 on elsewhere \(since noon\)"):
            Store(folder)


def test_the_lock_names_its_holder(folder):
    with Store(folder):
        holder = msgspec.json.decode((folder / ".lock").read_bytes(), type=Holder)
    assert (holder.pid, holder.host) == (os.getpid(), socket.gethostname())


def test_a_link_in_the_place_of_the_lock_is_refused_and_not_written_through(folder, tmp_path):
    folder.mkdir()
    target = tmp_path / "target"
    target.write_text("mine")
    (folder / ".lock").symlink_to(target)
    with pytest.raises(CheckpointError, match="cannot write into"):
        Store(folder)
    assert target.read_text() == "mine"


def test_a_fifo_in_the_place_of_the_lock_is_refused(folder):
    folder.mkdir()
    os.mkfifo(folder / ".lock")
    with pytest.raises(CheckpointError, match="not a regular file"):
        Store(folder)


def test_a_folder_in_the_place_of_the_lock_is_refused(folder):
    (folder / ".lock").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot write into"):
        Store(folder)


def test_a_link_in_the_place_of_the_folder_is_refused(folder, tmp_path):
    (tmp_path / "real").mkdir()
    folder.symlink_to(tmp_path / "real")
    with pytest.raises(CheckpointError, match="it is a link or a file"):
        Store(folder)
    assert os.listdir(tmp_path / "real") == []


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["file", "fifo"])
def test_a_file_in_the_place_of_the_folder_is_refused(folder, make):
    make(folder)
    with pytest.raises(CheckpointError, match="it is a link or a file"):
        Store(folder)


@pytest.mark.parametrize("kind", ["pth", "json"])
def test_a_link_or_a_fifo_in_the_place_of_a_checkpoint_is_not_opened(folder, kind, tmp_path):
    with Store(folder) as store:
        save(store, 1)
        path = folder / f"{stem(1)}.{kind}"
        real = path.rename(tmp_path / "real")
        for make in (lambda: path.symlink_to(real), lambda: os.mkfifo(path)):
            make()
            with (
                pytest.warns(UserWarning, match="passed over"),
                pytest.raises(CheckpointError, match="none of the 1"),
            ):
                store.last_valid()
            path.unlink()


@as_root
def test_the_folder_of_another_user_is_refused():
    nobody = 65534
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o777)
        folder = Path(root) / NAME
        folder.mkdir()
        folder.chmod(0o777)
        wire = Wire()

        def want():
            os.setuid(nobody)
            try:
                Store(folder).close()
                wire.send("opened")
            except CheckpointError as error:
                wire.send(str(error))

        child = fork(want)
        (told,) = wire.receive(1)
        os.waitpid(child, 0)
        assert "belongs to user 0, who could put anything there" in told
        assert os.listdir(folder) == []
