"""A program that forks workers which call without pause, and kills and stops them at random.

    storm.py '{"table": …, "directory": …, "seed": …, "kills": …, "everybody": false}'

Every process writes its events into a file of its own in ``directory``; see history.py. Half of
the workers use the Merger that was made before the fork, half open the table themselves. Most have
two threads that call; every third has an event loop, with tasks that call and are cancelled now and
then. Where the core has crash points, some workers die or stop at one.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, TypeVar

from crash_worker import EXTRA, Caller, Recorder, Watched, WatchedAsync, die_with_parent

from uniflight_mp import Limits, _shm

WORKERS = 8
TASKS = 4
MANY = 1_000_000
KEYS = ("red", "green", "blue")
FORGOTTEN = "blue"  # the only key that is ever forgotten
PAUSES = (0, 0, 0.002, 0.02)  # seconds between two calls
SIZES = (20, 200, 2_000, EXTRA, 6 * EXTRA)
KILLS_PER_SECOND = 16
LONGEST = 150.0  # seconds; then the storm is over, however few it killed
LIMITS = Limits(flights=64, waiters=64, threads=64)
Kind = TypeVar("Kind", Watched, WatchedAsync)
POINTS: tuple[str, ...] = getattr(_shm, "CRASH_POINTS", ())

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"timeout": 5.0},
    {"timeout": 0.2, "on_timeout": "run"},
    {"timeout": 0.05},
    {"lease": 0.1},
)


def open_merger(kind: type[Kind], table: str) -> Kind:
    return kind(table, limits=LIMITS, max_takeovers=MANY)


# ---- a worker ------------------------------------------------------------------------------


class Function:
    """What is run once: it takes a while, and rarely fails or gives up."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice

    def toss(self) -> float:
        """Return how many seconds to take."""
        fate = self.dice.random()
        if 0.2 < fate < 0.22:
            raise LookupError("on purpose")
        if 0.22 < fate < 0.24:
            raise SystemExit("on purpose")
        return 0.0 if fate < 0.2 else 0.12 if fate > 0.95 else self.dice.uniform(0, 0.02)

    def __call__(self, about: dict[str, Any]) -> None:
        time.sleep(self.toss())


def call_without_pause(caller: Caller, dice: random.Random, over: threading.Event) -> None:
    function = Function(dice)
    while not over.is_set():
        caller.call(dice.choice(KEYS), function, dice.choice(SIZES), **dice.choice(OPTIONS))
        if dice.random() < 0.01:
            caller.forget(FORGOTTEN)
        time.sleep(dice.choice(PAUSES))


def call_in_threads(
    merger: Watched, record: Recorder, dice: random.Random, over: threading.Event
) -> None:
    main, second = (Caller(merger, record, f"{record.life}.{number}") for number in range(2))
    others = random.Random(record.life)
    thread = threading.Thread(target=call_without_pause, args=(second, others, over))
    thread.start()
    call_without_pause(main, dice, over)
    thread.join()


class AsyncFunction(Function):
    """The same for an event loop."""

    async def __call__(self, about: dict[str, Any]) -> None:
        seconds = self.toss()
        if seconds:
            await asyncio.sleep(seconds)


async def await_without_pause(caller: Caller, dice: random.Random, over: threading.Event) -> None:
    function = AsyncFunction(dice)
    while not over.is_set():
        call = asyncio.create_task(
            caller.call_async(
                dice.choice(KEYS), function, dice.choice(SIZES), **dice.choice(OPTIONS)
            )
        )
        if dice.random() < 0.1:
            asyncio.get_running_loop().call_later(dice.uniform(0, 0.02), call.cancel)
        await asyncio.wait([call])
        if dice.random() < 0.01:
            caller.forget(FORGOTTEN)
        await asyncio.sleep(dice.choice(PAUSES))


async def call_in_tasks(
    merger: WatchedAsync, record: Recorder, dice: random.Random, over: threading.Event
) -> None:
    callers = [Caller(merger, record, f"{record.life}.{number}") for number in range(TASKS)]
    await asyncio.gather(*(await_without_pause(caller, dice, over) for caller in callers))


