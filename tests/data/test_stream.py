import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info

from helios.data import DataLoaderParams, EpochSource, create_dataloader
from helios.errors import DataError
from tests.data.samples import NoisyStream, StatefulStream, digest, global_state

SIZE, BATCH, PER_EPOCH = 11, 3, 4


def whole(opened, kind, epoch=0):
    return digest(opened(kind(SIZE), batch_size=BATCH).open(epoch, 0))


def test_the_length_is_not_known(opened):
    assert opened(NoisyStream(SIZE)).batches_per_epoch is None


@pytest.mark.parametrize(("drop_last", "count"), [(False, 4), (True, 3)])
def test_batches_have_the_batch_size(opened, drop_last, count):
    source = opened(NoisyStream(SIZE), batch_size=BATCH, drop_last=drop_last)
    assert [len(batch) for batch in source.open(0, 0)] == [3, 3, 3, 2][:count]


def test_epochs_differ_and_repeat(opened):
    assert whole(opened, NoisyStream) != whole(opened, NoisyStream, epoch=1)
    assert whole(opened, NoisyStream) == whole(opened, NoisyStream)


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_leaves_the_global_generators_alone(opened, workers):
    source = opened(NoisyStream(SIZE), batch_size=BATCH, num_workers=workers)
    before = global_state()
    list(source.open(0, 1))
    assert global_state() == before


@pytest.mark.parametrize("start", range(PER_EPOCH + 1))
def test_a_stream_without_a_state_is_fetched_anew(opened, start):
    stream = NoisyStream(SIZE)
    source = opened(stream, batch_size=BATCH)
    assert digest(source.open(1, start)) == whole(opened, NoisyStream, epoch=1)[start:]
    assert stream.given == SIZE
    if start:
        assert f"fetching {start} batches anew: NoisyStream has no state_dict" in source.resume_note


@pytest.mark.parametrize("start", range(PER_EPOCH))
def test_a_stream_with_a_state_goes_there_by_itself(opened, start):
    expected = whole(opened, StatefulStream, epoch=1)
    first = opened(StatefulStream(SIZE), batch_size=BATCH)
    batches = first.open(1, 0)
    for _ in range(start):
        next(batches)
    state = first.state_after(start)

    stream = StatefulStream(SIZE)
    source = opened(stream, batch_size=BATCH)
    source.load_state(state)
    assert digest(source.open(1, start)) == expected[start:]
    assert stream.given == list(range(start * BATCH, SIZE))
    if start:
        assert source.resume_note == "the position was restored by StatefulStream.load_state_dict"


def test_a_resume_of_a_resume_goes_on(opened):
    expected = whole(opened, StatefulStream)
    first = opened(StatefulStream(SIZE), batch_size=BATCH)
    next(first.open(0, 0))
    second = opened(StatefulStream(SIZE), batch_size=BATCH)
    second.load_state(first.state_after(1))
    batches = second.open(0, 1)
    next(batches)
    third = opened(StatefulStream(SIZE), batch_size=BATCH)
    third.load_state(second.state_after(2))
    assert digest(third.open(0, 2)) == expected[2:]


def test_a_state_is_of_its_batch_when_the_loop_looks_ahead(opened):
    source = opened(StatefulStream(SIZE), batch_size=BATCH)
    batches = source.open(0, 0)
    next(batches)
    next(batches)
    assert source.state_after(1) == {"batches": 1, "dataset": {"at": 3}, "ended": False}


def test_a_state_does_not_change_later(opened):
    class Sharing(StatefulStream):
        def __init__(self, size):
            super().__init__(size)
            self.kept = {}

        def state_dict(self):
            self.kept["at"] = self.at
            return self.kept

    source = opened(Sharing(SIZE), batch_size=BATCH)
    batches = source.open(0, 0)
    next(batches)
    state = source.state_after(1)
    next(batches)
    assert state["dataset"] == {"at": 3}


def test_only_the_last_states_are_kept(opened):
    source = opened(StatefulStream(30), batch_size=BATCH)
    batches = source.open(0, 0)
    for _ in range(8):
        next(batches)
    with pytest.raises(DataError, match=r"received 2; the positions kept are \[5, 6, 7, 8\]"):
        source.state_after(2)


def test_at_an_epochs_end_the_state_is_that_before_the_next(opened):
    source = opened(StatefulStream(SIZE), batch_size=BATCH)
    list(source.open(0, 0))
    assert source.state_after(0) == {"batches": 0, "dataset": {"at": 0}, "ended": True}


