"""100 tasks of one event loop, spawned and gathered: what they take together.

A sample is one such crowd, from before the first coroutine is made until all results are there.
Each crowd runs in two forms: with a function that does nothing, which is over before the next
task begins, so nothing coalesces; and with one that yields to the loop once. The floor is the
same crowd without us: each task awaits the function itself. The crowds of all rows take turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from uniflight_mp import AsyncMerger

from .async_contenders import Execute, async_rivals
from .report import Row, row, rows_over
from .stage import table_name

__all__ = ["measure_crowds"]

_WARM_UP = 5

_Spawn = Callable[[], Sequence[Coroutine[Any, Any, Any]]]


async def _nothing() -> None:
    pass


async def _yield_once() -> None:
    await asyncio.sleep(0)


def _spawn(execute: Execute, keys: Sequence[str], func: Callable[[], Any]) -> _Spawn:
    return lambda: [execute(key, func) for key in keys]


async def _alternate(spawns: dict[str, _Spawn], rounds: int) -> dict[str, list[float]]:
    """Return how many nanoseconds each crowd took in each round."""
    samples: dict[str, list[float]] = {name: [] for name in spawns}
    for _ in range(_WARM_UP + rounds):
        for name, spawn in spawns.items():
            started = time.perf_counter_ns()
            await asyncio.gather(*spawn())
            samples[name].append(time.perf_counter_ns() - started)
    return {name: taken[_WARM_UP:] for name, taken in samples.items()}


async def _count_runs(execute: Execute, keys: Sequence[str], rounds: int) -> list[float]:
    """Return how often the function that yields once ran in each round; nothing is timed."""
    runs = 0

    async def counted() -> None:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)

    samples: list[float] = []
    for _ in range(rounds):
        runs = 0
        await asyncio.gather(*_spawn(execute, keys, counted)())
        samples.append(runs)
    return samples


async def _form_rows(
    merger: AsyncMerger,
    keys: Sequence[str],
    func: Callable[[], Coroutine[Any, Any, None]],
    target: str,
    rounds: int,
) -> list[Row]:
    form = "does nothing" if func is _nothing else "yields once"
    floor, name = f"floor: without us, function {form}", f"uniflight-mp, function {form}"
    spawns = {floor: lambda: [func() for _ in keys], name: _spawn(merger.execute, keys, func)}
    for rival, execute in async_rivals().items():
        spawns[f"{rival}, {form}"] = _spawn(execute, keys, func)
    return rows_over(floor, "µs", await _alternate(spawns, rounds), {name: target})


async def _rows(
    merger: AsyncMerger, keys: Sequence[str], targets: tuple[str, str], rounds: int
) -> list[Row]:
    rows = await _form_rows(merger, keys, _nothing, targets[0], rounds)
    rows += await _form_rows(merger, keys, _yield_once, targets[1], rounds)
    runs = await _count_runs(merger.execute, keys, rounds)
    name = "uniflight-mp, how often the one that yields runs"
    return [*rows, row(name, "runs", runs, target=str(len(set(keys))))]


def measure_crowds(keys: Sequence[str], targets: tuple[str, str], quick: bool) -> list[Row]:
    """Measure a crowd with one task for each of ``keys``; ``targets`` are of the two forms."""
    with table_name("tasks") as table, AsyncMerger(table) as merger:
        return asyncio.run(_rows(merger, keys, targets, 50 if quick else 1000))
