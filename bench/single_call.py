"""An uncontended ``execute`` with a ``str`` key and a function that does nothing.

Samples are means over a batch of calls of about half a millisecond, loop included, so their
percentiles are of batches; the batches of all rows alternate. The row "timed one by one" has
percentiles of calls, and in each the cost of reading the clock twice.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from timeit import Timer
from typing import Any

from uniflight_mp import Merger

from . import floors
from .batches import alternate_batches
from .contenders import FlockFile, Ours, Recipe, installed_peers
from .report import Row, rows_over
from .stage import table_name

__all__ = ["FLOOR", "floor_timer", "run", "timer_of"]

KEY = "sku:42"
FLOOR = "floor: begin + finish of the core, from Python"
_OURS = "uniflight-mp"


def _nothing() -> None:
    pass


def _timers(table: str, directory: str) -> dict[str, Timer]:
    """Return what takes part, by label."""
    ours = Ours(table)
    timers = {
        FLOOR: floor_timer(ours.merger),
        "the function, called directly": Timer("func()", globals={"func": _nothing}),
        _OURS: timer_of(ours.execute),
        "rival: in-process recipe (lock, dict, Future)": timer_of(Recipe().execute),
        "rival: cross-process recipe (flock, file in /dev/shm)": timer_of(
            FlockFile(directory).execute
        ),
    }
    for name, make in installed_peers():
        timers[f"rival: in-process {name}"] = timer_of(make().execute)
    return timers


def floor_timer(merger: Merger) -> Timer:
    """Time what every call asks of the core."""
    begin = merger._segment.table.begin
    return Timer("begin(key, None, 3).finish(None)", globals={"begin": begin, "key": KEY})


def timer_of(execute: Callable[..., Any]) -> Timer:
    """Time a call that nobody else wants."""
    return Timer("execute(key, func)", globals={"execute": execute, "key": KEY, "func": _nothing})


def _one_by_one(execute: Callable[..., Any], calls: int) -> list[float]:
    clock = time.perf_counter_ns
    samples = []
    for _ in range(calls):
        started = clock()
        execute(KEY, _nothing)
        samples.append(clock() - started)
    return samples


def run(quick: bool) -> list[Row]:
    """Measure; the C floors come first."""
    batches = 100 if quick else 1000
    samples = {
        "floor: robust mutex lock + unlock, C": floors.measure("mutex", batches),
        "floor: begin + finish of the core, C": floors.measure("flight", batches),
    }
    with (
        table_name("single") as table,
        tempfile.TemporaryDirectory(prefix="uniflight-bench-", dir="/dev/shm") as directory,
    ):
        samples |= alternate_batches(_timers(table, directory), batches)
        samples[f"{_OURS}, timed one by one"] = _one_by_one(Ours(table).execute, 20 * batches)
    return rows_over(FLOOR, "ns", samples, {_OURS: "<= 600; <= 1/4 of the best in-process rival"})
