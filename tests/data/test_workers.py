import os
import signal

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

import helios
from helios.errors import DataError
from tests import zoo
from tests.data.samples import Noisy, digest
from tests.trainer import runs


def workers_of(source):
    return source._feed._iterator._workers


class Stuck(Dataset):
    """Tells the process that fetches its second sample, and then never returns."""

    def __init__(self):
        self.reached = torch.multiprocessing.get_context("fork").Event()

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index == 1:
            self.reached.set()
            while True:
                signal.pause()
        return index


class Dying(Noisy):
    def __getitem__(self, index):
        if index == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_outlive_a_signal_to_the_group(opened, number):
    expected = digest(opened(Noisy(12), batch_size=2).open(0, 0))
    source = opened(Noisy(12), batch_size=2, num_workers=2)
    batches = source.open(0, 0)
    hashes = digest([next(batches)])
    for worker in workers_of(source):
        # As a shell's kill does: from a process that is not the workers' parent.
        os.waitpid(os.posix_spawnp("kill", ["kill", f"-{number}", str(worker.pid)], os.environ), 0)
    assert hashes + digest(batches) == expected


def test_a_stuck_worker_can_be_terminated(opened):
    dataset = Stuck()
    source = opened(dataset, num_workers=1, persistent_workers=False)
    batches = source.open(0, 0)
    next(batches)
    assert dataset.reached.wait(30)
    (worker,) = workers_of(source)
    worker.terminate()
    worker.join(30)
    assert worker.exitcode == 0


@pytest.mark.parametrize("kept", [True, False])
def test_closing_ends_the_workers(opened, kept):
    source = opened(Noisy(12), num_workers=2, persistent_workers=kept)
    batches = source.open(0, 0)
    next(batches)
    workers = list(workers_of(source))
    source.close()
    assert not any(worker.is_alive() for worker in workers)


def test_leaving_an_epoch_ends_workers_that_are_not_kept(opened):
    source = opened(Noisy(12), num_workers=2, persistent_workers=False)
    batches = source.open(0, 0)
    next(batches)
    workers = list(workers_of(source))
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


def test_kept_workers_serve_the_next_epoch(opened):
    source = opened(Noisy(4), num_workers=1)
    list(source.open(0, 0))
    (worker,) = source._feed.loader._iterator._workers
    list(source.open(1, 0))
    assert source._feed.loader._iterator._workers == [worker]


def test_a_closed_source_can_be_opened_again(opened):
    source = opened(Noisy(4), num_workers=1)
    expected = digest(source.open(0, 0))
    source.close()
    assert digest(source.open(0, 0)) == expected


def test_a_killed_worker_is_an_error_that_names_the_batch(opened):
    source = opened(Dying(6), batch_size=2, num_workers=1)
    with pytest.raises(DataError, match=r"worker 0 was ended by SIGKILL while batch . of epoch 0"):
        list(source.open(0, 0))


def test_a_worker_that_dies_while_no_batch_is_awaited_is_reported_when_one_is(opened):
    source = opened(Noisy(40), batch_size=2, num_workers=1, prefetch_factor=2)
    batches = source.open(0, 0)
    next(batches)
    (worker,) = workers_of(source)
    worker.kill()
    worker.join(30)
    with pytest.raises(DataError, match=r"worker 0 was ended by SIGKILL while batch . of epoch 0"):
        list(batches)


def test_torch_s_handler_is_put_back_once_the_workers_are_ended(opened):
    source = opened(Noisy(4), num_workers=1)
    list(source.open(0, 0))
    source.close()
    before = signal.getsignal(signal.SIGCHLD)
    list(source.open(0, 0))
    assert signal.getsignal(signal.SIGCHLD) != before
    source.close()
    assert signal.getsignal(signal.SIGCHLD) == before


def test_the_end_of_another_child_is_passed_on_to_the_user_s_own_handler(opened):
    ended = []
    before = signal.signal(signal.SIGCHLD, lambda number, frame: ended.append(number))
    try:
        source = opened(Noisy(4), num_workers=1)
        next(source.open(0, 0))
        ended.clear()
        os.waitpid(os.posix_spawnp("true", ["true"], os.environ), 0)
        assert ended == [signal.SIGCHLD]
        source.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


class Named(Dataset):
    """Samples that say which process has fetched them."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return torch.ones(3), torch.ones(1), os.getpid()


class Asking(zoo.Line):
    """Notes the processes that each training epoch and each validation got its samples from."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_training_epoch_start(self, current_epoch):
        self.seen.append(set())

    def loss(self, batch):
        x, y, processes = batch
        self.seen[-1].update(processes.tolist())
        return super().loss((x, y))

    def on_validation_start(self, validation_cycle):
        self.seen.append(set())


class Rows(IterableDataset):
    def __iter__(self):
        return map(Named(8).__getitem__, range(8))


@pytest.mark.parametrize("make", [lambda: Named(8), Rows], ids=["indexed", "stream"])
def test_a_fit_starts_its_workers_once(make):
    data = helios.data.from_datasets(train=make(), valid=make(), batch_size=2, num_workers=2)
    model = Asking()
    assert runs.trainer(unit="epoch", steps=3, valid_frequency=1).fit(model, data)
    training, validation = set.union(*model.seen[::2]), set.union(*model.seen[1::2])
    assert model.seen == [training, validation] * 3
    assert (len(training), len(validation), len(training | validation)) == (2, 2, 4)
    assert os.getpid() not in training | validation
