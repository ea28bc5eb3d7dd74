"""100 callers want 10 keys at once, 10 callers each.

First tasks of one event loop, see ``tasks.py``. Then threads of 5 processes, 2 for each key in
each process, see ``crowd.py``: from the end of a key's function to the return of each follower,
and of the last caller of the round.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from . import floors
from .contenders import FlockFile, Ours
from .crowd import crowd, followers, slowest
from .report import Row, rows_over
from .stage import alternate, table_name
from .tasks import measure_crowds

__all__ = ["run"]

_KEYS = 10
_PROCESSES = 5
_CALLERS = 100
_FLOOR = f"floor: the slowest of {_CALLERS - 1} processes awake, C"
_OURS = f"uniflight-mp, {_PROCESSES} processes"


def _measures(table: str, directory: str) -> dict[str, Callable[[int], list[Any]]]:
    def rounds_of(make: Callable[[], Any]) -> Callable[[int], list[Any]]:
        return lambda rounds: crowd(make, _PROCESSES, _CALLERS // _PROCESSES, rounds, _KEYS)

    return {
        _FLOOR: lambda rounds: floors.measure("wake", rounds, _CALLERS - 1, False),
        _OURS: rounds_of(partial(Ours, table)),
        f"rival: flock + file, {_PROCESSES} processes": rounds_of(partial(FlockFile, directory)),
    }


def _processes_rows(quick: bool) -> list[Row]:
    with (
        table_name("distributed") as table,
        tempfile.TemporaryDirectory(prefix="uniflight-bench-", dir="/dev/shm") as directory,
    ):
        measures = _measures(table, directory)
        seen = alternate(measures, 20 if quick else 200, 1 if quick else 5)
    samples = {_FLOOR: seen.pop(_FLOOR)}
    for name, rounds in seen.items():
        samples[f"{name}: each follower"] = followers(rounds)
        samples[f"{name}: slowest of the {_CALLERS} callers"] = slowest(rounds)
    return rows_over(_FLOOR, "µs", samples, {f"{_OURS}: each follower": "<= 1,000"})


def run(quick: bool) -> list[Row]:
    """Measure."""
    keys = [f"sku:{number}" for number in range(_KEYS) for _ in range(_CALLERS // _KEYS)]
    return measure_crowds(keys, ("<= 500", "<= 540"), quick) + _processes_rows(quick)
