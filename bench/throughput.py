"""Calls per second of 2 to 16 processes over 1 to 10,000 keys, and whether executions overlap.

Each process calls each key of a round once, in an order of its own; of more keys than it has calls,
a choice of its own; of fewer, all of them again and again. No round's keys were ever used before.
The function sleeps for 100 µs, which takes the kernel longer than that; the floor is the same loop
over the function itself. A sample is a round: all calls by the time from the first to the last.
Where processes meet at a key, a follower comes late to a flight and waits for less than a whole
function, so few keys can be faster than the floor.

The last row counts, in every round above, executions of a key that began before another of the
same key had ended.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from .contenders import Ours
from .report import Row, row, rows_over
from .stage import Cast, alternate, receive, table_name

__all__ = ["run"]

_PROCESSES = (2, 4, 8, 16)
_KEYS = (1, 100, 1000, 10_000)
_TARGET = (2, 1000)  # processes, keys
_SLEEP = 100e-6


class _Seen(NamedTuple):
    """A round, as one process saw it."""

    started: int
    ended: int
    executions: list[tuple[str, int, int]]  # key, start, end


class _Round(NamedTuple):
    """A round, as it was."""

    calls_per_second: float
    overlaps: int


class _Direct:
    """No single-flight at all."""

    def execute(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        return func(*args)


def _order(seat: int, number: int, keys: int, calls: int) -> list[str]:
    """Return the keys that a process calls in a round, in their order."""
    chance = random.Random(f"{seat}:{number}")
    chosen = chance.sample(range(keys), min(keys, calls)) * (-(-calls // keys))
    return [f"throughput:{number}:{key}" for key in chosen[:calls]]


def _call_all(execute: Callable[..., Any], keys: Iterable[str]) -> _Seen:
    executions = []

    def function(key: str) -> None:
        began = time.monotonic_ns()
        time.sleep(_SLEEP)
        executions.append((key, began, time.monotonic_ns()))

    started = time.monotonic_ns()
    for key in keys:
        execute(key, function, key)
    return _Seen(started, time.monotonic_ns(), executions)


def _call(
    connection: Connection, make: Callable[[], Any], seat: int, keys: int, calls: int
) -> None:
    execute = make().execute
    while (number := connection.recv()) is not None:
        order = _order(seat, number, keys, calls)
        connection.send("ready")
        connection.recv()
        connection.send(_call_all(execute, order))


def _count_overlaps(seen: Sequence[_Seen]) -> int:
    by_key = defaultdict(list)
    for one in seen:
        for key, began, ended in one.executions:
            by_key[key].append((began, ended))
    return sum(
        later[0] < earlier[1]
        for spans in map(sorted, by_key.values())
        for earlier, later in pairwise(spans)
    )


def _judge(seen: Sequence[_Seen], calls: int) -> _Round:
    took_ns = max(one.ended for one in seen) - min(one.started for one in seen)
    return _Round(1e9 * calls / took_ns, _count_overlaps(seen))


def _play(connections: Sequence[Connection], number: int) -> list[_Seen]:
    """Let every process make its calls of a round."""
    for connection in connections:
        connection.send(number)
    for connection in connections:
        receive(connection)
    for connection in connections:
        connection.send("go")
    return [receive(connection) for connection in connections]


def _rounds(
    make: Callable[[], Any], processes: int, keys: int, calls: int, rounds: int
) -> list[_Round]:
    """Measure; the first round does not count."""
    with Cast() as cast:
        connections = [cast.start(_call, make, seat, keys, calls)[1] for seat in range(processes)]
        seen = [_play(connections, number) for number in range(rounds + 1)]
    return [_judge(one, processes * calls) for one in seen[1:]]


def _rows(table: str, processes: int, quick: bool) -> tuple[list[Row], list[int]]:
    """Return the rows of so many processes, and the overlaps of each round of ours."""
    calls = 100 if quick else 1000
    floor = f"floor: without us, {processes} processes"
    named = {f"uniflight-mp: {processes} processes, {keys:,} keys": keys for keys in _KEYS}
    measures = {floor: partial(_rounds, _Direct, processes, 1000, calls)}
    for name, keys in named.items():
        measures[name] = partial(_rounds, partial(Ours, table), processes, keys, calls)
    seen = alternate(measures, 2 if quick else 20, 1 if quick else 5)
    rates = {name: [one.calls_per_second for one in rounds] for name, rounds in seen.items()}
    overlaps = [one.overlaps for name in named for one in seen[name]]
    targets = {
        name: ">= 0.97 x floor" for name, keys in named.items() if (processes, keys) == _TARGET
    }
    return rows_over(floor, "1/s", rates, targets), overlaps


def run(quick: bool) -> list[Row]:
    """Measure."""
    rows, overlaps = [], []
    with table_name("throughput") as table:
        for processes in _PROCESSES:
            more_rows, more_overlaps = _rows(table, processes, quick)
            rows += more_rows
            overlaps += more_overlaps
    name = "uniflight-mp: executions of a key that overlap, a round"
    return [*rows, row(name, "runs", overlaps, target="0")]
