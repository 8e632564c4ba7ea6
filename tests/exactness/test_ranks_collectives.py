"""What several ranks send, counted through the trainer: gradients once a window, else nothing."""

from __future__ import annotations

import itertools

import pytest

import helios
from tests.exactness import ranks
from tests.trainer.ranks import world
from tests.trainer.ranks.test_ddp import Counted, average

WINDOW = 4
UPDATES_TO_A_LOG = 2


class Counting(ranks.Net):
    """Notes what was sent in all by the end of every micro-batch, and where metrics are shown."""

    def __init__(self, counted, **how):
        super().__init__(**how)
        self.counted = counted
        self.noted = []

    def on_training_batch_end(self, state, should_log=False):
        # Metrics are shown after this hook, so the exchange for them counts to what follows.
        sent = list(self.counted.calls)
        self.noted.append(
            [state.window_iter == 0, should_log, sent, self.trainer.ranks.collectives]
        )


def count(model, root, reduction):
    """Fit for 4 windows; return what each micro-batch sent, and the sizes of the buckets."""
    buckets: list[int] = []
    with Counted() as counted:
        net = Counting(counted, **model)
        trainer = helios.Trainer(
            use_cpu=True,
            print_banner=False,
            train_unit="iteration",
            total_steps=4,
            accumulation_steps=WINDOW,
            print_frequency=UPDATES_TO_A_LOG,
            enable_file_logging=True,
            log_path=root,
            reduction=reduction,
            parallel=helios.DDP(comm_hook=average, comm_state=buckets)
            if reduction == "mean"
            else None,
        )
        trainer.train_exceptions.append(Exception)
        trainer.fit(net, ranks.Data(samples=256, batch=16))
    return net.noted, buckets, sum(p.numel() for p in net.parameters())


def sent_by(noted):
    """Return for every micro-batch what was sent since the one before, and the exchanges in it."""
    found = []
    for before, now in itertools.pairwise(noted):
        found.append((before[1], now[0], now[2][len(before[2]) :], now[3] - before[3]))
    return found


@pytest.mark.parametrize(
    ("model", "beside"),
    [({}, []), ({"loss": "weighted"}, ["all_reduce"]), ({"norm": True}, ["broadcast"])],
    ids=["mean", "weighted", "buffers"],
)
@pytest.mark.parametrize("size", [2, 3])
def test_a_window_sends_its_gradients_once_and_nothing_to_agree(model, beside, size, tmp_path):
    outcomes = world.run(count, size, args=(model, str(tmp_path), "mean"))
    for noted, buckets, parameters in world.values(outcomes):
        assert len(noted) == 4 * WINDOW
        for after_a_log, is_update, sent, exchanges in sent_by(noted):
            assert exchanges == (1 if after_a_log else 0)
            expected = ["all_gather"] if after_a_log else []
            if is_update:
                expected += [*beside, "all_reduce"]
            assert sent == expected
        # Of every window one bucket, with the two numbers of the ballot.
        assert buckets == [parameters + 2] * 4


def test_canonical_ranks_exchange_nothing_to_agree_between_two_logs(tmp_path):
    outcomes = world.run(count, 2, args=({}, str(tmp_path), "canonical"))
    for noted, _, _ in world.values(outcomes):
        for after_a_log, _, sent, exchanges in sent_by(noted):
            assert exchanges == (1 if after_a_log else 0)
            assert "all_reduce" not in sent
            assert "broadcast" not in sent
