"""Results under ``build/bench/NAME/FIGURE.json``, as pyperf writes and reads them.

A row is a pyperf Benchmark that holds every sample, in seconds, bytes or numbers, in the order in
which they were taken, cut into runs; its metadata say what machine and interpreter that was, and
what the table shows: unit, floor, target. So ``python -m pyperf stats``, ``hist``, ``metadata``
and ``compare_to`` work on the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from pyperf import Benchmark, BenchmarkSuite, Run

from .report import Row, describe_environment, row

__all__ = ["LAST", "ROOT", "figures", "load", "machine", "rows", "save"]

ROOT = Path(__file__).resolve().parent.parent / "build" / "bench"
LAST = "last"  # the name of results that nobody gave a name
RUNS = 20  # what is compared are the runs' medians; there are enough for an interval around them
_PYPERF_UNITS = {
    "ns": ("second", 1e-9),
    "µs": ("second", 1e-6),
    "ms": ("second", 1e-3),
    "KiB": ("byte", 1024),
    "MiB": ("byte", 1 << 20),
}
_ZERO = 1e-12  # pyperf takes no zeros
_SIGNIFICANT = 5  # digits of a sample


def machine() -> dict[str, object]:
    """Return what pyperf can tell of this machine and process, and what we can."""
    collected = Run([1.0]).get_metadata()
    ours = {f"bench_{name}": str(value) for name, value in describe_environment().items()}
    return {**collected, **ours}


def save(
    name: str, figure: str, rows: Sequence[Row], machine: Mapping[str, object]
) -> BenchmarkSuite:
    """Write a figure's rows and return them; what was kept under that name before is gone."""
    path = _path(name, figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    suite = BenchmarkSuite([_benchmark(row, machine) for row in rows])
    suite.dump(str(path), compact=True, replace=True)
    return suite


def load(name: str, figure: str) -> BenchmarkSuite | None:
    """Return what was saved of a figure; None if nothing was."""
    path = _path(name, figure)
    return BenchmarkSuite.load(str(path)) if path.exists() else None


def figures(name: str) -> list[str]:
    """Return the figures that were saved under a name."""
    return sorted(path.stem for path in (ROOT / name).glob("*.json"))


def rows(suite: BenchmarkSuite) -> list[Row]:
    """Return the rows that a suite was made of."""
    return [_row(benchmark) for benchmark in suite]


def _path(name: str, figure: str) -> Path:
    return ROOT / name / f"{figure}.json"


def _benchmark(row: Row, machine: Mapping[str, object]) -> Benchmark:
    unit, factor = _PYPERF_UNITS.get(row.unit, ("integer", 1))
    metadata = {**machine, "name": row.what.strip(), "unit": unit, "bench_unit": row.unit}
    if row.floor is not None:
        metadata["bench_floor"] = row.floor
    if row.target:
        metadata["bench_target"] = row.target
    values = [float(f"{sample * factor:.{_SIGNIFICANT}g}") or _ZERO for sample in row.samples]
    runs = [Run(part, metadata=metadata, collect_metadata=False) for part in _parts(values)]
    return Benchmark(runs)


def _parts(values: Sequence[float]) -> list[Sequence[float]]:
    """Cut into ``RUNS`` parts, or into single values if there are fewer."""
    parts = min(RUNS, len(values))
    bounds = [len(values) * i // parts for i in range(parts + 1)]
    return [values[start:end] for start, end in pairwise(bounds)]


def _row(benchmark: Benchmark) -> Row:
    metadata = benchmark.get_metadata()
    unit = metadata["bench_unit"]
    scale = 1e9 if benchmark.get_unit() == "second" else 1  # rows are made of nanoseconds
    samples = [value if value > _ZERO else 0.0 for value in benchmark.get_values()]
    made = row(benchmark.get_name(), unit, [sample * scale for sample in samples])
    return replace(made, floor=metadata.get("bench_floor"), target=metadata.get("bench_target", ""))
