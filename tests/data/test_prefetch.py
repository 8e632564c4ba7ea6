"""Laws: prefetching changes no batch, no order, no count and no position: it begins earlier."""

import contextlib
import gc
import weakref

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import helios
from helios.data import DataLoaderParams, EpochSource, create_dataloader, mover
from helios.data.prefetch import lane_to, prefetched
from helios.errors import DataError
from tests import zoo
from tests.data.samples import Failing, Noisy, StatefulStream, digest
from tests.trainer import runs

META = torch.device("meta")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")


class Noting:
    """Copies at once, as a stream would later, and notes what was asked of it in which order."""

    def __init__(self, device="cpu"):
        self.device = torch.device(device)
        self.noted = []
        self._is_open = False

    @contextlib.contextmanager
    def sending(self):
        self._is_open = True
        yield
        self._is_open = False

    def copy(self, tensor):
        assert self._is_open
        self.noted.append(f"copy {int(tensor.flatten()[0])}")
        return tensor.to(self.device, copy=True)

    def join(self):
        assert not self._is_open
        self.noted.append("join")

    def keep(self, tensor):
        assert not self._is_open
        assert tensor.device == self.device
        self.noted.append("keep")
        return tensor


def numbered(count, noted=None):
    for number in range(count):
        if noted is not None:
            noted.append(f"fetch {number}")
        yield torch.tensor([number])


@pytest.mark.parametrize("count", range(5))
def test_batches_order_and_count_are_those_of_the_loader(count):
    found = list(prefetched(numbered(count), Noting()))
    assert [batch.item() for batch in found] == list(range(count))


def test_a_copy_begins_before_the_batch_before_it_is_used_and_after_its_own_copy_is_waited_for():
    lane = Noting()
    for batch in prefetched(numbered(3, lane.noted), lane):
        lane.noted.append(f"use {batch.item()}")
    assert lane.noted == [
        *("fetch 0", "copy 0", "join", "keep", "fetch 1", "copy 1", "use 0"),
        *("join", "keep", "fetch 2", "copy 2", "use 1"),
        *("join", "keep", "use 2"),
    ]


def test_batches_of_any_structure_are_moved():
    packed = pack_sequence([torch.zeros(1)])
    batch = {"x": torch.zeros(2), "y": [torch.ones(1), "name"], "packed": packed}
    [found] = prefetched(iter([batch]), Noting("meta"))
    moved = mover("meta")(batch)
    assert (found["x"].device, found["y"][0].device, found["y"][1]) == (META, META, "name")
    assert type(found["packed"]) is PackedSequence
    assert found["packed"].data.device == moved["packed"].data.device == META


def test_what_streams_do_not_know_of_is_moved_when_it_is_its_turn():
    lane = Noting("meta")
    sparse, packed = torch.eye(2).to_sparse(), pack_sequence([torch.zeros(1)])
    [found] = prefetched(iter([[sparse, packed]]), lane)
    assert lane.noted == ["join"]
    assert (found[0].device, found[1].data.device) == (META, META)


def test_an_error_comes_where_its_batch_would_have():
    source = EpochSource(*create_dataloader(Failing(9, at=5), DataLoaderParams(batch_size=2)))
    source.lane = Noting()
    batches, found = source.open(1), []
    with pytest.raises(ValueError, match="no such picture") as caught:
        found.extend(batch.tolist() for batch in batches)
    assert found == [[0, 1], [2, 3]]
    assert any("batch 2 of epoch 1" in note for note in caught.value.__notes__)
    assert list(batches) == []


