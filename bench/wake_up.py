"""From the end of the leader's function to a follower that has the value.

The function's last act is to read CLOCK_MONOTONIC, which all processes share; the reading is the
value, or part of it. A follower reads the clock as soon as ``execute`` has returned. So a sample
holds the encoding, the publishing, the wake-up, the decoding and two returns.

One follower: 1 KiB of bytes; the function returns 1 ms after the kernel says that the follower
sleeps, and either computes meanwhile or sleeps too: a core that has been idle for a while is
woken much more slowly than one that has not. Then the leader sleeps, as in the floors. Where it
"works on" it slept before, and computes from then on: the kernel may put the follower that it wakes
behind it, on the same core, for the rest of its time slice. Crowds: the function sleeps until 2 ms
after the last caller has come. The floors do the same with semaphores. The rows of a group take
turns, and the first rounds of every turn do not count.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from . import floors
from .contenders import BareSemaphore, FlockFile, Ours, Recipe, installed_peers
from .crowd import crowd, followers, slowest
from .pair import PAYLOAD, compute, pair_delays, work_on
from .report import Row, rows_over
from .stage import alternate, table_name

__all__ = ["run"]

_CROWDS = ((2, 1, ""), (4, 1, ""), (8, 1, "<= 250"), (16, 1, ""), (8, 4, "<= 600"))


def _pair_rows(
    ours: Callable[[], Any], flock: Callable[[], Any], busy: bool, quick: bool
) -> list[Row]:
    what = f"the leader's core {'busy' if busy else 'idle'}"
    hold = compute if busy else time.sleep
    bare = BareSemaphore(PAYLOAD)
    floor = f"floor: sem_post -> awake, C, {what}"
    name = f"uniflight-mp: 1 KiB to 1 follower, {what}"
    measures = {
        floor: lambda rounds: floors.measure("wake", rounds, 1, busy),
        f"floor: semaphore and 1 KiB, from Python, {what}": lambda rounds: pair_delays(
            lambda: bare, rounds, hold
        ),
        name: lambda rounds: pair_delays(ours, rounds, hold),
        f"rival: flock + file, {what}": lambda rounds: pair_delays(flock, rounds, hold),
    }
    samples = alternate(measures, 100 if quick else 2000, 1 if quick else 10)
    return rows_over(floor, "µs", samples, {name: "<= 25, p99 <= 150"})


def _rows_of_one_that_works_on(
    ours: Callable[[], Any], flock: Callable[[], Any], quick: bool
) -> list[Row]:
    bare, what = BareSemaphore(PAYLOAD), "the leader works on"
    floor = f"floor: semaphore and 1 KiB, from Python, {what}"
    makes = {
        floor: lambda: bare,
        f"uniflight-mp: 1 KiB to 1 follower, {what}": ours,
        f"rival: flock + file, {what}": flock,
    }
    measures = {
        name: lambda rounds, make=make: pair_delays(make, rounds, time.sleep, then=work_on)
        for name, make in makes.items()
    }
    return rows_over(
        floor, "µs", alternate(measures, 100 if quick else 1000, 1 if quick else 5), {}
    )


def _processes_rows(
    ours: Callable[[], Any],
    flock: Callable[[], Any],
    processes: int,
    threads: int,
    target: str,
    quick: bool,
) -> list[Row]:
    callers = processes * threads
    who = f"slowest of {callers} callers in {processes} processes"
    floor = f"floor: sem_post -> slowest awake, C: {who}"
    name = f"uniflight-mp: {who}"
    measures = {
        floor: lambda rounds: floors.measure("wake", rounds, callers - 1, False),
        name: lambda rounds: slowest(crowd(ours, processes, threads, rounds)),
        f"rival: flock + file: {who}": lambda rounds: slowest(
            crowd(flock, processes, threads, rounds)
        ),
    }
    samples = alternate(measures, 20 if quick else 300, 1 if quick else 5)
    return rows_over(floor, "µs", samples, {name: target})


def _threads_rows(ours: Callable[[], Any], quick: bool) -> list[Row]:
    name = "uniflight-mp: each of 7 following threads"
    contenders = {name: ours, "rival: in-process recipe": Recipe}
    contenders |= {f"rival: {peer}": make for peer, make in installed_peers()}
    measures = {
        what: lambda rounds, make=make: followers(crowd(make, 1, 8, rounds))
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
        rows += _rows_of_one_that_works_on(ours, flock, quick)
        for processes, threads, target in _CROWDS:
            rows += _processes_rows(ours, flock, processes, threads, target, quick)
        rows += _threads_rows(ours, quick)
    return rows
