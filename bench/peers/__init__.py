"""Peers: what others offer for the same job, in one run with us.

Each is used as its documentation says; the docstring of each says where that is. Every measure
begins with empty stores, and the contenders take turns. The columns:

- call: an uncontended call with a new key and a function that does nothing, the caller warm.
- wake, p99: from the end of the leader's function to the value in a follower; the follower is
  another process, or in the rows "threads" and "tasks" one of those. 1 KiB between processes.
- runs/8pr, worst: how often the function ran when 8 processes wanted one key at once, and how
  often at worst. 1 is what a single-flight is for; 8 is what one gets without.
- runs/8th, worst: the same for 8 threads, or tasks, of one process.
- takeover: from the SIGKILL of a leader to the start of the next function. Locks that can expire
  were made to, after 10 s; those of Redis, dogpile.cache and diskcache by default never do.
- calls/s, runs/1000, at once: 2 processes want the same new keys in the same order; the function
  sleeps for 100 µs. How many calls returned, how often the function ran for 1,000 keys, and for
  how many of them it ran in both at once. A cache runs it once a key, even for calls that do not
  meet; a single-flight, which keeps nothing, runs it again for those, but never at once.
- KiB: what is used after that outside of the callers: /dev/shm for us and for files, else the
  private memory of the server. Most of it grows with the keys; ours does not.

"-": does not apply, as nobody waits there. In a remark (*) is what a number does not say. Most
peers are caches and keep the value: theirs are calls for a new key, as a hit is no contest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from ..batches import alternate_batches
from ..report import Row, row
from ..stage import PATIENCE, apart
from . import measures
from .roster import Contender, roster
from .table import print_table

__all__ = ["print_table", "run"]

Measure = Callable[[Contender], list[Any]]


def run(quick: bool) -> list[Row]:
    """Measure."""
    return [
        *_uncontended(quick),
        *_wake_ups(quick),
        *_bursts(quick),
        *_takeovers(quick),
        *_walks(quick),
    ]


def _uncontended(quick: bool) -> list[Row]:
    samples = apart(_calls, 20 if quick else 200)
    return [row(f"{name}: uncontended call", "µs", taken) for name, taken in samples.items()]


def _calls(batches: int) -> dict[str, list[float]]:
    with roster() as contenders:
        timers = {one.name: measures.Calls(one.make) for one in contenders}
        return alternate_batches(timers, batches)


def _wake_ups(quick: bool) -> list[Row]:
    rounds, turns = (20, 1) if quick else (100, 5)

    def measure(one: Contender) -> list[Any]:
        if one.shared:
            return measures.wake_ups_in_another_process(one.make, rounds)
        return measures.wake_ups_here(one.make, rounds)

    return _rows("wake-up", "µs", _in_turns(measure, turns), failed=PATIENCE * 1e9)


def _bursts(quick: bool) -> list[Row]:
    rounds, turns = (2, 1) if quick else (10, 2)
    processes = _in_turns(lambda one: measures.runs_of_processes(one.make, rounds), turns)
    threads = _in_turns(lambda one: measures.runs_of_threads(one.make, rounds), turns)
    rows = _rows("runs for 8 processes", "runs", processes, failed=0.0)
    return rows + _rows("runs for 8 threads", "runs", threads, failed=0.0)


def _takeovers(quick: bool) -> list[Row]:
    rounds, limit = (3, 2.0) if quick else (50, 15.0)

    def measure(one: Contender) -> list[Any]:
        return measures.takeovers(one.make, rounds, limit) if one.shared else []

    with roster() as contenders:
        expiry = {one.name: one.ttl for one in contenders}
    samples = _in_turns(measure, 1)
    return [
        line
        for name, taken in samples.items()
        for line in _takeover_row(name, expiry[name], taken, limit)
    ]


def _takeover_row(name: str, ttl: float | None, taken: list[Any], limit: float) -> list[Row]:
    """Make a row, unless nobody waited for the leader; say what a long time is made of."""
    got = [sample for sample in taken if sample is not None]
    if not got:
        return []
    if math.inf in got:
        got, remark = [limit * 1e9], f"never; waited for {limit:g} s"
        if ttl:
            remark = f"not within {limit:g} s; the leader's lock expires after {ttl:g} s"
    elif ttl:
        remark = f"when the leader's lock expires, here after {ttl:g} s"
    else:
        remark = _remark(taken)
    return [row(f"{name}: takeover", "ms", got, target=remark)]


def _walks(quick: bool) -> list[Row]:
    keys, turns = (100, 1) if quick else (1000, 3)
    walks = _in_turns(lambda one: measures.walks(one, keys), turns)

    def of(field: str) -> dict[str, list[Any]]:
        return {
            name: [getattr(walk, field, walk) for walk in taken] for name, taken in walks.items()
        }

    return [
        *_rows("calls by 2 processes", "1/s", of("calls"), failed=0.0),
        *_rows("runs per 1,000 keys", "runs", of("runs")),
        *_rows("overlapping runs per 1,000 keys", "runs", of("overlaps")),
        *_rows("memory", "KiB", of("used")),
    ]


def _in_turns(measure: Measure, turns: int) -> dict[str, list[Any]]:
    """Return each contender's samples; every turn has fresh stores, and processes of its own.

    Every turn begins with somebody else. Who hangs once is not asked again.
    """
    samples: dict[str, list[Any]] = {}
    for turn in range(turns):
        with roster() as contenders:
            samples = samples or {one.name: [] for one in contenders}
            first = turn * len(contenders) // turns
            for one in contenders[first:] + contenders[:first]:
                taken = samples[one.name]
                if math.inf not in taken:
                    taken += apart(_bounded, measure, one)
    return samples


def _bounded(measure: Measure, one: Contender) -> list[Any]:
    """Measure; a contender that hangs or fails is a sample, not the end of the run."""
    try:
        return measure(one)
    except Exception as error:
        print(f"{one.name}: {error!r}", file=sys.stderr)
        return [math.inf]


def _rows(
    measure: str, unit: str, samples: dict[str, list[Any]], failed: float | None = None
) -> list[Row]:
    """Make rows; one of whom nobody followed has none, one that only failed has ``failed``."""
    rows = []
    for name, taken in samples.items():
        got = [sample for sample in taken if sample not in (None, math.inf)]
        if math.inf in taken and failed is not None:
            got = got or [failed]
        if got:
            rows.append(row(f"{name}: {measure}", unit, got, target=_remark(taken)))
    return rows


def _remark(taken: list[Any]) -> str:
    remarks = []
    if ran := taken.count(None):
        remarks.append(f"{ran} of {len(taken)} followers ran the function too")
    if math.inf in taken:
        remarks.append(f"failed, or was not done within {PATIENCE:g} s")
    return "; ".join(remarks)
