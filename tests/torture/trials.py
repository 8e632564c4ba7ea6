"""What the tests call in a `tests.torture.server`: trials of the torture run, a few of each."""

from __future__ import annotations

import itertools
import os
import random
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from helios.trainer.store import Store
from helios.trainer.store.fs import OsFs
from helios.trainer.store.reading import last_valid
from tests.torture.aims import Aim
from tests.torture.board import Board
from tests.torture.campaign import Campaign, Order, Trial
from tests.torture.children import Child
from tests.torture.fits import CONFIGURATIONS, Configuration, fit
from tests.torture.tally import Tally
from tests.torture.watched import Watch
from tests.trainer.store import tiny

_CONFIGURATIONS = 5  # of a call; each must first run without a hit
_SAVES_OF = 10  # kills in one folder
_PATIENCE = 60.0  # seconds after which a child that should have ended has hung


def hit_runs(
    campaign: Campaign,
    runs: int,
    seed: int,
    number: int,
    hits: list[int],
    points: list[str],
    workers: int | None = None,
    at_once: bool = False,
    sabotage: str = "",
) -> dict[str, Any]:
    """Hit runs in configurations drawn at random.

    Args:
        campaign: where.
        runs: how many.
        seed: where everything is drawn from.
        number: the signal.
        hits: how often each is hit, one after the other.
        points: of `tests.torture.aims.POINTS`, and "" for random times.
        workers: those of every configuration, None for any.
        at_once: as in `tests.torture.campaign.Order`.
        sabotage: as there.

    Returns:
        Failures as text, and counts.
    """
    said: list[str] = []
    campaign.tally, campaign.say = Tally(), said.append
    chance = random.Random(seed)
    possible = [c for c in CONFIGURATIONS if workers in (None, c.workers)]
    possible = chance.sample(possible, min(runs, _CONFIGURATIONS))
    chosen = [
        Order(
            configuration=possible[index % len(possible)],
            hits=hits[index % len(hits)],
            seed=chance.getrandbits(48),
            number=number,
            points=tuple(points),
            name=f"{sabotage}{seed}-{number}-{index}",
            at_once=at_once,
            sabotage=sabotage,
        )
        for index in range(runs)
    ]
    campaign.prepare([order.configuration for order in chosen])
    campaign.run(iter(chosen), lambda: False)
    campaign.rest(15.0)
    tally = campaign.tally
    return {
        "said": said,
        "finished": tally.finished,
        "leaked": tally.leaked,
        "hits": tally.signals(number),
        "places": {place: n for (kind, place), n in tally.hits.items() if kind == number},
        "groups": tally.groups,
    }


def save_loop(campaign: Campaign, kills: int, seed: int) -> dict[str, int]:
    """C2: kill a process that saves small states one after the other, again and again.

    Raises:
        AssertionError: if the newest checkpoint is not the last one that was acknowledged or the
            one after it, or has other bytes.
    """
    chance = random.Random(seed)
    saves = 0
    for begin in range(0, kills, _SAVES_OF):
        folder = campaign.root / f"saves-{begin}" / tiny.NAME
        folder.parent.mkdir()
        delays = [chance.uniform(0.0, 5e-3) for _ in range(min(_SAVES_OF, kills - begin))]
        saves += _killed_saves(campaign, folder, delays)
        shutil.rmtree(folder.parent)
    return {"kills": kills, "saves": saves}


def _killed_saves(campaign: Campaign, folder: Path, delays: list[float]) -> int:
    """Kill a process after each of some times in which it saves; return how many saves were."""
    board = Board()
    newest = 0
    for delay in delays:
        board.acknowledged = newest

        def work(notify: int, begin: int = newest) -> int:
            with Store(folder) as store:
                os.write(notify, b"!")
                for step in itertools.count(begin + 1):
                    tiny.save(store, step)
                    board.acknowledged = step
            return 0

        output = folder.parent / "output"
        child = campaign.nursery.start(work, output, Aim("saving", delay=delay))
        assert _ended(campaign, child) == -signal.SIGKILL, output.read_text()
        found = last_valid(OsFs(), folder, tiny.NAME)
        newest = 0 if found is None else tiny.step_of(found[0])
        assert newest in (board.acknowledged, board.acknowledged + 1), (newest, board.acknowledged)
    with Store(folder) as store:  # what a death has left is gone after this
        whole = store.last_valid()
    assert (0 if whole is None else tiny.step_of(whole[0])) == newest
    names = set(os.listdir(folder)) - {".lock"}
    expected = {f"{tiny.stem(s)}{end}" for s in range(1, newest + 1) for end in (".pth", ".json")}
    assert names == expected, names ^ expected
    return newest


