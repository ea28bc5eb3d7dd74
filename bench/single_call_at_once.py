"""An uncontended ``execute`` in two threads, and in two processes, all at it at the same time.

Each has a key of its own, so nothing coalesces; what is left of contention is the interpreter's
lock between the threads, and the table's between the processes: "one group" are two keys that
live in the same part of the table. Samples are means over a batch of calls of some 10 ms, which is
more than ``sys.getswitchinterval()``, loop included.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from threading import Barrier
from timeit import Timer
from typing import Any

from uniflight_mp import Limits, Merger

from . import floors
from .report import Row, rows_over
from .stage import PATIENCE, Cast, alternate, receive, table_name

__all__ = ["run"]

_CALLERS = 2
_CALLS = 30_000
_ONE_GROUP = Limits(flights=64)


def _nothing() -> None:
    pass


def _batches(merger: Merger, seat: int, batches: int) -> list[float]:
    """Return nanoseconds per call, after a batch that does not count."""
    names = {"execute": merger.execute, "key": f"sku:{seat}", "func": _nothing}
    timer = Timer("execute(key, func)", globals=names)
    timer.timeit(_CALLS)
    return [timer.timeit(_CALLS) * 1e9 / _CALLS for _ in range(batches)]


def _call(connection: Connection, make: Callable[[], Merger], seat: int, batches: int) -> None:
    merger = make()
    connection.send("ready")
    connection.recv()
    connection.send(_batches(merger, seat, batches))


def _in_processes(make: Callable[[], Merger], callers: int, batches: int) -> list[float]:
    with Cast() as cast:
        connections = [cast.start(_call, make, seat, batches)[1] for seat in range(callers)]
        for connection in connections:
            receive(connection)
        for connection in connections:
            connection.send("go")
        return [sample for connection in connections for sample in receive(connection)]


def _in_threads(make: Callable[[], Merger], batches: int) -> list[float]:
    merger, ready = make(), Barrier(_CALLERS, timeout=PATIENCE)

    def call(seat: int) -> list[float]:
        ready.wait()
        return _batches(merger, seat, batches)

    with ThreadPoolExecutor(_CALLERS) as pool:
        return [sample for samples in pool.map(call, range(_CALLERS)) for sample in samples]


def run(quick: bool) -> list[Row]:
    """Measure."""
    floor = "floor: begin + finish of the core, C"
    with table_name("at-once") as table, table_name("at-once-small") as small:
        make, make_small = partial(Merger, table), partial(Merger, small, limits=_ONE_GROUP)
        measures: dict[str, Callable[[int], list[Any]]] = {
            floor: lambda batches: floors.measure("flight", batches),
            "uniflight-mp: one process alone": partial(_in_processes, make, 1),
            f"uniflight-mp: {_CALLERS} threads at once": partial(_in_threads, make),
            f"uniflight-mp: {_CALLERS} processes at once": partial(_in_processes, make, _CALLERS),
            f"uniflight-mp: {_CALLERS} processes at once, one group": partial(
                _in_processes, make_small, _CALLERS
            ),
        }
        return rows_over(
            floor, "ns", alternate(measures, 10 if quick else 100, 1 if quick else 5), {}
        )
