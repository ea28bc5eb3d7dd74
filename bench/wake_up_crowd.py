"""From the end of the leader's function to the last of up to 100 followers, and to the leader.

Every follower is a process that sleeps: a blocked thread, or a task of an event loop. "Slowest"
ends when the last follower has its 1 KiB; "leader" when the leader's ``execute`` has returned,
which is what publishing costs who does the work; "on a core" is the part of it in which the leader
ran, and was not put aside for those it had woken. The floors post to each follower's semaphore, or
send each a datagram, in C.

Last, one follower with another thread that computes. It has the value when that thread gives up
the interpreter's lock, ``sys.getswitchinterval()`` after it has been asked, 5 ms; with every
mechanism, as the floor from Python shows. Rounds are as in ``wake_up``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

from . import floors
from .contenders import BareSemaphore, Ours
from .pair import PAYLOAD, Landing, compute, fan_out, follow, pair_delays
from .report import Row, rows_over
from .stage import Board, alternate, table_name
from .wake_up_async import OursInLoop, follow_in_loop

__all__ = ["run"]

_FOLLOWERS = (1, 8, 32, 100)
_PUBLISHING_TARGETS = {100: "<= 150"}

_Follow = Callable[[Connection, Callable[[], Any], Board, int], None]


def _measures(table: str, count: int) -> dict[str, Callable[[int], list[Any]]]:
    threads, loops = partial(Ours, table), partial(OursInLoop, table)
    return {
        "posted": lambda rounds: floors.measure("post", rounds, count, False),
        "awake": lambda rounds: floors.measure("wake", rounds, count, False),
        "threads": lambda rounds: fan_out(threads, count, rounds, time.sleep),
        "told": lambda rounds: floors.measure("datagram", rounds, count, False),
        "loops": lambda rounds: fan_out(loops, count, rounds, time.sleep, follow_in_loop),
    }


def _slowest(landings: list[Landing]) -> list[float]:
    return [landing.slowest for landing in landings]


def _leader_samples(what: str, landings: list[Landing]) -> dict[str, list[float]]:
    name = f"uniflight-mp: leader of {what}"
    return {
        name: [landing.published for landing in landings],
        f"{name}, on a core": [landing.worked for landing in landings],
    }


def _crowd_rows(table: str, count: int, quick: bool) -> list[Row]:
    seen = alternate(_measures(table, count), 10 if quick else 200, 1 if quick else 5)
    awake = f"floor: sem_post -> slowest of {count} awake, C"
    told = f"floor: datagrams -> slowest of {count} awake, C"
    posted = f"floor: sem_post to each of {count}, C"
    threads, loops = f"{count} threads", f"{count} loops"
    blocked = {
        awake: seen["awake"],
        f"uniflight-mp: slowest of {threads}": _slowest(seen["threads"]),
    }
    looping = {told: seen["told"], f"uniflight-mp: slowest of {loops}": _slowest(seen["loops"])}
    leading = {
        posted: seen["posted"],
        **_leader_samples(threads, seen["threads"]),
        **_leader_samples(loops, seen["loops"]),
    }
    targets = dict.fromkeys(leading, _PUBLISHING_TARGETS.get(count, ""))
    return [
        *rows_over(awake, "µs", blocked, {}),
        *rows_over(told, "µs", looping, {}),
        *rows_over(posted, "µs", leading, targets),
    ]


def _compute_beside(follow: _Follow, *args: Any) -> None:
    """Follow in a process with another thread that never waits."""
    Thread(target=compute, args=(float("inf"),), daemon=True).start()
    follow(*args)


def _busy_rows(table: str, quick: bool) -> list[Row]:
    bare = BareSemaphore(PAYLOAD)
    blocked, looping = partial(_compute_beside, follow), partial(_compute_beside, follow_in_loop)
    floor = "floor: semaphore and 1 KiB, from Python, beside a computing thread"
    measures = {
        floor: lambda rounds: pair_delays(lambda: bare, rounds, time.sleep, blocked),
        "uniflight-mp: 1 thread beside a computing one": lambda rounds: pair_delays(
            partial(Ours, table), rounds, time.sleep, blocked
        ),
        "uniflight-mp: 1 loop beside a computing thread": lambda rounds: pair_delays(
            partial(OursInLoop, table), rounds, time.sleep, looping
        ),
    }
    return rows_over(floor, "µs", alternate(measures, 10 if quick else 100, 1 if quick else 5), {})


def run(quick: bool) -> list[Row]:
    """Measure."""
    with table_name("crowd") as table:
        rows = [row for count in _FOLLOWERS for row in _crowd_rows(table, count, quick)]
        return rows + _busy_rows(table, quick)
