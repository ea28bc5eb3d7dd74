"""``python -m bench.document``: writes ``docs/benchmarks.md`` and its pictures from saved results.

    python -m bench.document               of the last run
    python -m bench.document --of NAME     of what was kept as NAME

Nothing is measured; what is not among the results is not in the document.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pyperf import BenchmarkSuite

from . import saved
from .__main__ import FIGURES
from .plots import Line, draw_distributions, draw_lines
from .report import HEADS, Row, cells

DOCS = Path(__file__).resolve().parent.parent / "docs"
_DIRECTORY = "benchmarks"  # of the pictures, beside the document

_INTRODUCTION = """\
# Benchmarks

Written by `make bench-report` from the results of `make bench`; do not edit. The numbers by
themselves mean little on another machine: the ratios to the floors and to the rivals, which come
from the same run, are what counts. A `floor` is the mechanism below, without uniflight-mp;
`x floor` is p50 divided by it; a target is for p50 if nothing else is said. How to run a part of
it, keep results and compare with them: `python -m bench --help`.
"""

_MACHINE = {
    "processor": "bench_cpu",
    "cores": "bench_cores",
    "system": "platform",
    "libc": "bench_libc",
    "Python": "bench_python",
    "frequency": "cpu_freq",
    "load before": "bench_load",
    "uniflight-mp": "bench_uniflight_mp",
    "measured": "date",
}

_WAKE_UP = (
    Line("blocked threads", "uniflight-mp: slowest of {} threads"),
    Line("event loops", "uniflight-mp: slowest of {} loops"),
    Line("floor: sem_post, C", "floor: sem_post -> slowest of {} awake, C"),
    Line("floor: datagrams, C", "floor: datagrams -> slowest of {} awake, C"),
)
_OVERHEAD = (
    Line("uniflight-mp", "uniflight-mp: slowest of {} callers in {} processes"),
    Line("flock + file", "rival: flock + file: slowest of {} callers in {} processes"),
    Line(
        "floor: sem_post, C",
        "floor: sem_post -> slowest awake, C: slowest of {} callers in {} processes",
    ),
)
_TAKEOVER = {
    "uniflight-mp": "uniflight-mp, leader with 2 MiB",
    "uniflight-mp, a zombie": "uniflight-mp, leader a zombie",
    "uniflight-mp, 1 GiB": "uniflight-mp, leader with 1 GiB",
    "flock + file": "rival: flock + file, leader with 2 MiB",
    "floor: robust mutex, C": "floor: robust mutex handed over, C, leader with 2 MiB",
}


def _draw_wake_up(path: Path, rows: Sequence[Row]) -> None:
    draw_lines(path, rows, _WAKE_UP, "followers, each in a process of its own")


def _draw_overhead(path: Path, rows: Sequence[Row]) -> None:
    draw_lines(path, rows, _OVERHEAD, "processes that want one key")


def _draw_takeover(path: Path, rows: Sequence[Row]) -> None:
    by_label = {row.what: row for row in rows}
    shown = {name: by_label[label] for name, label in _TAKEOVER.items() if label in by_label}
    draw_distributions(path, shown, "SIGKILL of the leader to its successor's function")


class _Picture(NamedTuple):
    """A picture of a figure's rows, and what stands below it."""

    draw: Callable[[Path, Sequence[Row]], None]
    caption: str


_PICTURES = {
    "wake_up_crowd": _Picture(
        _draw_wake_up,
        "From the end of the function to the last follower; medians, band to the p95.",
    ),
    "wake_up": _Picture(
        _draw_overhead,
        "What the slowest of some processes takes over the function's own time; medians, band to "
        "the p95.",
    ),
    "takeover": _Picture(_draw_takeover, "From a leader's death to its successor's function."),
}


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| | {' | '.join(HEADS)} |"
    yield f"|---|---|{'---:|' * (len(HEADS) - 2)}---|"
    for row in rows:
        yield f"| {row.what} | {' | '.join(cells(row))} |"


def _section(figure: str, rows: Sequence[Row]) -> Iterator[str]:
    yield from (f"## {figure}", "", inspect.getdoc(sys.modules[FIGURES[figure].__module__]), "")
    if picture := _PICTURES.get(figure):
        picture.draw(DOCS / _DIRECTORY / f"{figure}.svg", rows)
        yield from (f"![{picture.caption}]({_DIRECTORY}/{figure}.svg)", "", picture.caption, "")
    yield from (*_table(rows), "")


def _lines(suites: Mapping[str, BenchmarkSuite]) -> Iterator[str]:
    yield _INTRODUCTION
    machine = next(iter(suites.values())).get_metadata()
    for what, name in _MACHINE.items():
        yield f"- {what}: {machine.get(name, 'unknown')}"
    yield ""
    for figure, suite in suites.items():
        yield from _section(figure, saved.rows(suite))


def main() -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(prog="python -m bench.document", description=__doc__)
    parser.add_argument("--of", metavar="NAME", default=saved.LAST, help="which saved results")
    name = parser.parse_args().of
    loaded = {figure: saved.load(name, figure) for figure in FIGURES}
    suites = {figure: suite for figure, suite in loaded.items() if suite}
    if not suites:
        parser.error(f"no results are kept as {name}: run python -m bench first")
    (DOCS / _DIRECTORY).mkdir(exist_ok=True)
    (DOCS / "benchmarks.md").write_text("\n".join(_lines(suites)).rstrip() + "\n")


if __name__ == "__main__":
    main()
