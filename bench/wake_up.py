"""From the end of the leader's function to a follower that has the value.

The function's last act is to read CLOCK_MONOTONIC, which all processes share; the reading is the
value, or part of it. A follower reads the clock as soon as ``execute`` has returned. So a sample
holds the encoding, the publishing, the wake-up, the decoding and two returns.

One follower: 1 KiB of bytes; the function returns 1 ms after the kernel says that the follower
sleeps, and either computes meanwhile or sleeps too: a core that has been idle for a while is
woken much more slowly than one that has not. Crowds: the function sleeps until 2 ms after the
last caller has come. The floors do the same with semaphores. The rows of a group take turns, and
the first rounds of every turn do not count.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from . import floors
from .contenders import BareSemaphore, FlockFile, Ours, Recipe, installed_peers
from .report import Row, rows_over
from .stage import Board, Cast, alternate, asleep, receive, table_name, until

__all__ = ["run"]

PAYLOAD = 1024
_WARM_UP = 5
_HOLD = 0.001
_SETTLE = 0.002


# One leader, one follower.


def _never() -> bytes:
    raise AssertionError("the follower was to follow")


def _follow(connection: Connection, make: Callable[[], Any], board: Board) -> None:
    follow = make().follow
    samples = []
    while (number := connection.recv()) is not None:
        board.show(0, number)
        value = follow(f"pair:{number}", _never)
        samples.append(time.monotonic_ns() - int.from_bytes(value[:8], "little"))
    connection.send(samples)


def _compute(seconds: float) -> None:
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


def _pair(make: Callable[[], Any], rounds: int, hold: Callable[[float], None]) -> list[float]:
    """Return the follower's delays in nanoseconds."""
    board = Board(1)
    leader = make()
    with Cast() as cast:
        follower, connection = cast.start(_follow, make, board)
        for number in range(1, _WARM_UP + rounds + 1):

            def sleeps(number: int = number) -> bool:
                entered = board.all_show(number) and leader.has_followers(1)
                return entered and asleep(follower.pid)

            leader.execute(f"pair:{number}", _function, number, connection, sleeps, hold)
        connection.send(None)
        return receive(connection)[_WARM_UP:]


# Many callers.


def _crowd_function(seat: int, here: Callable[[], bool]) -> list[int]:
    until(here)
    time.sleep(_SETTLE)
    return [time.monotonic_ns(), seat]


class _Round:
    """How callers begin a round together, and cheaply, as that is part of the next one's cost."""

    def __init__(self, callers: int) -> None:
        self.entered, self.left = Board(callers), Board(callers)
        self.gates = [os.pipe() for _ in range(callers)]

    def wait(self, seat: int) -> None:
        """Sleep until the next round."""
        os.read(self.gates[seat][0], 1)

    def play(self, number: int) -> None:
        """Let everybody start round ``number``; return when everybody has finished it."""
        for _, gate in self.gates:
            os.write(gate, b"!")
        until(lambda: self.left.all_show(number), pause=_SETTLE)

    def close(self) -> None:
        """Close the gates."""
        for gate in self.gates:
            for fd in gate:
                os.close(fd)


def _call(contender: Any, stage: _Round, seat: int, rounds: int) -> list[tuple]:
    """Be one caller; return for each round when the function ended, who ran it, and the delay."""
    others = len(stage.gates) - 1
    results = []
    for number in range(1, rounds + 1):

        def here(number: int = number) -> bool:
            return stage.entered.all_show(number) and contender.has_followers(others)

        stage.wait(seat)
        stage.entered.show(seat, number)
        value = contender.execute(f"crowd:{number}", _crowd_function, seat, here)
        results.append((*value, time.monotonic_ns() - value[0]))
        stage.left.show(seat, number)
    return results[_WARM_UP:]


def _call_in_threads(
    connection: Connection, make: Callable[[], Any], stage: _Round, seats: range, rounds: int
) -> None:
    contender = make()
    with ThreadPoolExecutor(len(seats)) as pool:
        calls = {seat: pool.submit(_call, contender, stage, seat, rounds) for seat in seats}
    connection.send({seat: call.result() for seat, call in calls.items()})


