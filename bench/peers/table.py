"""The table: a line for a contender, a column for a measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..report import Row

__all__ = ["COLUMNS", "print_table"]

# Heading, the measure's name in ``Row.what``, the field of the row.
COLUMNS = (
    ("call µs", "uncontended call", "p50"),
    ("wake µs", "wake-up", "p50"),
    ("p99", "wake-up", "p99"),
    ("runs/8pr", "runs for 8 processes", "p50"),
    ("worst", "runs for 8 processes", "p99"),
    ("runs/8th", "runs for 8 threads", "p50"),
    ("worst", "runs for 8 threads", "p99"),
    ("takeover ms", "takeover", "p50"),
    ("calls/s", "calls by 2 processes", "p50"),
    ("runs/1000", "runs per 1,000 keys", "p50"),
    ("at once", "overlapping runs per 1,000 keys", "p50"),
    ("KiB", "memory", "p50"),
)


def print_table(figure: str, rows: Sequence[Row]) -> None:
    """Print the rows of all contenders, one line each, and below what there is to remark."""
    by_contender: dict[str, dict[str, Row]] = {}
    for line in rows:
        contender, _, measure = line.what.rpartition(": ")
        by_contender.setdefault(contender, {})[measure] = line
    width = max(map(len, by_contender)) + 1
    print(f"\n{figure:<{width}}" + _columns(head for head, _, _ in COLUMNS))
    for contender, measured in by_contender.items():
        print(f"{contender:<{width}}" + _columns(_cells(measured)))
    for line in rows:
        if line.target:
            print(f"* {line.what}: {line.target}")


def _columns(cells: Iterable[str]) -> str:
    return "".join(f"{cell:>12}" for cell in cells)


def _cells(measured: dict[str, Row]) -> list[str]:
    return [
        _cell(measured[measure], field) if measure in measured else "-"
        for _, measure, field in COLUMNS
    ]


def _cell(row: Row, field: str) -> str:
    value = getattr(row, field)
    number = f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
    return number + ("*" if row.target else "")
