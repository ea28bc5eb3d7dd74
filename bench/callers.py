"""100 callers that block: threads of one process, and 20 threads in each of five.

Rounds are as in ``crowd.py``: callers want their keys at once, and the function sleeps until 2 ms
after the last of them has come. Samples go from the end of a key's function to the return of each
follower, and of the last caller of the round. A round in which a key's function ran more than
once has no samples but for the row that says how many rounds it did not; of ours, all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from . import floors
from .contenders import FlockFile, Ours, Recipe, installed_peers
from .crowd import crowd, followers, slowest
from .report import Row, row, rows_over
from .stage import alternate, table_name

__all__ = ["measure_callers"]

CALLERS = 100
_PROCESSES = 5
_OURS = "uniflight-mp"


def _rows(
    contenders: dict[str, Callable[[], Any]], processes: int, keys: int, target: str, quick: bool
) -> list[Row]:
    """Measure the callers in so many processes."""
    where = f"{processes} processes" if processes > 1 else "threads"
    rounds, blocks = (20, 1) if quick else (200, 5)
    floor = f"floor: the slowest of {CALLERS - 1} processes awake, C, for {where}"
    measures: dict[str, Callable[[int], list[Any]]] = {
        floor: lambda rounds: floors.measure("wake", rounds, CALLERS - 1, False)
    }
    for name, make in contenders.items():
        measures[name] = partial(_crowd, make, processes, keys)
    seen = alternate(measures, rounds, blocks)
    samples = {floor: seen.pop(floor)}
    for name, single in seen.items():
        samples[f"{name}, {where}: each follower"] = followers(single)
        samples[f"{name}, {where}: slowest of {CALLERS} callers"] = slowest(single)
    share = 100 * len(seen[_OURS]) / rounds
    ran_once = row(f"{_OURS}, {where}: rounds with one run a key", "%", [share], target="100")
    targets = {f"{_OURS}, {where}: each follower": target}
    return [*rows_over(floor, "µs", samples, targets), ran_once]


def _crowd(make: Callable[[], Any], processes: int, keys: int, rounds: int) -> list[Any]:
    return crowd(make, processes, CALLERS // processes, rounds, keys)


def measure_callers(keys: int, target: str, quick: bool) -> list[Row]:
    """Measure 100 callers of so many keys; ``target`` is that of a follower in five processes."""
    with (
        table_name("callers") as table,
        tempfile.TemporaryDirectory(prefix="uniflight-bench-", dir="/dev/shm") as directory,
    ):
        ours = {_OURS: partial(Ours, table)}
        in_process = {f"rival: {name}": make for name, make in installed_peers()}
        threads = {**ours, "rival: in-process recipe": Recipe, **in_process}
        processes = {**ours, "rival: flock + file": partial(FlockFile, directory)}
        return [
            *_rows(threads, 1, keys, "", quick),
            *_rows(processes, _PROCESSES, keys, target, quick),
        ]
