"""Many callers in some processes: rounds in which all of them want a few keys at once.

The function's last act is to read CLOCK_MONOTONIC; the reading is part of the value. It sleeps
until 2 ms after the last caller has come.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from .stage import Board, Cast, receive, until

__all__ = ["crowd", "followers", "slowest"]

_WARM_UP = 5
_SETTLE = 0.002
_POLL = 0.0002


class _Seen(NamedTuple):
    """What a round was to one caller."""

    ended: int  # CLOCK_MONOTONIC, at the end of the function
    leader: int  # the seat that ran it
    delay: int  # ns from there to the caller's own return


def _function(seat: int, here: Callable[[], bool]) -> list[int]:
    until(here, pause=_POLL)
    time.sleep(_SETTLE)
    return [time.monotonic_ns(), seat]


class _Round:
    """How callers begin a round together, and cheaply, as that is part of the next one's cost."""

    def __init__(self, callers: int, keys: int) -> None:
        self.keys = keys
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


def _call(contender: Any, stage: _Round, seat: int, rounds: int) -> list[_Seen]:
    """Be one caller; return what each round was to it."""
    others = len(stage.gates) // stage.keys - 1
    results = []
    for number in range(1, rounds + 1):
        key = f"crowd:{number}:{seat % stage.keys}"

        def here(number: int = number, key: str = key) -> bool:
            return stage.entered.all_show(number) and contender.has_followers(key, others)

        stage.wait(seat)
        stage.entered.show(seat, number)
        value = contender.execute(key, _function, seat, here)
        results.append(_Seen(*value, time.monotonic_ns() - value[0]))
        stage.left.show(seat, number)
    return results[_WARM_UP:]


def _call_in_threads(
    connection: Connection, make: Callable[[], Any], stage: _Round, seats: range, rounds: int
) -> None:
    contender = make()
    with ThreadPoolExecutor(len(seats)) as pool:
        calls = {seat: pool.submit(_call, contender, stage, seat, rounds) for seat in seats}
    connection.send({seat: call.result() for seat, call in calls.items()})


def crowd(
    make: Callable[[], Any], processes: int, threads: int, rounds: int, keys: int = 1
) -> list[dict[int, _Seen]]:
    """Return for each round what every seat saw; rounds that ran a function twice left out.

    The seats are threads; each key is wanted by as many, in as many processes as there are.
    """
    callers, rounds = processes * threads, _WARM_UP + rounds
    stage = _Round(callers, keys)
    by_seat: dict[int, list[_Seen]] = {}
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
    return [seen for seen in by_round if _leaders(seen) == keys]


def _leaders(seen: dict[int, _Seen]) -> int:
    return len({one.leader for one in seen.values()})


def slowest(rounds: list[dict[int, _Seen]]) -> list[float]:
    """Return the delay of the last one of each round."""
    return [max(one.delay for one in seen.values()) for seen in rounds]


def followers(rounds: list[dict[int, _Seen]]) -> list[float]:
    """Return the delays of all who followed."""
    return [one.delay for seen in rounds for seat, one in seen.items() if seat != one.leader]
