"""What waiting costs a process: 1,000 flights waited for in one event loop, then none.

Another process leads the flights. What the kernel has counted for the waiting process is read
from outside, so that "nothing runs" is a zero: the time its threads were on a core, and how often
they went to sleep. A sample is a second. In between its tasks are cancelled; the table stays open.
"""

from __future__ import annotations

import asyncio
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from uniflight_mp import AsyncMerger, Limits

from .report import Row, row
from .stage import Cast, receive, table_name

__all__ = ["run"]

FLIGHTS = 1000
_LIMITS = Limits(flights=4 * FLIGHTS)  # the keys do not spread evenly over the table
_AGE = 3.0  # seconds
_SAMPLE = 1.0


async def _never() -> None:
    await asyncio.Event().wait()


async def _call(connection: Connection, table: str) -> None:
    """Want all keys until told something, then nothing."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_reader(connection.fileno(), told.set)
    with AsyncMerger(table, limits=_LIMITS) as merger:
        calls = [asyncio.create_task(merger.execute(key, _never)) for key in range(FLIGHTS)]
        await asyncio.sleep(0)
        connection.send("calling")
        await told.wait()
        asyncio.get_running_loop().remove_reader(connection.fileno())
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        connection.send("idle")
        await _never()


def _call_in_loop(connection: Connection, table: str) -> None:
    asyncio.run(_call(connection, table))


def _sample(pid: int, samples: int) -> tuple[list[float], list[float]]:
    """Return the percentages of a core, and how often the process went to sleep in a second."""
    shares, sleeps = [], []
    threads = [thread.id for thread in psutil.Process(pid).threads()]
    for _ in range(samples):
        before, started_ns = (_busy_ns(threads), _sleeps(threads)), time.monotonic_ns()
        time.sleep(_SAMPLE)
        took_ns = time.monotonic_ns() - started_ns
        shares.append(100 * (_busy_ns(threads) - before[0]) / took_ns)
        sleeps.append(1e9 * (_sleeps(threads) - before[1]) / took_ns)
    return shares, sleeps


def _busy_ns(threads: list[int]) -> int:
    return sum(int(Path(f"/proc/{thread}/schedstat").read_text().split()[0]) for thread in threads)


def _sleeps(threads: list[int]) -> int:
    return sum(psutil.Process(thread).num_ctx_switches().voluntary for thread in threads)


def _rows(pid: int, what: str, samples: int, targets: tuple[str, str]) -> list[Row]:
    shares, sleeps = _sample(pid, samples)
    return [
        row(f"{what}: share of a core", "%", shares, target=targets[0]),
        row(f"{what}: wake-ups", "1/s", sleeps, target=targets[1]),
    ]


def run(quick: bool) -> list[Row]:
    """Measure."""
    samples = 1 if quick else 5
    with table_name("idle") as table, Cast() as cast:
        _, leading = cast.start(_call_in_loop, table)
        receive(leading)
        follower, following = cast.start(_call_in_loop, table)
        receive(following)
        with AsyncMerger(table, limits=_LIMITS) as merger:
            waited_for = sum(flight.followers for flight in merger.flights())
        time.sleep(_AGE)
        rows = _rows(follower.pid, f"{waited_for:,} flights waited for", samples, ("< 1", ""))
        following.send("stop")
        receive(following)
        time.sleep(_AGE)  # its threads have yet to go to sleep, or to end
        rows += _rows(follower.pid, "nobody waits", samples, ("0", "0"))
    return rows
