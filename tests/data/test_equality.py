"""Laws: batches are a function of (seed, epoch, number); resuming at k drops k batches."""

import pytest
import torch

from helios.data import EpochSource, ResumableDistributedSampler
from tests.data.samples import Noisy, digest, global_state

SIZE, BATCH, EPOCHS = 11, 3, 2
PER_EPOCH = 4

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def run(source, position=0):
    """Return the hashes of all batches from a position in the run on."""
    epoch, start = divmod(position, PER_EPOCH)
    hashes = []
    for number in range(epoch, EPOCHS):
        hashes += digest(source.open(number, start if number == epoch else 0))
    return hashes


@pytest.fixture
def expected(opened):
    return run(opened(Noisy(SIZE), batch_size=BATCH, shuffle=True))


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": workers, "prefetch_factor": ahead, "persistent_workers": kept}
        for workers in (1, 2, 4)
        for ahead in (1, 2)
        for kept in (True, False)
        if workers < 4 or (kept and ahead == 2)
    ]
    + [{"num_workers": 2, "prefetch_factor": 8, "persistent_workers": False}],
    ids=str,
)
def test_batches_do_not_depend_on_the_workers(opened, expected, options):
    assert run(opened(Noisy(SIZE), batch_size=BATCH, shuffle=True, **options)) == expected


def test_batches_do_not_depend_on_how_workers_are_started(opened, expected):
    source = opened(Noisy(SIZE), batch_size=BATCH, shuffle=True, num_workers=1)
    source._feed.loader.multiprocessing_context = "spawn"
    assert run(source) == expected


def test_no_batch_comes_twice(expected):
    assert len(set(expected)) == EPOCHS * PER_EPOCH


@pytest.mark.parametrize("position", range(EPOCHS * PER_EPOCH + 1))
def test_resuming_drops_what_was_consumed(opened, expected, position):
    source = opened(Noisy(SIZE), batch_size=BATCH, shuffle=True)
    assert run(source, position) == expected[position:]


@pytest.mark.parametrize("position", [0, 1, 3, 4, 5, 7])
def test_resuming_with_other_workers_drops_what_was_consumed(opened, expected, position):
    source = opened(Noisy(SIZE), batch_size=BATCH, shuffle=True, num_workers=2)
    assert run(source, position) == expected[position:]


@pytest.mark.parametrize("position", range(PER_EPOCH + 1))
def test_the_end_of_an_epoch_may_be_opened(opened, position):
    source = opened(Noisy(SIZE), batch_size=BATCH, shuffle=True)
    assert len(list(source.open(0, position))) == PER_EPOCH - position


@pytest.mark.parametrize("kept", [True, False])
def test_an_iteration_left_in_the_middle_changes_nothing(opened, expected, kept):
    source = opened(
        Noisy(SIZE), batch_size=BATCH, shuffle=True, num_workers=2, persistent_workers=kept
    )
    next(source.open(1, 2))
    assert run(source) == expected


def test_resuming_fetches_only_what_was_not_consumed(opened):
    dataset, whole = Noisy(SIZE), Noisy(SIZE)
    list(opened(whole, batch_size=BATCH, shuffle=True).open(1, 0))
    list(opened(dataset, batch_size=BATCH, shuffle=True).open(1, 2))
    assert dataset.asked == whole.asked[2 * BATCH :]


def test_epochs_after_a_resumed_one_are_whole(opened):
    source = opened(Noisy(SIZE), batch_size=BATCH, shuffle=True)
    counts = [len(list(source.open(epoch, 3 if epoch == 1 else 0))) for epoch in (1, 2, 3)]
    assert counts == [1, 4, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_leaves_the_global_generators_alone(opened, workers):
    source = opened(Noisy(SIZE), batch_size=BATCH, shuffle=True, num_workers=workers)
    before = global_state()
    run(source, 2)
    assert global_state() == before


def test_what_is_drawn_between_batches_changes_nothing(opened, expected):
    hashes = []
    for epoch in range(EPOCHS):
        for batch in opened(Noisy(SIZE), batch_size=BATCH, shuffle=True).open(epoch, 0):
            torch.rand(3)
            torch.manual_seed(epoch)
            hashes += digest([batch])
    assert hashes == expected


def test_the_global_batches_do_not_depend_on_the_ranks(opened):
    joined = {}
    for world in (1, 2, 4):
        shares = []
        for rank in range(world):
            sampler = ResumableDistributedSampler(range(16), world, rank)
            source = opened(Noisy(16), batch_size=8 // world, sampler=sampler)
            shares.append(list(source.open(3, 0)))
        joined[world] = digest(map(torch.cat, zip(*shares, strict=True)))
    assert joined[1] == joined[2] == joined[4]


def test_the_sampler_alone_tells_the_position(opened, expected):
    source = opened(Noisy(SIZE), batch_size=BATCH, shuffle=True)
    loader, sampler = source._feed.loader, source._feed.plan.sampler
    sampler.set_epoch(1)
    sampler.start_iter = 2
    assert digest(loader) == expected[PER_EPOCH + 2 :]
    assert digest(loader) == expected[PER_EPOCH:]


def test_a_source_reads_the_same_as_its_loader(opened, expected):
    loader = opened(Noisy(SIZE), batch_size=BATCH, shuffle=True)._feed.loader
    assert digest(EpochSource(loader).open(0, 0)) == digest(loader) == expected[:PER_EPOCH]