def second_interrupt(campaign: Campaign, in_background: bool, write: int) -> dict[str, Any]:
    """S2: interrupt a run whose save hangs, and then once more.

    Args:
        campaign: where.
        in_background: whether the save that hangs is.
        write: which write of the store hangs, from 1.

    Returns:
        The exit status, the seconds that the second signal took, and what is wrong with the run
        that then goes on, as text.
    """
    configuration = Configuration("updates", in_background=in_background)
    campaign.prepare([configuration])
    trial = _trial(campaign, configuration, f"second-{in_background}-{write}")
    never, held = os.pipe()

    def work(notify: int) -> int:
        watch = Watch(trial.board, None, notify)
        reach = watch.reach

        def hang(point: str) -> None:
            reach(point)
            if point == "write" and watch.counts[point] == write:
                os.write(notify, b"!")
                os.read(never, 1)

        watch.reach = hang  # type: ignore[method-assign]
        watch.arrived = lambda: os.write(notify, b"!")
        watch.install()
        return 0 if fit(configuration, trial.folder, 0) else 1

    child = campaign.nursery.start(work, trial.folder / "leg-0.output")
    _await(child)
    os.kill(child.pid, signal.SIGINT)
    _await(child)
    begun = time.monotonic()
    os.kill(child.pid, signal.SIGINT)
    status = _ended(campaign, child)
    seconds = time.monotonic() - begun
    os.close(never)
    os.close(held)
    trial.board.arrived = -1  # the second one does not ask
    return {"status": status, "seconds": seconds, "problems": _go_on(campaign, trial, status)}


def asked_by(campaign: Campaign, number: int, group: bool, variables: dict[str, str]) -> Any:
    """Send a signal in the third step, with environment variables, and go on afterwards."""
    configuration = Configuration("updates of 3", workers=2)
    campaign.prepare([configuration])
    trial = _trial(campaign, configuration, f"asked-{number}-{group}-{len(variables)}")
    aim = Aim("step", 3, None, number, group)

    def work(notify: int) -> int:
        os.environ.update(variables)
        return trial.work(aim)(notify)

    status = _ended(campaign, campaign.nursery.start(work, trial.folder / "leg-0.output", aim))
    saved = trial.board.arrived
    return {"status": status, "arrived": saved, "problems": _go_on(campaign, trial, status)}


def _trial(campaign: Campaign, configuration: Configuration, name: str) -> Trial:
    order = Order(configuration, 0, 0, int(signal.SIGINT), (), name)
    reference = campaign.references[configuration.plan]
    return Trial(order, campaign.root, reference, campaign.shapes[configuration], Board())


def _go_on(campaign: Campaign, trial: Trial, status: int) -> list[str]:
    """Judge what a run has left, let it go on, and judge its end."""
    aim = Aim(number=abs(status) if status < 0 else status - 128)
    if trial.judge(status, aim, sent=True):
        trial.left = 0
        trial.board.begin_leg()
        trial.board.micro_batches = trial.saved
        child = campaign.nursery.start(trial.work(None), trial.folder / "leg-1.output")
        trial.judge(_ended(campaign, child), None, sent=False)
    problems = [problem.text for problem in trial.problems]
    shutil.rmtree(trial.folder)
    return problems


def _await(child: Child) -> None:
    """Wait for a byte of a child."""
    ready, _, _ = select.select([child.notified], [], [], _PATIENCE)
    assert ready, "the child does not come to where it should"
    assert os.read(child.notified, 1), "the child has ended before it came to where it should"


def _ended(campaign: Campaign, child: Child) -> int:
    """Wait for the end of a child, and return its status."""
    begun = time.monotonic()
    while time.monotonic() - begun < _PATIENCE:
        for other, status in campaign.nursery.wait():
            if other is child:
                return status
    child.end()
    raise AssertionError("the child hangs")
