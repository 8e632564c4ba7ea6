"""T0: the samples of every micro-batch, and their random numbers, know nothing of the ranks.

Every rank writes down the samples that count in its loss, with their augmented bits. Joined over
the ranks they are those of one rank, for every kind of loader; and so they are for runs that are
stopped and taken up again on 2, 4, 1 and 3 ranks, one after the other.
"""

from __future__ import annotations

import pytest

from tests.exactness import ranks

LOADERS = {
    "indexed": {"samples": 11, "batch": 4},
    "indexed, 2 workers": {"samples": 11, "batch": 4, "workers": 2},
    "indexed, the last batch dropped": {"samples": 14, "batch": 4, "drop_last": True},
    "batches smaller than the ranks": {"samples": 5, "batch": 2},
    "a stream": {"kind": "stream", "samples": 11, "batch": 4},
    "a stream, 2 workers": {"kind": "stream", "samples": 11, "batch": 4, "workers": 2},
    "a stream with a state": {"kind": "resumable", "samples": 11, "batch": 4},
    "the user's own": {"kind": "own", "samples": 11, "batch": 4},
    "the user's own, 2 workers": {"kind": "own", "samples": 11, "batch": 4, "workers": 2},
}
OPTIONS = {"total_steps": 3, "accumulation_steps": 2}
RELAY = [(2, 1), (4, 3), (1, 4), (3, None)]
"""On how many ranks a leg runs, and after which update it is stopped."""


@pytest.fixture(scope="module")
def alone():
    specs = [{"data": data, "options": OPTIONS} for data in LOADERS.values()]
    return dict(zip(LOADERS, ranks.run(specs, 1), strict=True))


@pytest.fixture(scope="module", params=[2, 3, 4])
def several(request):
    specs = [{"data": data, "options": OPTIONS} for data in LOADERS.values()]
    return dict(zip(LOADERS, ranks.run(specs, request.param), strict=True))


@pytest.fixture(scope="module")
def relay(tmp_path_factory):
    """The micro-batches of all legs of a run, for every loader."""
    roots = {name: str(tmp_path_factory.mktemp("relay")) for name in LOADERS}
    joined: dict[str, list] = {name: [] for name in LOADERS}
    for world, stop in RELAY:
        specs = [
            {
                "data": data,
                "options": {**OPTIONS, "chkpt_root": roots[name]},
                "stop": {"stop": stop},
            }
            for name, data in LOADERS.items()
        ]
        for name, legs in zip(LOADERS, ranks.run(specs, world), strict=True):
            ranks.alike(legs)
            joined[name].append(ranks.micro_batches(legs))
    return joined


@pytest.mark.parametrize("loader", LOADERS)
def test_the_samples_of_every_micro_batch_are_those_of_one_rank(loader, alone, several):
    assert ranks.micro_batches(several[loader]) == ranks.micro_batches(alone[loader])


@pytest.mark.parametrize("loader", LOADERS)
def test_every_rank_counts_every_micro_batch_and_ends_with_the_same_bits(loader, several):
    first = ranks.alike(several[loader])
    assert len(first["samples"]) == first["counters"]["global_iteration"]


@pytest.mark.parametrize("loader", LOADERS)
def test_a_run_that_changes_its_ranks_has_the_samples_of_one_that_does_not(loader, alone, relay):
    legs = relay[loader]
    assert all(legs)
    assert [one for leg in legs for one in leg] == ranks.micro_batches(alone[loader])


@pytest.mark.parametrize("total", [1, 2, 4])
def test_a_run_that_is_given_more_updates_goes_on_on_other_ranks(total, tmp_path):
    options = {"train_unit": "iteration", "accumulation_steps": 2, "chkpt_root": str(tmp_path)}
    data = {"samples": 11, "batch": 4}
    [first] = ranks.run([{"data": data, "options": {**options, "total_steps": total}}], 2)
    [then] = ranks.run([{"data": data, "options": {**options, "total_steps": 6}}], 3)
    del options["chkpt_root"]
    [whole] = ranks.run([{"data": data, "options": {**options, "total_steps": 6}}], 1)
    joined = ranks.micro_batches(first) + ranks.micro_batches(then)
    assert joined == ranks.micro_batches(whole)
