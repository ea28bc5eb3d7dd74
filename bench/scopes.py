"""What a scope costs: a call under it, asking for the partition, a follower, a table.

The calls are those of ``single_call`` and ``single_call_async``, on tables that are there. The
partition is asked for at each call of a scope that has several; the floor of that is asking the
kernel for the CPU. Followers are threads of one process, as in ``wake_up``, all on one core, so
that PerCore's meet. The last rows are what a Merger costs that makes its table, as the first
call in a partition does; "small" is ``Limits(64, 64, 64, 3072)``.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import closing
from contextvars import ContextVar
from functools import partial
from timeit import Timer

from uniflight_mp import (
    AsyncMerger,
    Limits,
    Merger,
    PerCore,
    PerHost,
    PerNuma,
    PerProcess,
    Scope,
)
from uniflight_mp.core import shm

from . import single_call, single_call_async
from .batches import alternate_batches
from .contenders import Ours
from .crowd import crowd, followers
from .report import Row, rows_over
from .stage import alternate, table_name

__all__ = ["run"]

_tenant = ContextVar("tenant", default="nobody")


class PerTenant:
    """A scope of one's own, as docs/scopes.md shows it."""

    shared = True

    def partition(self) -> str:
        """Return the tenant of the caller."""
        return _tenant.get()


_SCOPES: dict[str, Scope] = {
    "PerHost": PerHost(),
    "PerNuma": PerNuma(),
    "PerProcess": PerProcess(),
    "PerCore": PerCore(),
    "PerTenant": PerTenant(),
}
_DIVIDED = ("PerNuma", "PerCore", "PerTenant")
_SMALL = Limits(64, 64, 64, 3072)


def _call_rows(table: str, batches: int) -> list[Row]:
    mergers = {name: Merger(table, scope=scope) for name, scope in _SCOPES.items()}
    timers = {single_call.FLOOR: single_call.floor_timer(mergers["PerHost"])}
    for name, merger in mergers.items():
        timers[f"execute, {name}"] = single_call.timer_of(merger.execute)
    return rows_over(single_call.FLOOR, "ns", alternate_batches(timers, batches), {})


def _await_rows(table: str, batches: int) -> list[Row]:
    mergers = {name: AsyncMerger(table, scope=scope) for name, scope in _SCOPES.items()}
    with closing(asyncio.new_event_loop()) as loop:
        timers = {single_call_async.FLOOR: single_call_async.floor_timer(loop, mergers["PerHost"])}
        for name, merger in mergers.items():
            timers[f"await execute, {name}"] = single_call_async.timer_of(loop, merger.execute)
        samples = alternate_batches(timers, batches)
    return rows_over(single_call_async.FLOOR, "ns", samples, {})


def _partition_rows(batches: int) -> list[Row]:
    floor = "floor: the kernel's word on the CPU, from Python"
    timers = {floor: Timer("ask()", globals={"ask": shm.cpu})}
    for name in _DIVIDED:
        timers[f"partition(), {name}"] = Timer("ask()", globals={"ask": _SCOPES[name].partition})
    samples = alternate_batches(timers, batches)
    return rows_over(floor, "ns", samples, {"partition(), PerNuma": "<= 50"})


def _follower_rows(table: str, quick: bool) -> list[Row]:
    def delays(scope: Scope, rounds: int) -> list[float]:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return followers(crowd(partial(Ours, table, scope), 1, 8, rounds))

    measures = {
        f"each of 7 following threads, one core, {name}": partial(delays, scope)
        for name, scope in _SCOPES.items()
    }
    return rows_over("", "µs", alternate(measures, 20 if quick else 300, 1 if quick else 5), {})


def _table_rows(rounds: int) -> list[Row]:
    def open_new(scope: Scope, limits: Limits) -> float:
        with table_name("new") as table:
            started = time.monotonic_ns()
            Merger(table, scope=scope, limits=limits)
            return time.monotonic_ns() - started

    kinds = {
        "a new table, shared": (PerHost(), Limits()),
        "a new table, shared, small Limits": (PerHost(), _SMALL),
        "a new table, private": (PerProcess(), Limits()),
    }
    samples: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, kind in kinds.items():
            samples[name].append(open_new(*kind))
    return rows_over("", "µs", samples, {})


def run(quick: bool) -> list[Row]:
    """Measure."""
    batches = 100 if quick else 1000
    with table_name("scopes") as table:
        rows = _call_rows(table, batches)
        rows += _await_rows(table, batches)
        rows += _partition_rows(batches)
        rows += _follower_rows(table, quick)
    return rows + _table_rows(20 if quick else 200)
