"""``uniflight-mp demo``: 8 processes want the same 10 keys at once, and a leader is killed.

The parent says when, watches the table (read-only, as ``inspect`` does), kills one leader while
all others wait for it, and judges. What ran is counted without the library: the expensive
function writes a line to a file before it does anything else.

The workers are forked. At that moment this process has one thread, so nothing can be left locked
in them; they are there in milliseconds, where eight new interpreters take a second; and it is
what gunicorn with ``--preload`` does: the Merger was made before the fork.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from ..aio import AsyncMerger
from ..core import Table
from ..errors import show
from ..limits import Limits
from ..merger import Merger
from ..outcome import Outcome, Role
from ..segment import attach_read_only, destroy
from ..shmfile import segment_name
from ..stats import read_flights

__all__ = ["Call", "Execution", "Kill", "Run", "judge", "run", "work", "work_in_loop"]

WORKERS: Final = 8
TASKS: Final = 5  # that want each key, in a worker with an event loop
KEYS: Final = tuple(f"sku:{number}" for number in range(1, 11))
_KILL_FROM: Final = 4  # index of the first key whose leader may be killed
_HEAD_START_NS: Final = 10_000_000  # from the parent's word to the common start
_LOOK_SECONDS: Final = 0.01
_LIMITS: Final = Limits(64, 64, 64)
_GRACE_SECONDS: Final = 10.0  # beyond a few executions: then something hangs

Connection = multiprocessing.connection.Connection
Work = Callable[[Merger, Connection, "Journal", float], None]


# ---- what happened, and whether it should have -------------------------------------------------


@dataclass(frozen=True)
class Execution:
    """The expensive function began; ``token`` is part of what it is going to return."""

    key: str
    pid: int
    token: str
    at_ns: int


@dataclass(frozen=True)
class Call:
    """A worker's call of a key came back, with the value's ``token``, or with ``error``."""

    key: str
    pid: int
    token: str
    role: str
    leader_pid: int
    followers: int
    takeovers: int
    error: str = ""


@dataclass(frozen=True)
class Kill:
    """The leader of ``key`` was sent SIGKILL. ``at_ns``: CLOCK_MONOTONIC, just before."""

    key: str
    pid: int
    at_ns: int


@dataclass
class Run:
    """All that a demo did. ``callers``: how many calls of each key the workers were told to make,
    ``tasks`` each."""

    seconds: float
    tasks: int = 1
    callers: dict[str, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    kill: Kill | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def calls_begun(self) -> int:
        """How often the function would have run without the library."""
        return sum(self.callers.values())

    @property
    def seconds_saved(self) -> float:
        """Seconds of the function's work that nobody had to do."""
        return (self.calls_begun - len(self.executions)) * self.seconds

    @property
    def takeover_seconds(self) -> list[float]:
        """For each takeover: from the kill to the successor's function running."""
        kill = self.kill
        if kill is None:
            return []
        begun = [run for run in self.executions if run.key == kill.key and run.at_ns > kill.at_ns]
        return [(run.at_ns - kill.at_ns) / 1e9 for run in begun]


def judge(run: Run) -> list[str]:
    """Return what is wrong with a run, in sentences; nothing if it kept the promises.

    Each key runs once; the killed leader's key twice: once in the dead, once in its successor.
    Each call comes back with the value of the execution that was finished, but the dead one's.
    """
    wrong = list(run.failures)
    if run.kill is None:
        wrong.append("no leader could be killed while all others waited")
    for key, callers in run.callers.items():
        wrong += _judge_key(run, key, callers)
    strangers = {made.key for made in run.executions} - run.callers.keys()
    wrong += [f"{key} ran, but nobody asked for it" for key in sorted(strangers)]
    return wrong


def _judge_key(run: Run, key: str, callers: int) -> Iterator[str]:
    kill = run.kill if run.kill and run.kill.key == key else None
    executions = sorted((made for made in run.executions if made.key == key), key=lambda e: e.at_ns)
    calls = [call for call in run.calls if call.key == key]
    expected = 2 if kill else 1
    if len(executions) != expected:
        yield f"{key} ran {len(executions)} times instead of {expected}"
    elif kill and [made.pid == kill.pid for made in executions] != [True, False]:
        yield f"{key} did not run in the killed leader first and in another worker then"
    if len(calls) != callers - (run.tasks if kill else 0):
        yield f"{len(calls)} of {callers} calls of {key} came back"
    for call in calls:
        if call.error:
            yield f"pid {call.pid} got an error for {key}: {call.error}"
        elif not executions or call.token != executions[-1].token:
            yield f"pid {call.pid} got a wrong value for {key}"
        elif call.takeovers != (1 if kill else 0):
            yield f"pid {call.pid} was told of {call.takeovers} takeovers of {key}"


