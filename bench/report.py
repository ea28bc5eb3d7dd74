"""Rows of numbers: made from samples, printed as a table, written as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version

__all__ = [
    "HEADS",
    "Row",
    "cells",
    "describe_environment",
    "format_number",
    "print_rows",
    "print_table",
    "row",
    "rows_over",
    "to_json",
]

_UNITS = {
    "ns": 1,
    "runs": 1,
    "%": 1,
    "1/s": 1,
    "µs": 1e3,
    "ms": 1e6,
    "KiB": 1024,
    "MiB": 1 << 20,
}  # of ns, of bytes


@dataclass(frozen=True)
class Row:
    """What was measured; ``p50`` to ``floor`` are in ``unit``, ``floor`` is another row's p50."""

    what: str
    unit: str
    n: int
    p50: float
    p95: float
    p99: float
    floor: float | None
    target: str
    samples: tuple[float, ...] = field(default=(), repr=False)  # in the order they were taken

    @property
    def ratio(self) -> float | None:
        """p50 as a multiple of the floor."""
        return self.p50 / self.floor if self.floor else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the sample below which ``share`` of them lie (nearest rank)."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def row(
    what: str, unit: str, samples: Sequence[float], floor: Row | None = None, target: str = ""
) -> Row:
    """Make a row of samples in nanoseconds or bytes; ``unit`` is what it is shown in."""
    if not samples:
        raise RuntimeError(f"{what}: nothing was measured")
    taken = tuple(sample / _UNITS[unit] for sample in samples)
    ordered = sorted(taken)
    p50, p95, p99 = (percentile(ordered, share) for share in (0.50, 0.95, 0.99))
    return Row(what, unit, len(taken), p50, p95, p99, floor.p50 if floor else None, target, taken)


def rows_over(
    floor: str, unit: str, samples: Mapping[str, Sequence[float]], targets: Mapping[str, str]
) -> list[Row]:
    """Make a row of each, over the one named ``floor``; those without samples are left out."""
    lowest = row(floor, unit, samples[floor]) if samples.get(floor) else None
    rows = []
    for what, taken in samples.items():
        if what == floor and lowest:
            rows.append(lowest)
        elif taken:
            rows.append(row(what, unit, taken, lowest, targets.get(what, "")))
    return rows


def describe_environment() -> dict[str, object]:
    """Say what the numbers depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "libc": os.confstr("CS_GNU_LIBC_VERSION"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load": [round(load, 2) for load in os.getloadavg()],
        "uniflight_mp": version("uniflight-mp"),
    }


def _cpu_model() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def format_number(value: float | None) -> str:
    """Show a number with three digits or more."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def cells(row: Row) -> list[str]:
    """Return what stands under ``HEADS``."""
    numbers = [format_number(value) for value in (row.p50, row.p95, row.p99, row.floor, row.ratio)]
    return [row.unit, f"{row.n:,}", *numbers, row.target]


HEADS = ("unit", "n", "p50", "p95", "p99", "floor", "x floor", "target")


def print_rows(figure: str, rows: Sequence[Row]) -> None:
    """Print one figure's table."""
    print_table(figure, HEADS, {row.what: cells(row) for row in rows})


def print_table(title: str, heads: Sequence[str], lines: Mapping[str, Sequence[str]]) -> None:
    """Print lines of cells; the last cell is text, what it says may be long."""
    width = max(len(label) for label in [title, *lines]) + 1
    print()
    for label, line in {title: heads, **lines}.items():
        numbers = "".join(f"{cell:>10}" for cell in line[:-1])
        print(f"{label:<{width}}{numbers}  {line[-1]}".rstrip(), flush=True)


def to_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the rows as plain dictionaries, without their samples."""
    return [{**asdict(replace(line, samples=())), "ratio": line.ratio} for line in rows]
