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

__all__ = ["run"]

KEY = "sku:42"
_FLOOR = "floor: begin + finish of the core around an await"
_OURS = "uniflight-mp"

_BATCH = """
async def batch(calls):
    started = clock()
    for _ in repeat(None, calls):
        {statement}
    return clock() - started
"""


class _AwaitTimer:
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


def _timers(loop: asyncio.AbstractEventLoop, merger: AsyncMerger) -> dict[str, _AwaitTimer]:
    """Return what takes part, by label."""

    def timer_of(execute: Execute) -> _AwaitTimer:
        return _AwaitTimer(loop, "await execute(key, func)", execute=execute)

    floor = "begin(key, None, 3).finish(await func())"
    timers = {
        _FLOOR: _AwaitTimer(loop, floor, begin=merger._segment.table.begin),
        "the function, awaited directly": _AwaitTimer(loop, "await func()"),
        _OURS: timer_of(merger.execute),
    }
    return timers | {name: timer_of(execute) for name, execute in async_rivals().items()}


def run(quick: bool) -> list[Row]:
    """Measure."""
    with (
        table_name("single-async") as table,
        AsyncMerger(table) as merger,
        closing(asyncio.new_event_loop()) as loop,
    ):
        samples = alternate_batches(_timers(loop, merger), 100 if quick else 1000)
    return rows_over(_FLOOR, "ns", samples, {_OURS: "<= 1,200"})