# ---- workers -----------------------------------------------------------------------------------


class Journal:
    """Executions, counted without the library: a nameless file that everybody appends to."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        fcntl.fcntl(self._file, fcntl.F_SETFL, os.O_APPEND)

    def begin(self, key: str) -> str:
        """Note that the function begins; return the token of this execution."""
        token = secrets.token_hex(8)
        line = json.dumps([key, os.getpid(), token, time.monotonic_ns()]) + "\n"
        os.write(self._file.fileno(), line.encode())  # one write appends as a whole
        return token

    def read(self) -> list[Execution]:
        """List the executions so far."""
        fd = self._file.fileno()
        lines = os.pread(fd, os.fstat(fd).st_size, 0).splitlines()
        return [Execution(*json.loads(line)) for line in lines]

    def close(self) -> None:
        """Give the file back to the system."""
        self._file.close()


def _expensive(key: str, journal: Journal, seconds: float) -> dict[str, Any]:
    token = journal.begin(key)
    time.sleep(seconds)
    return {"key": key, "token": token}


async def _expensive_in_loop(key: str, journal: Journal, seconds: float) -> dict[str, Any]:
    token = journal.begin(key)
    await asyncio.sleep(seconds)
    return {"key": key, "token": token}


def _came_back(key: str, outcome: Outcome[dict[str, Any]]) -> Call:
    token = outcome.value["token"] if outcome.value["key"] == key else "of another key"
    role, leader_pid = outcome.role.value, outcome.leader_pid
    return Call(key, os.getpid(), token, role, leader_pid, outcome.followers, outcome.takeovers)


def _failed(key: str, error: Exception) -> Call:
    text = f"{type(error).__name__}: {show(error, 300)}"
    return Call(key, os.getpid(), "", "", 0, 0, 0, text)


def work(merger: Merger, link: Connection, journal: Journal, seconds: float) -> None:
    """Call each key when the parent says so, until it says no more."""
    for key, start_ns in _orders(link):
        time.sleep(max(0, start_ns - time.monotonic_ns()) / 1e9)
        try:
            call = _came_back(key, merger.flight(key, _expensive, key, journal, seconds))
        except Exception as error:
            call = _failed(key, error)
        link.send([call])


def work_in_loop(merger: Merger, link: Connection, journal: Journal, seconds: float) -> None:
    """The same in an event loop, from ``TASKS`` tasks at once."""
    in_loop = AsyncMerger(merger.name, limits=_LIMITS)

    async def call(key: str, start_ns: int) -> Call:
        await asyncio.sleep(max(0, start_ns - time.monotonic_ns()) / 1e9)
        try:
            outcome = await in_loop.flight(key, _expensive_in_loop, key, journal, seconds)
            return _came_back(key, outcome)
        except Exception as error:
            return _failed(key, error)

    async def call_from_each_task(key: str, start_ns: int) -> list[Call]:
        return await asyncio.gather(*(call(key, start_ns) for _ in range(TASKS)))

    with contextlib.closing(asyncio.new_event_loop()) as loop, in_loop:
        for key, start_ns in _orders(link):
            link.send(loop.run_until_complete(call_from_each_task(key, start_ns)))


def _orders(link: Connection) -> Iterator[tuple[str, int]]:
    parent = os.getppid()
    while True:
        while not link.poll(1.0):
            if os.getppid() != parent:  # it was killed, and could not tell
                return
        try:
            order = link.recv()
        except EOFError:
            return
        if order is None:
            return
        yield order


def _in_worker(work: Work, merger: Merger, link: Connection, journal: Journal, s: float) -> None:
    for which in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGHUP))
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        work(merger, link, journal, s)


@dataclass
class _Worker:
    pid: int
    link: Connection
    process: multiprocessing.process.BaseProcess


class _Crew:
    """The workers, from fork to the last wait; leaves none behind."""

    def __init__(self, merger: Merger, journal: Journal, seconds: float, work: Work) -> None:
        self.workers: list[_Worker] = []
        self._arguments = (merger, journal, seconds, work)

    def __enter__(self) -> _Crew:
        merger, journal, seconds, work = self._arguments
        context = multiprocessing.get_context("fork")
        try:
            for _ in range(WORKERS):
                here, there = context.Pipe()
                process = context.Process(
                    target=_in_worker, args=(work, merger, there, journal, seconds), daemon=True
                )
                # Ctrl-C reaches the whole group; it is the parent's, which ends the workers.
                with _signals_held():
                    process.start()
                    there.close()
                    self.workers.append(_Worker(process.pid or 0, here, process))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with _signals_held():
            for worker in self.workers:
                worker.link.close()
                worker.process.kill()
            for worker in self.workers:
                worker.process.join()
            self.workers.clear()


_ENDING: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Deliver what would end this process only afterwards; a fork inherits it for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: through every ``finally``."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {which: signal.signal(which, leave) for which in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


# ---- what is seen on the way -------------------------------------------------------------------


@dataclass
class _Progress:
    state: str = ""
    leader_pid: int = 0
    followers: int = 0
    takeovers: int = 0


class _Screen:
    """A table that changes on a terminal; a line for each key where there is none."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows = {key: _Progress() for key in KEYS}
        self.news = ""
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._drawn = 0.0

    def __enter__(self) -> _Screen:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.update(self._picture(), refresh=True)
            self._live.stop()

    def draw(self) -> None:
        """Show the rows, twenty times a second at most."""
        if self._live and time.monotonic() - self._drawn > 0.05:
            self._live.update(self._picture(), refresh=True)
            self._drawn = time.monotonic()

    def tell(self, news: str) -> None:
        """Show a piece of news."""
        self.news = news
        if not self._live:
            self.console.print(Text(news))

    def finish(self, key: str) -> None:
        """Show that a key is done."""
        row = self.rows[key]
        row.state = "done"
        if not self._live:
            led = f"{key}: led by pid {row.leader_pid}, {row.followers} followers"
            led += f", takeovers: {row.takeovers}" if row.takeovers else ""
            self.console.print(Text(led))

    def _picture(self) -> Group:
        grid = Grid("key", "leader", "followers", "state", "takeovers")
        for key, row in self.rows.items():
            if row.state:
                cells = (row.leader_pid, row.followers, row.state, row.takeovers)
                style = {"done": "green", "running": "cyan"}.get(row.state, "bold yellow")
                grid.add_row(key, *map(str, cells), style=style)
            else:
                grid.add_row(key, "", "", "", "", style="dim")
        return Group(grid, Text(self.news))


