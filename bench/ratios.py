"""Two saved results of a figure side by side.

Compared are medians, as in the tables: the mean of what a scheduler does is made of its worst
moments. (``python -m pyperf compare_to`` compares means.) Samples taken one after the other are
not independent, so the interval around a ratio is bootstrapped from the medians of whole runs,
see ``saved.py``. A ratio is "higher" or "lower" if 95% of the bootstrapped ones are on the same
side of 1 and more than ``THRESHOLD`` from it.

Noise that lasts longer than a whole figure is in no interval. The floors' rows show it: they have
none of our code in them. Therefore ``/ floor``, the ratio divided by that of the row's floor.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from pyperf import Benchmark, BenchmarkSuite

from .report import Row, format_number, print_table
from .saved import rows

__all__ = ["Change", "change", "print_ratios"]

THRESHOLD = 0.02
_RESAMPLES = 500
_FEWEST_RUNS = 5  # of fewer no interval can be made
_HEADS = ("unit", "baseline", "now", "ratio", "95% low", "high", "/ floor", "")
_MACHINE = ("cpu_model_name", "cpu_count", "platform", "python_version", "bench_libc")


@dataclass(frozen=True)
class Change:
    """The ratio of two medians, now to baseline, and the interval around it if there is one."""

    ratio: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Whether the ratio is more than noise."""
        if self.interval is None:
            return "too few samples"
        low, high = self.interval
        if low > 1 + THRESHOLD:
            return "higher"
        if high < 1 - THRESHOLD:
            return "lower"
        return "within noise"


def _bootstrap(medians: Sequence[float], chance: random.Random) -> float:
    return median(chance.choices(medians, k=len(medians)))


def change(before: Benchmark, now: Benchmark) -> Change:
    """Compare two results of a row."""
    ratio = now.median() / before.median()
    runs = [[median(run.values) for run in one.get_runs()] for one in (before, now)]
    if min(map(len, runs)) < _FEWEST_RUNS:
        return Change(ratio, None)
    chance = random.Random(0)  # the same files give the same table
    ratios = sorted(
        _bootstrap(runs[1], chance) / _bootstrap(runs[0], chance) for _ in range(_RESAMPLES)
    )
    cut = _RESAMPLES // 40  # 2.5% at either end
    return Change(ratio, (ratios[cut], ratios[-1 - cut]))


def print_ratios(figure: str, before: BenchmarkSuite | None, now: BenchmarkSuite) -> None:
    """Print what has become of each row; and in which ways the machine is another."""
    if before is None:
        print(f"\n{figure}: not in the baseline")
        return
    print_table(f"{figure}, to baseline", _HEADS, dict(_lines(before, now)))
    for name in _MACHINE:
        was, is_ = (suite.get_metadata().get(name) for suite in (before, now))
        if was != is_:
            print(f"another machine or interpreter: {name} was {was}, is {is_}")


def _lines(before: BenchmarkSuite, now: BenchmarkSuite) -> Iterator[tuple[str, list[str]]]:
    were, are = ({row.what: row for row in rows(suite)} for suite in (before, now))
    for what, row in are.items():
        if what in were:
            moved = change(before.get_benchmark(what), now.get_benchmark(what))
            yield what, _cells(were[what], row, moved)
    for what in (*are, *were):
        if (what in are) != (what in were):
            yield what, ["-"] * (len(_HEADS) - 1) + ["only now" if what in are else "only then"]


def _cells(was: Row, row: Row, moved: Change) -> list[str]:
    over_floor = row.ratio / was.ratio if row.ratio and was.ratio else None
    numbers = (was.p50, row.p50, moved.ratio, *(moved.interval or (None, None)), over_floor)
    return [row.unit, *map(format_number, numbers), moved.verdict]
