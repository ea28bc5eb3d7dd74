"""From the end of the leader's function to a coroutine in another process that has the value.

As in ``wake_up`` with one follower, but the follower is a task of an event loop, and a sample
ends when it goes on behind its ``await``. The leader is synchronous. The floors do the same with
a bare datagram socket: in C, from ``send`` to the return of ``epoll_wait`` and ``recv``; from
Python, where its bytes are the value, and ``add_reader`` resumes the coroutine.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from uniflight_mp import AsyncMerger

from . import floors
from .contenders import Ours
from .pair import PAYLOAD, compute, never, pair_delays, work_on
from .report import Row, rows_over
from .stage import Board, alternate, table_name

__all__ = ["OursInLoop", "follow_in_loop", "run"]


class OursInLoop(Ours):
    """Leads as a Merger does, and follows as an AsyncMerger."""

    def __init__(self, table: str) -> None:
        super().__init__(table)
        self.follow = AsyncMerger(table).execute


class _BareDatagram:
    """No single-flight at all: what an event loop can do with one datagram.

    For one leader and one follower, known beforehand. To be made before the fork.
    """

    def __init__(self) -> None:
        self._address = f"\0uniflight-bench-{secrets.token_hex(8)}"
        self._receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._receiver.bind(self._address)
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._listens = False

    def has_followers(self, key: str, count: int) -> bool:
        """Tell nothing: it cannot be asked who waits."""
        return True

    def execute(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        """Send the follower the function's value."""
        value = func(*args)
        self._sender.sendto(value, self._address)
        return value

    async def follow(self, key: str, func: Callable[..., Any]) -> bytes:
        """Return what was sent."""
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        if not self._listens:
            self._listens = True
            loop.add_reader(self._receiver.fileno(), self._receive)
        return await self._future

    def _receive(self) -> None:
        self._future.set_result(self._receiver.recv(PAYLOAD))


async def _follow(connection: Connection, make: Callable[[], Any], board: Board, seat: int) -> None:
    follow = make().follow
    samples = []
    # Nothing else is to run in this loop while it waits for the next round.
    while (number := connection.recv()) is not None:
        board.show(seat, number)
        value = await follow(f"pair:{number}", never)
        samples.append(time.monotonic_ns() - int.from_bytes(value[:8], "little"))
        connection.send(number)
    connection.send(samples)


def follow_in_loop(
    connection: Connection, make: Callable[[], Any], board: Board, seat: int
) -> None:
    """Do as ``pair.follow``, as a task of an event loop."""
    asyncio.run(_follow(connection, make, board, seat))


def _rows(table: str, busy: bool, quick: bool) -> list[Row]:
    what = f"the leader's core {'busy' if busy else 'idle'}"
    bare = _BareDatagram()
    hold = compute if busy else time.sleep
    floor, name = f"floor: datagram -> epoll, C, {what}", f"uniflight-mp: 1 KiB to a task, {what}"
    measures = {
        floor: lambda rounds: floors.measure("datagram", rounds, 1, busy),
        f"floor: datagram + add_reader, from Python, {what}": lambda rounds: pair_delays(
            lambda: bare, rounds, hold, follow_in_loop
        ),
        name: lambda rounds: pair_delays(partial(OursInLoop, table), rounds, hold, follow_in_loop),
    }
    samples = alternate(measures, 100 if quick else 2000, 1 if quick else 10)
    return rows_over(floor, "µs", samples, {name: "<= 30"})


def _rows_of_one_that_works_on(table: str, quick: bool) -> list[Row]:
    bare = _BareDatagram()
    floor = "floor: datagram + add_reader, from Python, the leader works on"
    makes = {
        floor: lambda: bare,
        "uniflight-mp: 1 KiB to a task, the leader works on": partial(OursInLoop, table),
    }
    measures = {
        what: lambda rounds, make=make: pair_delays(
            make, rounds, time.sleep, follow_in_loop, work_on
        )
        for what, make in makes.items()
    }
    return rows_over(
        floor, "µs", alternate(measures, 100 if quick else 1000, 1 if quick else 5), {}
    )


def run(quick: bool) -> list[Row]:
    """Measure."""
    with table_name("wake-async") as table:
        rows = _rows(table, True, quick) + _rows(table, False, quick)
        return rows + _rows_of_one_that_works_on(table, quick)