def test_an_interrupt_is_not_put_off():
    def interrupted():
        yield torch.zeros(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(prefetched(interrupted(), Noting()))


def test_closing_closes_the_loader():
    closed = []

    def batches():
        try:
            yield from numbered(5)
        finally:
            closed.append(True)

    found = prefetched(batches(), Noting())
    next(found)
    found.close()
    assert closed == [True]


def test_no_reference_to_a_batch_that_was_yielded_is_kept():
    found = prefetched(numbered(3), Noting())
    batch = weakref.ref(next(found))
    gc.collect()
    assert batch() is None


def opened(make, lane):
    source = EpochSource(*make())
    source.lane = lane
    return source


def keyed():
    return create_dataloader(Noisy(11), DataLoaderParams(batch_size=2, shuffle=True), seed=7)


def workers():
    params = DataLoaderParams(batch_size=2, shuffle=True, num_workers=2, persistent_workers=False)
    return create_dataloader(Noisy(11), params, seed=7)


def stream():
    return create_dataloader(StatefulStream(11), DataLoaderParams(batch_size=2), seed=7)


@pytest.mark.parametrize("make", [keyed, workers, stream])
def test_the_batches_of_a_source_are_the_same_from_any_position_on(make):
    plain, ahead = opened(make, None), opened(make, Noting())
    for start in range(7):
        if make is stream:  # each begins anew: it says its own position
            plain, ahead = opened(make, None), opened(make, Noting())
        assert digest(ahead.open(1, start)) == digest(plain.open(1, start))
    plain.close()
    ahead.close()


def test_the_state_of_a_stream_is_that_after_what_was_consumed():
    plain, ahead = opened(stream, None), opened(stream, Noting())
    states = [[s.state_after(n) for n, _ in enumerate(s.open(0), 1)] for s in (plain, ahead)]
    assert states[0] == states[1]
    assert len(states[0]) == 6


def test_the_state_of_a_stream_is_kept_for_a_loop_that_looks_two_batches_ahead():
    plain, ahead = opened(stream, None), opened(stream, Noting())
    expected = [plain.state_after(n) for n, _ in enumerate(plain.open(0), 1)]
    batches, held, found = ahead.open(0), [], []
    for consumed in range(1, 7):
        while len(held) < 3 and (batch := next(batches, None)) is not None:
            held.append(batch)
        held.pop(0)
        found.append(ahead.state_after(consumed))
    assert found == expected


def test_opening_again_ends_the_iteration_before():
    source = opened(keyed, Noting())
    before = source.open(0)
    next(before)
    source.open(0)
    with pytest.raises(DataError, match="closed or opened again"):
        list(before)


def test_nothing_is_prefetched_to_the_cpu():
    assert lane_to("cpu") is None


class Rows(StatefulStream):
    """A stream of samples with labels that says its own position."""

    def __iter__(self):
        for sample in super().__iter__():
            yield torch.cat([sample[1:], sample[1:2]]), int(sample[0]) % 2


@pytest.mark.parametrize("train", [zoo.Augmented, lambda: Rows(22)], ids=["indexed", "stream"])
def test_a_fit_with_it_has_the_same_bits_also_where_it_was_stopped(train, tmp_path, monkeypatch):
    def fit(root, *plugins):
        data = helios.data.from_datasets(train=train(), valid=zoo.Augmented(6), batch_size=4)
        made = runs.trainer(
            root, steps=7, accumulation_steps=2, valid_frequency=3, plugins=list(plugins)
        )
        assert made.fit(zoo.Noisy(), data)
        return made.state.global_iteration, helios.digest(made.state)

    expected = fit(None)
    lane = Noting()
    monkeypatch.setattr("helios.data.source.lane_to", lambda device: lane)
    assert fit(None) == expected
    assert "join" in lane.noted
    for stop in (1, 4, 5, 6, 7, 11):
        root = tmp_path / str(stop)
        assert fit(root, runs.Stopper(stop))[0] >= stop
        assert fit(root) == expected


@CUDA
@pytest.mark.parametrize("pin", [False, True])
def test_on_cuda_the_batches_are_those_of_the_host(pin):
    params = DataLoaderParams(batch_size=64, shuffle=True, pin_memory=pin)
    rows = torch.randn(4096, 1024), torch.arange(4096)
    source = EpochSource(*create_dataloader(torch.utils.data.TensorDataset(*rows), params))
    expected = [[part.clone() for part in batch] for batch in source.open(0)]
    source.lane = lane_to("cuda")
    work = torch.randn(2048, 2048, device="cuda")
    sums = []
    for batch in source.open(0):
        work = (work @ work).clamp(-1, 1)  # keeps the device behind the host
        sums.append([part.double().sum() for part in batch])
    for found, batch in zip(sums, expected, strict=True):
        # Read after all memory was used again: a copy that was overwritten too early shows.
        assert [float(s) for s in found] == pytest.approx([float(p.double().sum()) for p in batch])


@CUDA
def test_on_cuda_a_copy_waits_for_no_work_that_is_under_way():
    source = EpochSource([torch.randn(1 << 20) for _ in range(3)])
    source.lane = lane_to("cuda")
    batches = source.open(0)
    next(batches)
    torch.cuda.synchronize()
    torch.cuda._sleep(int(5e8))  # type: ignore[no-untyped-call]
    side = source.lane._stream
    next(batches)  # sends the third while the device sleeps
    side.synchronize()
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()


@CUDA
def test_on_cuda_a_pinned_batch_is_pinned():
    params = DataLoaderParams(batch_size=2, pin_memory=True)
    source = EpochSource(*create_dataloader(torch.zeros(4, 2), params))
    assert all(batch.is_pinned() for batch in source.open(0))