def live(life: str, kind: type[Kind], inherited: Kind | None, config: dict[str, Any]) -> None:
    """Be a worker until SIGTERM, if nothing comes before."""
    die_with_parent()
    dice = random.Random(f"{config['seed']}/{life}")
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    log = os.open(f"{config['directory']}/{life}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    record = Recorder(log, life)
    if POINTS and dice.random() < 0.4:
        record("armed")
        _shm.arm(dice.choice(POINTS), dice.choice(("kill", "kill", "stop")))
    merger = inherited or open_merger(kind, config["table"])
    if isinstance(merger, WatchedAsync):
        asyncio.run(call_in_tasks(merger, record, dice, over))
    else:
        call_in_threads(merger, record, dice, over)
    os._exit(0)


# ---- the storm -----------------------------------------------------------------------------


class Storm:
    """Keeps the workers alive, and kills them."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.dice = random.Random(config["seed"])
        self.mergers = [open_merger(kind, config["table"]) for kind in (Watched, WatchedAsync)]
        self.log = os.open(f"{config['directory']}/storm", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self.numbers = itertools.count()
        self.lives: dict[int, str] = {}
        self.stopped: set[int] = set()
        self.agenda: list[tuple[float, int]] = []  # when to continue whom
        self.killed = 0

    def note(self, what: str, pid: int, **fields: Any) -> None:
        Recorder(self.log, self.lives[pid])(what, **fields)

    def spawn(self) -> None:
        number = next(self.numbers)
        life = f"life{number}"
        merger = self.mergers[number % 3 == 0]
        # The storm may be over before the child could tell what SIGTERM means to it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        pid = os.fork()
        if pid == 0:
            try:
                live(life, type(merger), merger if number % 2 else None, self.config)
            finally:
                os._exit(1)
        self.lives[pid] = life
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def kill(self, pid: int) -> None:
        self.note("kill", pid)
        os.kill(pid, signal.SIGKILL)

    def look(self) -> None:
        """Take note of who died or stopped, and let the stopped go on when it is time."""
        while self.lives:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if not pid:
                break
            if os.WIFSTOPPED(status):
                self.note("stop", pid)
                self.stopped.add(pid)
                moment = time.monotonic() + self.dice.choice((0.01, 0.05, 0.2, 0.5))
                heapq.heappush(self.agenda, (moment, pid))
            else:
                code = os.waitstatus_to_exitcode(status)
                self.note("died", pid, status=code)
                self.killed += code == -signal.SIGKILL
                self.stopped.discard(pid)
                del self.lives[pid]
        while self.agenda and self.agenda[0][0] <= time.monotonic():
            self.go_on(heapq.heappop(self.agenda)[1])

    def go_on(self, pid: int) -> None:
        if pid in self.stopped:
            self.stopped.discard(pid)
            self.note("continue", pid)
            os.kill(pid, signal.SIGCONT)

    def strike(self) -> None:
        fate = self.dice.random()
        pids = list(self.lives)
        if fate < 0.02:
            for pid in pids:
                self.kill(pid)
        elif fate < 0.25:
            os.kill(self.dice.choice(pids), signal.SIGSTOP)
        else:
            self.kill(self.dice.choice(pids))

    def rage(self) -> None:
        """Kill one after the other, here and there all at once; replace the dead."""
        end = time.monotonic() + LONGEST
        while self.killed < self.config["kills"] and time.monotonic() < end:
            while len(self.lives) < WORKERS:
                self.spawn()
            pause = self.dice.expovariate(KILLS_PER_SECOND)
            until = time.monotonic() + min(pause, 0.3)
            while time.monotonic() < until:
                time.sleep(0.002)
                self.look()
            if self.lives:
                self.strike()
            self.look()

    def kill_everybody(self) -> None:
        """Round by round: a few begin, all are killed, the next few find what they left."""
        end = time.monotonic() + LONGEST
        while self.killed < self.config["kills"] and time.monotonic() < end:
            for _ in range(3):
                self.spawn()
            time.sleep(self.dice.uniform(0.002, 0.025))
            self.look()
            for pid in self.lives:
                self.kill(pid)
            while self.lives:
                self.look()
                time.sleep(0.0005)

    def calm_down(self, seconds: float = 20.0) -> int:
        """Let the living end their calls; return how many did not, and killed without a note."""
        for pid in self.lives:
            os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + seconds
        while self.lives and time.monotonic() < end:
            self.look()
            time.sleep(0.005)
        for pid, life in self.lives.items():
            print("hangs:", life, file=sys.stderr)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        return len(self.lives)


def main() -> None:
    config = json.loads(sys.argv[1])
    die_with_parent()
    storm = Storm(config)
    if config["everybody"]:
        storm.kill_everybody()
    else:
        storm.rage()
    sys.exit(storm.calm_down())


def read_histories(directory: Path) -> list[dict[str, Any]]:
    """Collect what all wrote down; a line that a death cut short is no event."""
    events = []
    for file in directory.iterdir():
        for line in file.read_bytes().split(b"\n")[:-1]:
            events.append(json.loads(line))
    return events


if __name__ == "__main__":
    main()
