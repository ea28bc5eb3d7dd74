"""One leader, and followers each in a process of its own: usually one, a pair.

A leader's function lets the followers fall asleep, holds on for a millisecond, and reads
CLOCK_MONOTONIC as its last act; the value begins with the reading. What a follower does meanwhile
is up to the caller. When ``execute`` has returned, the leader sleeps until all have their value, as
it does in the floors, or works on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from .stage import Board, Cast, asleep, receive, until

__all__ = [
    "PAYLOAD",
    "Landing",
    "compute",
    "fan_out",
    "follow",
    "never",
    "pair_delays",
    "work_on",
]

PAYLOAD = 1024
_WARM_UP = 5
_HOLD = 0.001

Make = Callable[[], Any]


class Landing(NamedTuple):
    """What a round was, in nanoseconds from the end of the function."""

    published: int  # to the return of the leader
    worked: int  # of it, the time that the leader was on a core
    slowest: int  # to the return of the last follower


def never() -> bytes:
    """Be a follower's function."""
    raise AssertionError("the follower was to follow")


def follow(connection: Connection, make: Make, board: Board, seat: int) -> None:
    """Follow one flight after the other; send how late each value was."""
    contender = make()
    samples = []
    while (number := connection.recv()) is not None:
        board.show(seat, number)
        value = contender.follow(f"pair:{number}", never)
        samples.append(time.monotonic_ns() - int.from_bytes(value[:8], "little"))
        connection.send(number)
    connection.send(samples)


def compute(seconds: float) -> None:
    """Hold on as ``time.sleep`` does, busily."""
    deadline = time.monotonic() + seconds
    until(lambda: time.monotonic() > deadline)


def work_on(connection: Connection) -> None:
    """Wait as ``receive`` does, busily."""
    until(connection.poll)
    receive(connection)


def _function(
    number: int,
    connections: Iterable[Connection],
    sleep: Callable[[], bool],
    hold: Callable[[float], None],
    worked: list[int],
) -> bytes:
    for connection in connections:
        connection.send(number)
    until(sleep)
    hold(_HOLD)
    padding = bytes(PAYLOAD - 8)
    worked.append(-time.thread_time_ns())
    return time.monotonic_ns().to_bytes(8, "little") + padding


def fan_out(
    make: Make,
    count: int,
    rounds: int,
    hold: Callable[[float], None],
    follow: Callable[[Connection, Make, Board, int], None] = follow,
    then: Callable[[Connection], object] = receive,
) -> list[Landing]:
    """Return the rounds of a leader with so many followers; ``follow`` is what they run.

    ``then`` waits for a follower that has its value.
    """
    board = Board(count)
    leader = make()
    published: list[int] = []
    worked: list[int] = []
    with Cast() as cast:
        started = [cast.start(follow, make, board, seat) for seat in range(count)]
        connections = [connection for _, connection in started]
        for number in range(1, _WARM_UP + rounds + 1):
            key = f"pair:{number}"

            def sleep(number: int = number, key: str = key) -> bool:
                entered = board.all_show(number) and leader.has_followers(key, count)
                return entered and all(asleep(process.pid) for process, _ in started)

            value = leader.execute(key, _function, number, connections, sleep, hold, worked)
            published.append(time.monotonic_ns() - int.from_bytes(value[:8], "little"))
            worked[-1] += time.thread_time_ns()
            for connection in connections:
                then(connection)
        for connection in connections:
            connection.send(None)
        delays = [receive(connection) for connection in connections]
    slowest = [max(of_round) for of_round in zip(*delays, strict=True)]
    landings = map(Landing, published, worked, slowest)
    return list(landings)[_WARM_UP:]


def pair_delays(
    make: Make,
    rounds: int,
    hold: Callable[[float], None],
    follow: Callable[[Connection, Make, Board, int], None] = follow,
    then: Callable[[Connection], object] = receive,
) -> list[float]:
    """Return the delays of a single follower."""
    return [landing.slowest for landing in fan_out(make, 1, rounds, hold, follow, then)]