@pytest.mark.parametrize("size", [11, 12])
@pytest.mark.parametrize("exhausted", [True, False])
def test_the_end_of_an_epoch_can_be_gone_on_from(opened, size, exhausted):
    first, second, third = (opened(StatefulStream(size), batch_size=BATCH) for _ in range(3))
    batches = first.open(0, 0)
    for _ in range(PER_EPOCH):
        next(batches)
    if exhausted:
        assert next(batches, None) is None
    second.load_state(first.state_after(PER_EPOCH))
    assert list(second.open(0, PER_EPOCH)) == []
    assert digest(second.open(1, 0)) == digest(third.open(1, 0))


def test_a_state_of_another_position_is_refused(opened):
    source = opened(StatefulStream(SIZE), batch_size=BATCH)
    source.load_state({"batches": 2, "dataset": {"at": 6}, "ended": False})
    with pytest.raises(DataError, match="after 2 batches, and the epoch was opened after 1"):
        source.open(0, 1)


def test_a_stream_without_a_state_returns_none(opened):
    source = opened(NoisyStream(SIZE), batch_size=BATCH)
    next(source.open(0, 0))
    assert source.state_after(1) is None


def test_without_the_state_it_is_fetched_anew(opened):
    source = opened(StatefulStream(SIZE), batch_size=BATCH)
    assert digest(source.open(0, 2)) == whole(opened, StatefulStream)[2:]
    assert "no state of the dataset was given" in source.resume_note


def test_with_workers_it_is_fetched_anew(opened):
    source = opened(StatefulStream(SIZE), batch_size=BATCH, num_workers=1)
    source.load_state({"batches": 2, "dataset": {"at": 6}, "ended": False})
    batches = list(source.open(0, 2))
    assert batches[0][0, 0] == 6
    assert source.state_after(4) is None
    assert "with workers, the state of an iterable dataset" in source.resume_note


class Sharded(IterableDataset):
    def __init__(self):
        self.epoch = None

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        worker = get_worker_info()
        for number in range(worker.id, 8, worker.num_workers):
            yield torch.tensor([number, self.epoch, float(torch.rand(()))])


@pytest.mark.parametrize("kept", [True, False])
def test_workers_know_the_epoch(opened, kept):
    source = opened(Sharded(), batch_size=2, num_workers=2, persistent_workers=kept)
    for epoch in (3, 1):
        rows = torch.cat(list(source.open(epoch, 0)))
        assert rows[:, 1].tolist() == [epoch] * 8
        assert sorted(rows[:, 0].tolist()) == list(range(8))
        assert len(set(rows[:, 2].tolist())) == 8


def test_persistent_workers_draw_as_fresh_ones(opened):
    hashes = []
    for kept in (True, False):
        source = opened(Sharded(), batch_size=2, num_workers=2, persistent_workers=kept)
        hashes.append([digest(source.open(epoch, 0)) for epoch in (0, 1)])
    assert hashes[0] == hashes[1]


def test_any_object_that_iterates_is_a_stream(opened):
    class Counting:
        def __iter__(self):
            return iter(range(3))

    source = opened(Counting(), batch_size=2)
    assert [batch.tolist() for batch in source.open(0, 0)] == [[0, 1], [2]]


def test_an_error_names_the_sample(opened):
    def broken():
        yield 1
        raise ValueError("no such line")

    source = opened(broken(), batch_size=4)
    with pytest.raises(ValueError, match="no such line") as caught:
        list(source.open(2, 0))
    assert "sample 1 of epoch 2" in caught.value.__notes__[0]


def test_an_empty_stream_is_an_error(opened):
    source = opened(NoisyStream(2), batch_size=3, drop_last=True)
    with pytest.raises(DataError, match=r"0 batches: an iterable NoisyStream with batch_size=3, d"):
        list(source.open(0, 0))


def test_a_position_beyond_the_end_is_an_error(opened):
    with pytest.raises(DataError, match="after batch 6 of the epoch, which has 4"):
        list(opened(NoisyStream(SIZE), batch_size=BATCH).open(0, 6))


def test_a_loader_of_a_stream_has_no_sampler():
    loader, sampler = create_dataloader(NoisyStream(2), DataLoaderParams())
    assert sampler is None
    assert EpochSource(loader, sampler).batches_per_epoch is None