# ---- the parent --------------------------------------------------------------------------------


class _Director:
    """Gives the word for each key, watches, kills, and writes down what comes back."""

    def __init__(self, run: Run, crew: _Crew, table: Table, screen: _Screen) -> None:
        self.run = run
        self.crew = crew
        self.table = table
        self.screen = screen

    def play(self) -> None:
        for index, key in enumerate(KEYS):
            self._play_key(key, may_kill=index >= _KILL_FROM and self.run.kill is None)
            if self.run.failures:
                return

    def _play_key(self, key: str, may_kill: bool) -> None:
        start_ns = time.monotonic_ns() + _HEAD_START_NS
        called = list(self.crew.workers)
        self.run.callers[key] = len(called) * self.run.tasks
        for worker in called:
            with contextlib.suppress(BrokenPipeError):  # it died: seen when it should answer
                worker.link.send((key, start_ns))
        pending = {worker.link: worker for worker in called}
        deadline = time.monotonic() + 4 * self.run.seconds + _GRACE_SECONDS
        while pending:
            for link in multiprocessing.connection.wait(list(pending), _LOOK_SECONDS):
                self._receive(pending.pop(link), key)  # type: ignore[call-overload]
            self._look(key, may_kill, len(called))
            if time.monotonic() > deadline:
                self.run.failures.append(f"{len(pending)} calls of {key} did not come back in time")
                return
        self.screen.finish(key)

    def _receive(self, worker: _Worker, key: str) -> None:
        try:
            calls: list[Call] = worker.link.recv()
        except (EOFError, ConnectionResetError):
            self.crew.workers.remove(worker)
            worker.link.close()
            worker.process.join()
            if self.run.kill is None or self.run.kill.pid != worker.pid:
                self.run.failures.append(f"worker {worker.pid} died of itself in {key}")
            return
        run, row = self.run, self.screen.rows[key]
        run.calls += calls
        for call in calls:
            if call.role == Role.LEADER.value:
                # A loop counts once, as it does in the table; but the leader's knows its own tasks.
                row.leader_pid, row.followers = call.leader_pid, call.followers - run.tasks + 1
                row.takeovers = call.takeovers

    def _look(self, key: str, may_kill: bool, callers: int) -> None:
        """Read the table, and kill the leader once everybody else waits for it."""
        for flight in read_flights(self.table):
            if flight.key != key or flight.state == "done":
                continue
            row = self.screen.rows[key]
            row.leader_pid, row.followers = flight.leader_pid, flight.followers
            row.takeovers, row.state = flight.takeovers, flight.state
            is_time = flight.followers == callers - 1 and flight.age > self.run.seconds / 4
            if may_kill and self.run.kill is None and is_time:
                self._kill(key, flight.leader_pid)
                row.state = "killed"
        self.screen.draw()

    def _kill(self, key: str, pid: int) -> None:
        if pid not in {worker.pid for worker in self.crew.workers}:
            return  # not a pid of ours to kill, whatever the table says
        self.run.kill = Kill(key, pid, time.monotonic_ns())
        os.kill(pid, signal.SIGKILL)
        self.screen.tell(f"{key}: SIGKILL to its leader, pid {pid}, while all others waited")


