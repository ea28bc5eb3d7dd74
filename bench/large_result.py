"""From the end of the leader's function to each of three followers that has a large result.

Four processes want one key; the result is ``bytes``. The function's last act is to write
CLOCK_MONOTONIC where all processes see it, so a sample holds the leader's encoding, its copy to
shared memory and the checksum, and the follower's wake-up, checksum and copy to an object of its
own. The floor is one ``memcpy`` of the payload, between pages in use. The row below it is the same
to fresh pages: each page that a process touches for the first time is an exception that the
kernel has to handle, and a new shared segment and a new object consist of such pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from uniflight_mp import Limits, Merger

from . import floors
from .pair import never
from .report import Row, rows_over
from .stage import Board, Cast, alternate, receive, table_name, until

__all__ = ["run"]

KIB, MIB = 1 << 10, 1 << 20
_SIZES = {
    "4 KiB": 4 * KIB,
    "64 KiB": 64 * KIB,
    "1 MiB": MIB,
    "16 MiB": 16 * MIB,
    "64 MiB": 64 * MIB,
}
_TARGETS = {"1 MiB": "<= 300", "16 MiB": "<= 4,000"}
_LIMITS = Limits(result_bytes=128 * MIB)
_FOLLOWERS = 3
_WARM_UP = 2
_HOLD = 0.001
_FEW = 16 * MIB  # fewer rounds with more than that


def _follow(connection: Connection, table: str, ended: Board) -> None:
    merger = Merger(table, limits=_LIMITS)
    samples = []
    while (number := connection.recv()) is not None:
        value = merger.execute(f"large:{number}", never)
        samples.append(time.monotonic_ns() - ended.numbers[0])
        del value
        connection.send(number)
    connection.send(samples[_WARM_UP:])


def _delays(table: str, size: int, rounds: int) -> list[float]:
    """Return the delays of all followers in nanoseconds."""
    payload, ended = b"\1" * size, Board(1)
    leader = Merger(table, limits=_LIMITS)

    def followers() -> int:
        return sum(flight.followers for flight in leader.flights())

    def function(number: int) -> bytes:
        for connection in connections:
            connection.send(number)
        until(lambda: followers() == _FOLLOWERS)
        time.sleep(_HOLD)
        ended.show(0, time.monotonic_ns())
        return payload

    with Cast() as cast:
        connections = [cast.start(_follow, table, ended)[1] for _ in range(_FOLLOWERS)]
        for number in range(_WARM_UP + rounds):
            leader.execute(f"large:{number}", function, number)
            for connection in connections:
                receive(connection)
        for connection in connections:
            connection.send(None)
        return [delay for connection in connections for delay in receive(connection)]


def _rows(table: str, what: str, quick: bool) -> list[Row]:
    size = _SIZES[what]
    rounds, blocks = (5, 1) if quick else (30, 3) if size > _FEW else (200, 5)
    floor, name = f"floor: memcpy of {what}, C", f"uniflight-mp: {what} to each of {_FOLLOWERS}"
    measures: dict[str, Callable[[int], list[Any]]] = {
        floor: lambda rounds: floors.measure("memcpy", rounds, size, False),
        f"floor: memcpy of {what} to fresh pages, C": lambda rounds: floors.measure(
            "memcpy", rounds, size, True
        ),
        name: partial(_delays, table, size),
    }
    samples = alternate(measures, rounds, blocks)
    return rows_over(floor, "µs", samples, {name: _TARGETS.get(what, "")})


def run(quick: bool) -> list[Row]:
    """Measure."""
    with table_name("large") as table, Merger(table, limits=_LIMITS):
        return [row for what in _SIZES for row in _rows(table, what, quick)]
