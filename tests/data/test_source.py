import pytest
from torch.utils.data import DataLoader, SequentialSampler

from helios.data import EpochSource, ResumableSequentialSampler, create_dataloader, source_of
from helios.errors import DataError
from tests.data.samples import Failing, Noisy, message


def test_batches_per_epoch(opened):
    assert opened(Noisy(7), batch_size=2).batches_per_epoch == 4


def test_no_note_where_the_position_is_an_index(opened):
    source = opened(Noisy(7), batch_size=2)
    source.open(0, 2)
    assert source.resume_note is None


def test_an_empty_loader_says_its_sizes(opened):
    with pytest.raises(DataError, match=r"0 batches: .* 3 samples with batch_size=4, drop_last=Tr"):
        opened(Noisy(3), batch_size=4, drop_last=True)


def test_a_position_beyond_the_end_is_refused(opened):
    with pytest.raises(DataError, match="after batch 5 of the epoch, which has 4"):
        opened(Noisy(7), batch_size=2).open(0, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((-1, 0), ValueError, "epoch: received -1"),
        ((0, -1), ValueError, "start: received -1"),
        ((0, 1.0), TypeError, "start: received 1.0"),
        ((True, 0), TypeError, "epoch: received True"),
    ],
)
def test_positions_are_checked(opened, arguments, error, text):
    with pytest.raises(error, match=text):
        opened(Noisy(7)).open(*arguments)


def test_a_loader_that_cannot_be_iterated_is_refused():
    with pytest.raises(TypeError, match="loader: received 3"):
        EpochSource(3)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_index_batch_and_epoch(opened, workers):
    source = opened(Failing(9, at=7), batch_size=2, num_workers=workers)
    with pytest.raises(ValueError, match="no such picture") as caught:
        list(source.open(1, 0))
    text = message(caught.value)
    assert "dataset[7]" in text
    assert "batch 3 of epoch 1 (both from 0), of the indices [6, 7]" in text


def test_a_source_goes_on_after_an_error(opened):
    source = opened(Failing(9, at=7), batch_size=2, num_workers=1)
    with pytest.raises(ValueError, match="no such picture"):
        list(source.open(0, 0))
    assert next(source.open(0, 0)).tolist() == [0, 1]


def test_a_sampler_shorter_than_its_length_is_an_error(opened):
    class Short(ResumableSequentialSampler):
        def indices(self, epoch, start):
            return range(4)

    with pytest.raises(DataError, match="a length of 4 batches but gave 2"):
        list(opened(Noisy(8), sampler=Short(range(8)), batch_size=2).open(0, 0))


def test_opening_again_ends_the_iteration_before(opened):
    source = opened(Noisy(6), batch_size=2)
    before = source.open(0, 0)
    next(before)
    source.open(0, 0)
    with pytest.raises(DataError, match="closed or opened again"):
        next(before)


@pytest.mark.parametrize("kept", [True, False])
def test_dropping_an_iterator_leaves_the_next_one_alone(opened, kept):
    source = opened(Noisy(8), batch_size=2, num_workers=2, persistent_workers=kept)
    before = source.open(0, 0)
    next(before)
    after = source.open(1, 0)
    next(after)
    del before
    assert len(list(after)) == 3


def test_a_source_without_a_length_ends_with_its_sampler(opened):
    class Unsized:
        def __iter__(self):
            return iter(range(5))

    source = opened(Noisy(5), sampler=Unsized(), batch_size=2)
    assert source.batches_per_epoch is None
    assert len(list(source.open(0, 1))) == 2


def test_source_of_takes_what_a_data_module_returns():
    loader, sampler = create_dataloader(range(4))
    stock = DataLoader(range(4), sampler=SequentialSampler(range(4)))
    assert source_of(None) is None
    for loaders in ((loader, sampler), loader, (stock, stock.sampler), (stock, None), stock):
        assert source_of(loaders).batches_per_epoch == 4


def test_source_of_takes_a_tuple_of_batches():
    assert list(source_of(("first", "second")).open(0, 0)) == ["first", "second"]
