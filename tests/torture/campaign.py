"""Runs that are hit again and again in their folder, two at a time, and judged after each hit."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from helios.trainer.store import read_checkpoint
from tests.torture.aims import POINTS, Aim, Shape, draw_aim
from tests.torture.board import LAST_SEQUENCE, Board, Phase
from tests.torture.children import Child, Nursery
from tests.torture.fits import Configuration, fit
from tests.torture.judging import Problem, Reference, after_death, at_the_end, newest, position
from tests.torture.sabotage import SABOTAGES
from tests.torture.tally import Tally
from tests.torture.watched import Watch

AT_ONCE = 2
MOST_LEGS = 60
STUCK_AFTER = 120.0
"""Seconds after which a child counts as hung."""


class Order(msgspec.Struct, frozen=True):
    """One run that is to be hit.

    Args:
        configuration: what runs.
        hits: how often it is to be hit.
        seed: where the hits are drawn from.
        number: the signal.
        points: where to hit, of `tests.torture.aims.POINTS`, and "" for random times.
        name: of its folder.
        at_once: whether every hit at a point comes exactly there, and none some time later.
        sabotage: a key of `tests.torture.sabotage.SABOTAGES`, "" for none.
    """

    configuration: Configuration
    hits: int
    seed: int
    number: int
    points: tuple[str, ...]
    name: str
    at_once: bool = False
    sabotage: str = ""


def orders(
    seed: int, configurations: list[Configuration], signals_every: int = 8
) -> Iterator[Order]:
    """Yield runs without an end; each ``signals_every``-th is asked to stop instead of killed."""
    chance = random.Random(seed)
    number = 0
    while True:
        number += 1
        asked = signals_every > 0 and number % signals_every == 0
        kind = chance.choice([signal.SIGTERM, signal.SIGINT]) if asked else signal.SIGKILL
        yield Order(
            configuration=chance.choice(configurations),
            hits=chance.choice((1, 3, 10)),
            seed=chance.getrandbits(48),
            number=int(kind),
            points=("", *POINTS),
            name=f"run-{number}",
        )


class Trial:
    """One run on its way through its legs."""

    def __init__(
        self, order: Order, root: Path, reference: Reference, shape: Shape, board: Board
    ) -> None:
        self.order = order
        self.folder = root / order.name
        self.folder.mkdir()
        self.reference = reference
        self.shape = shape
        self.board = board
        board.begin_run()
        self.chance = random.Random(order.seed)
        self.left = order.hits
        self.legs = 0
        self.saved = 0
        self.history: list[str] = []
        self.problems: list[Problem] = []

    def work(self, aim: Aim | None) -> Callable[[int], int]:
        """Return what the next leg does."""
        board, order, folder, leg = self.board, self.order, self.folder, self.legs

        def work(notify: int) -> int:
            if order.sabotage:
                SABOTAGES[order.sabotage]()
            Watch(board, aim, notify).install()
            return 0 if fit(order.configuration, folder, leg) else 1

        return work

    def next_aim(self) -> Aim | None:
        """Draw how the next leg is hit, None if it runs to the end."""
        if self.left == 0:
            return None
        order = self.order
        aim = draw_aim(self.chance, self.shape, self.left, order.number, order.points)
        return msgspec.structs.replace(aim, delay=None) if aim.point and order.at_once else aim

    @property
    def acknowledged(self) -> dict[int, str]:
        """The digests of the checkpoints that were acknowledged, by sequence."""
        board = self.board
        known = {n: board.digest(n) for n in range(1, board.acknowledged + 1)}
        return {sequence: digest for sequence, digest in known.items() if digest}

    def judge(self, status: int, aim: Aim | None, *, sent: bool) -> bool:
        """Judge the end of a leg; tell whether the run goes on."""
        board = self.board
        hit = aim is not None and (sent or aim.delay is None) and status != 0
        self.history.append(f"{aim or 'nothing'} -> status {status} in {board.place}")
        self.legs += 1
        problem = self._unexpected(status, aim if hit else None)
        if problem is not None:
            self.problems.append(Problem("status", problem))
            return False
        found, manifest = after_death(
            self.folder, self.acknowledged, self.order.configuration.last, self.reference
        )
        self.problems += found
        saved = -1 if manifest is None else int(manifest.counters["global_iteration"])
        self.saved = max(saved, 0)
        asked = aim is not None and status == 128 + aim.number and board.arrived >= 0
        if asked and not board.arrived <= saved <= board.arrived + 1:
            text = f"asked in micro-batch {board.arrived}, saved {saved}"
            self.problems.append(Problem("late", text))
        if manifest is not None:
            board.acknowledge(manifest.sequence, manifest.sha256)
        if hit:
            self.left -= 1
        if self.problems:
            return False
        if status == 0:
            self.problems += at_the_end(self.folder, self.legs, self.reference)
            return False
        return self.legs < MOST_LEGS and board.acknowledged < LAST_SEQUENCE - 20

    def _unexpected(self, status: int, aim: Aim | None) -> str | None:
        """Say what is wrong about how a process ended."""
        expected = {0}
        if aim is not None:
            # Before its handlers are set, and after they are put back, a signal ends a process.
            expected = {-aim.number, 128 + aim.number}
            if self.board.arrived >= 0:
                expected = {128 + aim.number}
        if status in expected:
            return None
        output = (self.folder / f"leg-{self.legs - 1}.output").read_text()[-4000:]
        return f"status {status}, expected {sorted(expected)}; its output ends:\n{output}"


class Campaign:
    """Works through orders.

    Args:
        root: a folder for the runs; those without a problem are removed.
        tally: what is counted.
        say: prints a line.
    """

    def __init__(self, root: Path, tally: Tally, say: Callable[[str], None]) -> None:
        self.root = root
        self.nursery = Nursery()
        self.tally = tally
        self.say = say
        self.references: dict[str, Reference] = {}
        self.shapes: dict[Configuration, Shape] = {}
        self._boards = [Board() for _ in range(AT_ONCE)]
        self._running: dict[int, tuple[Trial, Child]] = {}

    def prepare(self, configurations: list[Configuration], times: int = 1) -> None:
        """Run every configuration without a hit, and compare those that must be equal.

        Args:
            configurations: those that are to be hit.
            times: how often each runs; the last time tells how long it takes.
        """
        for configuration in sorted(set(configurations) - self.shapes.keys(), key=str):
            plain = Configuration(configuration.plan)
            if configuration.plan not in self.references:
                self.references[configuration.plan] = self._uninterrupted(plain)[0]
            for _ in range(times):
                own, self.shapes[configuration] = self._uninterrupted(configuration)
            reference = self.references[configuration.plan]
            if own.events != reference.events or position(own.last) != position(reference.last):
                raise RuntimeError(f"{configuration}: it is not the run of {plain}")

    def _uninterrupted(self, configuration: Configuration) -> tuple[Reference, Shape]:
        folder = self.root / "reference"
        folder.mkdir()
        board = Board()

        def work(notify: int) -> int:
            watch = Watch(board, None, notify)
            watch.install()
            done = fit(configuration, folder, 0)
            (folder / "counts.json").write_text(json.dumps(watch.counts))
            return 0 if done else 1

        child = self.nursery.start(work, folder / "leg-0.output")
        while not (ended := self.nursery.wait()):
            pass
        seconds = time.monotonic() - child.started
        if ended[0][1] != 0:
            raise RuntimeError(f"{configuration}: {(folder / 'leg-0.output').read_text()}")
        lines = (folder / "leg-0.events").read_text().splitlines()
        contents = {}
        for path in (folder / "chkpt" / "recorded").glob("*.pth"):
            content = read_checkpoint(path)
            contents[position(content)] = content
        last = newest(folder)
        assert last is not None
        shape = Shape(seconds, json.loads((folder / "counts.json").read_text()))
        shutil.rmtree(folder)
        inner = [line for line in lines if not line.startswith(("start ", "end "))]
        return Reference(inner, contents, last[1]), shape

    def run(self, work: Iterator[Order], until: Callable[[], bool]) -> None:
        """Work through orders until there are no more, or time is up; runs begun are ended."""
        waiting: Iterator[Order] | None = work
        while True:
            while waiting is not None and len(self._running) < AT_ONCE:
                order = None if until() else next(waiting, None)
                if order is None:
                    waiting = None
                else:
                    self._begin(order)
            if not self._running:
                return
            for child, status in self.nursery.wait():
                self._on_end(child, status)
            self._end_stuck()
            self.tally.leaked += len(self.nursery.leaked)
            while self.nursery.leaked:
                self.say(f"LEAKED: {self.nursery.leaked.pop()}")

    def _begin(self, order: Order) -> None:
        used = {id(trial.board) for trial, _ in self._running.values()}
        board = next(board for board in self._boards if id(board) not in used)
        configuration = order.configuration
        reference, shape = self.references[configuration.plan], self.shapes[configuration]
        self._leg(Trial(order, self.root, reference, shape, board))
        self.tally.trials += 1

    def _leg(self, trial: Trial) -> None:
        trial.board.begin_leg()
        trial.board.micro_batches = trial.saved  # until the loop has taken it up
        aim = trial.next_aim()
        output = trial.folder / f"leg-{trial.legs}.output"
        child = self.nursery.start(trial.work(aim), output, aim)
        self._running[child.pid] = trial, child

    def _on_end(self, child: Child, status: int) -> None:
        trial, _ = self._running.pop(child.pid)
        self.tally.legs += 1
        if status < 0 or status > 128:
            number = -status if status < 0 else status - 128
            board = trial.board
            place = board.place
            if board.arrived >= 0:
                place = Phase(board.arrived_in).title
            self.tally.hit(number, place, group=child.aim is not None and child.aim.group)
        if trial.judge(status, child.aim, sent=child.sent):
            self._leg(trial)
            return
        self.tally.killed[trial.order.hits - trial.left] += 1
        if trial.problems:
            self._report(trial)
            return
        self.tally.finished += 1
        shutil.rmtree(trial.folder)

    def _report(self, trial: Trial) -> None:
        for problem in trial.problems:
            self.tally.problems[problem.kind] += 1
            self.say(f"FAILURE ({problem.kind}) in {trial.folder}: {problem.text}")
        order = trial.order
        self.say(f"  configuration: {order.configuration}")
        self.say(f"  order: {msgspec.json.encode(order).decode()}")
        for number, line in enumerate(trial.history):
            self.say(f"  leg {number}: {line}")

    def _end_stuck(self) -> None:
        for trial, child in self._running.values():
            if time.monotonic() - child.started > STUCK_AFTER:
                self.say(f"HUNG: {trial.order.name}, {child.aim}, in {trial.board.place}")
                self.tally.problems["hung"] += 1
                child.end()

    def rest(self, seconds: float) -> None:
        """Wait until every orphan is gone, or is a leak."""
        end = time.monotonic() + seconds
        while not self.nursery.idle() and time.monotonic() < end:
            self.nursery.wait(0.2)
        self.tally.leaked += len(self.nursery.leaked)
        for leak in self.nursery.leaked:
            self.say(f"LEAKED: {leak}")