def _crowd(
    make: Callable[[], Any], processes: int, threads: int, rounds: int
) -> list[dict[int, tuple]]:
    """Return for each round what every seat saw; rounds that ran the function twice left out."""
    callers, rounds = processes * threads, _WARM_UP + rounds
    stage = _Round(callers)
    by_seat: dict[int, list[tuple]] = {}
    with closing(stage), Cast() as cast:
        connections = [
            cast.start(_call_in_threads, make, stage, range(first, first + threads), rounds)[1]
            for first in range(0, callers, threads)
        ]
        for number in range(1, rounds + 1):
            stage.play(number)
        for connection in connections:
            by_seat.update(receive(connection))
    by_round = [{seat: seen[i] for seat, seen in by_seat.items()} for i in range(rounds - _WARM_UP)]
    return [seen for seen in by_round if len({ended for ended, _, _ in seen.values()}) == 1]


def _slowest(rounds: list[dict[int, tuple]]) -> list[float]:
    return [max(delay for _, _, delay in seen.values()) for seen in rounds]


def _followers(rounds: list[dict[int, tuple]]) -> list[float]:
    return [d for seen in rounds for seat, (_, leader, d) in seen.items() if seat != leader]


# The rows.


def _pair_rows(
    ours: Callable[[], Any], flock: Callable[[], Any], busy: bool, quick: bool
) -> list[Row]:
    what = f"the leader's core {'busy' if busy else 'idle'} until then"
    hold = _compute if busy else time.sleep
    bare = BareSemaphore(PAYLOAD)
    floor, name = f"floor: sem_post -> awake, C, {what}", "uniflight-mp: 1 KiB to 1 follower"
    measures = {
        floor: lambda rounds: floors.measure("wake", rounds, 1, busy),
        "floor: semaphore and 1 KiB, from Python": lambda rounds: _pair(lambda: bare, rounds, hold),
        name: lambda rounds: _pair(ours, rounds, hold),
        "rival: flock + file": lambda rounds: _pair(flock, rounds, hold),
    }
    samples = alternate(measures, 100 if quick else 2000, 1 if quick else 10)
    return rows_over(floor, "µs", samples, {name: "<= 25, p99 <= 150"})


def _processes_rows(
    ours: Callable[[], Any], flock: Callable[[], Any], threads: int, target: str, quick: bool
) -> list[Row]:
    callers = 8 * threads
    floor = f"floor: the slowest of {callers - 1} processes awake, C"
    name = f"uniflight-mp: slowest of {callers} callers in 8 processes"
    measures = {
        floor: lambda rounds: floors.measure("wake", rounds, callers - 1, False),
        name: lambda rounds: _slowest(_crowd(ours, 8, threads, rounds)),
        "rival: flock + file": lambda rounds: _slowest(_crowd(flock, 8, threads, rounds)),
    }
    samples = alternate(measures, 20 if quick else 300, 1 if quick else 5)
    return rows_over(floor, "µs", samples, {name: target})


def _threads_rows(ours: Callable[[], Any], quick: bool) -> list[Row]:
    name = "uniflight-mp: each of 7 following threads"
    contenders = {name: ours, "rival: in-process recipe": Recipe}
    contenders |= {f"rival: {peer}": make for peer, make in installed_peers()}
    measures = {
        what: lambda rounds, make=make: _followers(_crowd(make, 1, 8, rounds))
        for what, make in contenders.items()
    }
    samples = alternate(measures, 20 if quick else 300, 1 if quick else 5)
    return rows_over("", "µs", samples, {name: "<= 75"})


def run(quick: bool) -> list[Row]:
    """Measure."""
    with (
        table_name("wake") as table,
        tempfile.TemporaryDirectory(prefix="uniflight-bench-", dir="/dev/shm") as directory,
    ):
        ours, flock = partial(Ours, table), partial(FlockFile, directory)
        rows = _pair_rows(ours, flock, True, quick)
        rows += _pair_rows(ours, flock, False, quick)
        rows += _processes_rows(ours, flock, 1, "<= 250", quick)
        rows += _processes_rows(ours, flock, 4, "<= 600", quick)
        rows += _threads_rows(ours, quick)
    return rows
