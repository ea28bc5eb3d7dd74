"""What is measured of each contender; a sample is in nanoseconds unless something else is said.

A sample of None stands for a follower that ran the function too, one of infinity for somebody
who got nothing within the time allowed.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from ..pair import compute
from ..stage import FORK, PATIENCE, Board, Cast, asleep, receive, until
from .roster import Contender
from .shells import Shell

__all__ = [
    "Calls",
    "Sample",
    "Walk",
    "runs_of_processes",
    "runs_of_threads",
    "takeovers",
    "wake_ups_here",
    "wake_ups_in_another_process",
    "walks",
]

Make = Callable[[], Shell]
Sample = float | None
CALLERS = 8
_VALUE = bytes(1024)
_WARM_UP = 2
_HOLD = 0.05  # seconds; all callers of a burst have come by then
_SLOW_NS = 1e9
_AGE_NS = 10_000_000


class Calls:
    """Uncontended calls, each for a new key; a ``batches.Timer``."""

    def __init__(self, make: Make) -> None:
        self._shell = make()
        self._numbers = count()

    def timeit(self, number: int) -> float:
        """Return how many seconds so many calls take."""
        keys = [f"call:{next(self._numbers)}" for _ in range(number)]
        return self._shell.each(keys, _give) / 1e9


def _give() -> bytes:
    return _VALUE


def _ran_too() -> None:
    """Be the function of one who was to follow."""


def _follow(connection: Connection, make: Make, board: Board) -> None:
    """Follow one flight after the other; send how late each value was."""
    shell = make()
    for number in count():
        connection.recv()
        board.show(0, number)
        value, returned_ns = shell.timed(f"pair:{number}", _ran_too)
        connection.send(value and returned_ns - int.from_bytes(value[:8], "little"))


def wake_ups_in_another_process(make: Make, rounds: int) -> list[Sample]:
    """Return how late 1 KiB was in the other process.

    As in ``wake_up``: the leader's core is busy for a millisecond after the follower has gone to
    sleep. But the next flight begins when the follower has come back from this one: it may need
    a lock for that which is one for all keys.
    """
    board, leader, samples = Board(1), make(), []
    board.show(0, -1)
    with Cast() as cast:
        follower, connection = cast.start(_follow, make, board)

        def function(number: int) -> bytes:
            connection.send("follow")
            until(lambda: board.all_show(number) and leader.has_followers(f"pair:{number}", 1))
            until(lambda: asleep(follower.pid))
            compute(0.001)
            return time.monotonic_ns().to_bytes(8, "little") + _VALUE[8:]

        for number in range(_WARM_UP + rounds):
            leader.execute(f"pair:{number}", function, number)
            samples.append(receive(connection))
    return samples[_WARM_UP:]


def wake_ups_here(make: Make, rounds: int) -> list[Sample]:
    """Return how late the value was in another thread, or task, of this process."""
    shell, samples = make(), []
    for number in range(_WARM_UP + rounds):
        calls = shell.together(
            f"here:{number}", lambda seat: (time.monotonic_ns(), seat), 0.005, callers=2
        )
        leaders = {leader for (_, leader), _ in calls}
        followers = [call for seat, call in enumerate(calls) if seat not in leaders]
        samples += [returned - ended for (ended, _), returned in followers] or [None]
    return samples[_WARM_UP:]


def runs_of_threads(make: Make, rounds: int) -> list[Sample]:
    """Return how often the function ran for 8 threads, or tasks, that want one key at once."""
    shell, samples = make(), []
    for number in range(_WARM_UP + rounds):
        ran: list[int] = []

        def finish(seat: int, ran: list[int] = ran) -> bytes:
            ran.append(seat)
            return _VALUE

        shell.together(f"burst:{number}", finish, _HOLD, CALLERS)
        samples.append(len(ran))
    return samples[_WARM_UP:]


def _burst(connection: Connection, make: Make, barrier: Any, rounds: int) -> None:
    """Be one of the processes; send for each round whether the function ran here."""
    shell, ran = make(), [0] * rounds

    def function(number: int) -> bytes:
        ran[number] += 1
        time.sleep(_HOLD)
        return _VALUE

    for number in range(rounds):
        barrier.wait(PATIENCE)
        shell.execute(f"burst:{number}", function, number)
    connection.send(ran)


def runs_of_processes(make: Make, rounds: int) -> list[Sample]:
    """Return how often the function ran for 8 processes that want one key at once."""
    barrier, rounds = FORK.Barrier(CALLERS), _WARM_UP + rounds
    with Cast() as cast:
        callers = [cast.start(_burst, make, barrier, rounds)[1] for _ in range(CALLERS)]
        ran = [receive(connection) for connection in callers]
    return [sum(here) for here in zip(*ran, strict=True)][_WARM_UP:]


def _hang(connection: Connection) -> None:
    connection.send(time.monotonic_ns())
    while True:
        signal.pause()


def _lead(connection: Connection, make: Make, key: str) -> None:
    make().execute(key, _hang, connection)


def _succeed(connection: Connection, make: Make, board: Board) -> None:
    shell = make()
    while True:
        number = connection.recv()
        board.show(0, number)
        connection.send(shell.execute(f"takeover:{number}", time.monotonic_ns))


class _Succession:
    """A successor that waits for one leader after the other to be killed."""

    def __init__(self, make: Make, cast: Cast) -> None:
        self._make, self._cast = make, cast
        self._board, self._watcher = Board(1), make()
        self._board.show(0, -1)
        self._successor, self._heir = cast.start(_succeed, make, self._board)

    def takeover(self, number: int, limit: float) -> Sample:
        """Return how long after the kill the next function started."""
        leader, connection = self._cast.start(_lead, self._make, f"takeover:{number}")
        started_ns = receive(connection)
        self._heir.send(number)
        until(lambda: self._waits(number), pause=0.0002)
        if self._heir.poll(max(0, started_ns + _AGE_NS - time.monotonic_ns()) / 1e9):
            self._heir.recv()
            return None
        killed_ns = time.monotonic_ns()
        os.kill(leader.pid, signal.SIGKILL)
        leader.join()
        if not self._heir.poll(limit):
            return math.inf
        return self._heir.recv() - killed_ns

    def _waits(self, number: int) -> bool:
        followed = self._watcher.has_followers(f"takeover:{number}", 1)
        return self._board.all_show(number) and followed and asleep(self._successor.pid)


def takeovers(make: Make, rounds: int, limit: float) -> list[Sample]:
    """Return the delays from a leader's SIGKILL, 10 ms into its flight, to the next function.

    One that takes seconds is not waited for again, nor is one that never comes.
    """
    samples: list[Sample] = []
    with Cast() as cast:
        succession = _Succession(make, cast)
        for number in range(1 + rounds):
            samples.append(succession.takeover(number, limit))
            if (samples[-1] or 0) > _SLOW_NS:
                return samples[-1:]
    return samples[1:]


class Walk(NamedTuple):
    """Two processes have wanted the same keys."""

    calls: float  # returned in a second
    runs: float  # of the function, for 1,000 keys
    overlaps: float  # of 1,000 keys, those whose function ran in both processes at once
    used: int | None  # bytes outside of the callers


def _walk(connection: Connection, make: Make, barrier: Any, keys: int) -> None:
    """Want all keys; send the time in all, and for each that was run here from when to when."""
    shell, spans, numbers = make(), {}, []

    def next_keys() -> Iterator[str]:
        for number in range(keys):
            numbers.append(number)
            yield f"walk:{number}"

    def function() -> bytes:
        started_ns = time.monotonic_ns()
        time.sleep(0.0001)
        spans[numbers[-1]] = started_ns, time.monotonic_ns()
        return _VALUE

    shell.each([f"warm-up:{os.getpid()}:{number}" for number in range(10)], _give)
    barrier.wait(PATIENCE)
    connection.send((shell.each(next_keys(), function), spans))


def walks(contender: Contender, keys: int) -> list[Walk]:
    """Let 2 processes want the same keys in the same order, so that they meet at each."""
    barrier = FORK.Barrier(2)
    with Cast() as cast:
        walkers = [cast.start(_walk, contender.make, barrier, keys)[1] for _ in range(2)]
        took, spans = zip(*map(receive, walkers), strict=True)
    runs = sum(map(len, spans))
    twice = spans[0].keys() & spans[1].keys()
    overlaps = sum(_overlap(spans[0][number], spans[1][number]) for number in twice)
    used = contender.used() if contender.used else None
    return [Walk(2 * keys * 1e9 / max(took), 1000 * runs / keys, 1000 * overlaps / keys, used)]


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])