def run(console: Console, seconds: float, work: Work = work, tasks: int = 1) -> bool:
    """Run the demo, tell about it, and return whether every promise was kept.

    Args:
        seconds: how long the expensive function takes.
        work: what a worker does: read orders from its link, and send ``Call``s for each.
        tasks: how many calls of each key a worker makes.
    """
    name = f"demo-{os.getpid()}-{secrets.token_hex(4)}"
    console.print(f"{WORKERS} processes want the same {len(KEYS)} keys at the same moment.")
    if tasks > 1:
        console.print(f"Each has an event loop, and {tasks} tasks in it want each key.")
    console.print(f"A key takes {seconds:g} s to make. One leader will be killed on the way.")
    result = Run(seconds, tasks)
    with contextlib.closing(Journal()) as journal:
        try:
            with _ended_in_order(), Merger(name, limits=_LIMITS) as merger:
                _direct(result, merger, journal, console, work)
        finally:
            with _signals_held():
                destroy(segment_name(name), name)
        result.executions = journal.read()
    wrong = judge(result)
    console.print(_summary(result))
    for sentence in wrong:
        console.print(Text(f"WRONG: {sentence}", style="bold red"))
    if not wrong:
        console.print(Text("Every key ran once, and the killed leader's once more.", style="green"))
    return not wrong


def _direct(run: Run, merger: Merger, journal: Journal, console: Console, work: Work) -> None:
    # Not merger.flights(): that sweeps, and the workers shall find the dead leader themselves.
    table = attach_read_only(segment_name(merger.name), merger.name)
    assert table is not None, "the Merger has just made it"
    with _Crew(merger, journal, run.seconds, work) as crew, _Screen(console) as screen:
        _Director(run, crew, table, screen).play()


def _summary(run: Run) -> Grid:
    grid = Grid("", "", show_header=False)
    grid.columns[1].justify = "right"
    without, used = run.calls_begun * run.seconds, len(run.executions) * run.seconds
    takeovers = run.takeover_seconds
    slowest = f"{max(takeovers) * 1e3:.2f} ms" if takeovers else "none seen"
    for what, value in (
        ("calls", str(run.calls_begun)),
        ("executions (a call each without uniflight-mp)", str(len(run.executions))),
        ("takeovers", str(len(takeovers))),
        ("time of the function saved", f"{run.seconds_saved:.1f} s"),
        ("  needed without", f"{without:.1f} s"),
        ("  used", f"{used:.1f} s"),
        ("slowest takeover, SIGKILL to the successor at work", slowest),
    ):
        grid.add_row(what, value)
    return grid
