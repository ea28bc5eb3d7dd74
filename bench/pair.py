"""One leader, one follower, in two processes: what the follower does meanwhile is up to the caller.

A leader's function lets the follower fall asleep, holds on for a millisecond, and reads
CLOCK_MONOTONIC as its last act; the value begins with the reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from .stage import Board, Cast, asleep, receive, until

__all__ = ["PAYLOAD", "compute", "follow", "never", "pair_delays"]

PAYLOAD = 1024
_WARM_UP = 5
_HOLD = 0.001

Make = Callable[[], Any]


def never() -> bytes:
    """Be a follower's function."""
    raise AssertionError("the follower was to follow")


def follow(connection: Connection, make: Make, board: Board) -> None:
    """Follow one flight after the other; send how late each value was."""
    contender = make()
    samples = []
    while (number := connection.recv()) is not None:
        board.show(0, number)
        value = contender.follow(f"pair:{number}", never)
        samples.append(time.monotonic_ns() - int.from_bytes(value[:8], "little"))
    connection.send(samples)


def compute(seconds: float) -> None:
    """Hold on as ``time.sleep`` does, busily."""
    deadline = time.monotonic() + seconds
    until(lambda: time.monotonic() > deadline)


def _function(
    number: int,
    connection: Connection,
    sleeps: Callable[[], bool],
    hold: Callable[[float], None],
) -> bytes:
    connection.send(number)
    until(sleeps)
    hold(_HOLD)
    padding = bytes(PAYLOAD - 8)
    return time.monotonic_ns().to_bytes(8, "little") + padding


def pair_delays(
    make: Make,
    rounds: int,
    hold: Callable[[float], None],
    follow: Callable[[Connection, Make, Board], None] = follow,
) -> list[float]:
    """Return the delays in nanoseconds that ``follow`` sends, run in a process of its own."""
    board = Board(1)
    leader = make()
    with Cast() as cast:
        follower, connection = cast.start(follow, make, board)
        for number in range(1, _WARM_UP + rounds + 1):
            key = f"pair:{number}"

            def sleeps(number: int = number, key: str = key) -> bool:
                entered = board.all_show(number) and leader.has_followers(key, 1)
                return entered and asleep(follower.pid)

            leader.execute(key, _function, number, connection, sleeps, hold)
        connection.send(None)
        return receive(connection)[_WARM_UP:]
