"""From the SIGKILL of a leader, 10 ms into its flight, to the start of its successor's function.

The parent of both reads the clock, kills, and reaps the leader at once; unless it is to stay a
zombie until the successor has the flight. A leader has touched 2 MiB or 1 GiB of memory, besides
the interpreter's: the kernel marks the mutexes of the dead before it frees their memory, and
releases their file locks after that. The successor, a thread or a task of an event loop, sleeps
when that happens. The floor is the kernel's own hand-over of a robust mutex under the same
circumstances. The rows of a group take turns, and the first round of every turn does not count.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from . import floors
from .contenders import FlockFile, Ours
from .report import Row, rows_over
from .stage import Board, Cast, alternate, asleep, receive, table_name, until
from .wake_up_async import OursInLoop

__all__ = ["run"]

MIB, GIB = 1 << 20, 1 << 30
_AGE_NS = 10_000_000


def _hang(connection: Connection) -> None:
    connection.send(time.monotonic_ns())
    while True:
        signal.pause()


def _lead(connection: Connection, make: Callable[[], Any], key: str, resident: int) -> None:
    ballast = b"\1" * resident
    make().execute(key, _hang, connection)
    del ballast


def _succeed(connection: Connection, make: Callable[[], Any], board: Board) -> None:
    contender = make()
    while True:
        number = connection.recv()
        board.show(0, number)
        connection.send(contender.execute(f"takeover:{number}", time.monotonic_ns))


async def _succeed_as_task(connection: Connection, make: Callable[[], Any], board: Board) -> None:
    async def now_ns() -> int:
        return time.monotonic_ns()

    contender = make()
    while True:
        number = connection.recv()
        board.show(0, number)
        connection.send(await contender.follow(f"takeover:{number}", now_ns))


def _succeed_in_loop(connection: Connection, make: Callable[[], Any], board: Board) -> None:
    asyncio.run(_succeed_as_task(connection, make, board))


def _kill_at_age(leader: Any, started_ns: int) -> int:
    """Kill a leader when its flight is old enough; return when."""
    time.sleep(max(0, started_ns + _AGE_NS - time.monotonic_ns()) / 1e9)
    killed_ns = time.monotonic_ns()
    os.kill(leader.pid, signal.SIGKILL)
    return killed_ns


def _takeovers(
    make: Callable[[], Any],
    rounds: int,
    reap: bool,
    resident: int,
    succeed: Callable[..., None] = _succeed,
) -> list[float]:
    """Return the successor's delays in nanoseconds."""
    board, watcher, samples = Board(1), make(), []
    board.show(0, -1)
    with Cast() as cast:
        successor, heir = cast.start(succeed, make, board)
        for number in range(rounds + 1):

            def waits(number: int = number) -> bool:
                followed = watcher.has_followers(f"takeover:{number}", 1)
                entered = board.all_show(number) and followed
                return entered and asleep(successor.pid)

            leader, connection = cast.start(_lead, make, f"takeover:{number}", resident)
            started_ns = receive(connection)
            heir.send(number)
            until(waits)
            killed_ns = _kill_at_age(leader, started_ns)
            if reap:
                leader.join()
            samples.append(receive(heir) - killed_ns)
            leader.join()
            connection.close()
    return samples[1:]


def _rows(
    ours: Callable[[], Any],
    loop: Callable[[], Any],
    flock: Callable[[], Any],
    what: str,
    rounds: int,
    *,
    resident: int,
    reap: bool = True,
) -> list[Row]:
    floor, name = f"floor: robust mutex handed over, C, {what}", f"uniflight-mp, {what}"
    in_loop = f"uniflight-mp, a task follows, {what}"
    measures = {
        floor: lambda count: floors.measure("takeover", count, reap, resident),
        name: lambda count: _takeovers(ours, count, reap, resident),
        in_loop: lambda count: _takeovers(loop, count, reap, resident, _succeed_in_loop),
        f"rival: flock + file, {what}": lambda count: _takeovers(flock, count, reap, resident),
    }
    samples = alternate(measures, rounds, max(1, rounds // 50))
    target = "<= 1,000, p99 <= 3,000"
    return rows_over(floor, "µs", samples, {name: target, in_loop: target})


def _memory_available() -> int:
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def run(quick: bool) -> list[Row]:
    """Measure; the leader with 1 GiB only where there is memory for it."""
    rounds = 20 if quick else 300
    with (
        table_name("takeover") as table,
        tempfile.TemporaryDirectory(prefix="uniflight-bench-", dir="/dev/shm") as directory,
    ):
        contenders = partial(Ours, table), partial(OursInLoop, table), partial(FlockFile, directory)
        rows = _rows(*contenders, "leader with 2 MiB", rounds, resident=2 * MIB)
        rows += _rows(*contenders, "leader a zombie", rounds, resident=2 * MIB, reap=False)
        if _memory_available() > 2 * GIB:
            few = 1 if quick else 30
            rows += _rows(*contenders, "leader with 1 GiB", few, resident=GIB)
    return rows
