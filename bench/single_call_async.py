"""An uncontended ``await execute`` with a ``str`` key and a coroutine function that does nothing.

Samples are as those of ``single_call``: means over a batch of calls, which a coroutine of its own
awaits one after the other. The floor is the core's begin and finish around the one await.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from itertools import repeat

from uniflight_mp import AsyncMerger

from .async_contenders import Execute, async_rivals
from .batches import alternate_batches
from .report import Row, rows_over
from .stage import table_name

__all__ = ["FLOOR", "AwaitTimer", "floor_timer", "run", "timer_of"]

KEY = "sku:42"
FLOOR = "floor: begin + finish of the core around an await"
_OURS = "uniflight-mp"

_BATCH = """
async def batch(calls):
    started = clock()
    for _ in repeat(None, calls):
        {statement}
    return clock() - started
"""


class AwaitTimer:
    """``timeit.Timer`` for a statement that awaits."""

    def __init__(self, loop: asyncio.AbstractEventLoop, statement: str, **names: object) -> None:
        names |= {"clock": time.perf_counter, "repeat": repeat, "key": KEY, "func": _nothing}
        exec(_BATCH.format(statement=statement), names)
        self._loop, self._batch = loop, names["batch"]

    def timeit(self, number: int) -> float:
        """Return how many seconds so many calls take."""
        return self._loop.run_until_complete(self._batch(number))


async def _nothing() -> None:
    pass


def floor_timer(loop: asyncio.AbstractEventLoop, merger: AsyncMerger) -> AwaitTimer:
    """Time what every call asks of the core, and the one await."""
    statement = "begin(key, None, 3).finish(await func())"
    return AwaitTimer(loop, statement, begin=merger._segment.table.begin)


def timer_of(loop: asyncio.AbstractEventLoop, execute: Execute) -> AwaitTimer:
    """Time a call that nobody else wants."""
    return AwaitTimer(loop, "await execute(key, func)", execute=execute)


def _timers(loop: asyncio.AbstractEventLoop, merger: AsyncMerger) -> dict[str, AwaitTimer]:
    """Return what takes part, by label."""
    timers = {
        FLOOR: floor_timer(loop, merger),
        "the function, awaited directly": AwaitTimer(loop, "await func()"),
        _OURS: timer_of(loop, merger.execute),
    }
    rivals = async_rivals().items()
    return timers | {name: timer_of(loop, execute) for name, execute in rivals}


def run(quick: bool) -> list[Row]:
    """Measure."""
    with (
        table_name("single-async") as table,
        AsyncMerger(table) as merger,
        closing(asyncio.new_event_loop()) as loop,
    ):
        samples = alternate_batches(_timers(loop, merger), 100 if quick else 1000)
    return rows_over(FLOOR, "ns", samples, {_OURS: "<= 1,200"})
