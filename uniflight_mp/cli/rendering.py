"""Reports as a person reads them."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from .. import shmfile
from ..errors import show
from ..shmfile import SegmentName
from .identity import printable
from .reports import FlightReport, ProcessReport, TableReport

_ROWS_SHOWN: Final = 200  # of one grid; --json has them all


def new_console() -> Console:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(160, console.width)  # a folded line would be of no use to grep
    return console


_WORDS: Final = ("key", "table", "command", "name", "value", "marks")  # columns of text


def new_grid(title: str, *columns: str) -> Grid:
    grid = Grid(
        title=Text(title, style="bold") if title else None,
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for column in columns:
        if column in _WORDS:
            grid.add_column(column, overflow="fold", min_width=8)
        else:
            grid.add_column(column, justify="right", no_wrap=True)
    return grid


def _add(grid: Grid, *cells: object, style: str = "") -> None:
    # Text, never str: rich would read markup in a str.
    grid.add_row(*(Text(str(cell)) for cell in cells), style=style)


def size_of(count: int | None) -> str:
    if count is None:
        return "?"
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count:,} B"


def _or_unknown(value: object) -> str:
    return "?" if value is None else str(value)


def title_of(table: TableReport | SegmentName) -> str:
    scope = table.scope if table.scope != "PerHost" else ""
    return printable(table.name + (f"@{scope}@{table.partition}" if scope else ""), 200)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s"


def _when(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    try:
        return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):  # whatever the segment says
        return "?"


def render_list(reports: list[TableReport]) -> RenderableType:
    if not reports:
        return Text("This user has no tables.")
    columns = ("flights", "waiting", "processes", "size", "age", "creator", "marks")
    grid = new_grid("", "table", *columns)
    for report in reports:
        _add(
            grid,
            title_of(report),
            _or_unknown(report.flight_count),
            _or_unknown(report.follower_count),
            _or_unknown(report.process_count),
            size_of(report.bytes + report.extra_bytes),
            _duration(None if report.created is None else time.time() - report.created),
            _or_unknown(report.creator_pid),
            ", ".join(report.marks),
            style="yellow" if report.marks else "",
        )
    return grid


def render_table(report: TableReport) -> RenderableType:
    extra = ""
    if report.extra_segments:
        extra = f" and {size_of(report.extra_bytes)} in {report.extra_segments} extra segments"
    head = (
        f"Table {title_of(report)}: {size_of(report.bytes)}{extra}, "
        f"created {_when(report.created)} by pid {_or_unknown(report.creator_pid)}"
    )
    parts: list[RenderableType] = [Text(head, style="bold"), Text(shmfile.path_of(report.segment))]
    parts += [Text(MARKS[mark], style="yellow") for mark in report.marks]
    if report.detail:
        parts.append(Text(report.detail, style="yellow"))
    if report.flights is not None:
        parts.append(_render_flights(report.flights))
    if report.processes is not None:
        parts.append(_render_processes(report.processes))
    if report.counters is not None:
        parts.append(_render_numbers(report))
    return Group(*parts)


MARKS: Final = {
    "damaged": "Damaged: calls run alone until the next process that opens it replaces it.",
    "foreign_pid_namespace": "Of another PID namespace: its pids mean nothing here, and its "
    "processes do not coalesce with those of this namespace.",
    "other_layout": "Of another version of uniflight-mp or libc: it cannot be read here.",
    "unreadable": "Cannot be read:",
    "gone": "It was removed while it was looked at.",
}


def _render_flights(flights: list[FlightReport]) -> RenderableType:
    if not flights:
        return Text("No flights.")
    numbers = ("state", "age", "leader", "waiting", "takeovers", "result")
    grid = new_grid("Flights", "key", *numbers, "command")
    for flight in flights[:_ROWS_SHOWN]:
        is_json = flight.key_type in ("str", "int", "float", "bool", "NoneType")
        leader_is = "" if flight.leader_state == "alive" else f" ({flight.leader_state})"
        _add(
            grid,
            show(flight.key, 100) if is_json else flight.key,
            flight.state + (", forgotten" if flight.forgotten else ""),
            _duration(flight.age),
            f"{flight.leader_pid}{leader_is}",
            flight.followers,
            flight.takeovers,
            size_of(flight.result_bytes) if flight.state == "done" else "",
            flight.leader_command,
            style="" if flight.leader_state == "alive" else "yellow",
        )
    return _with_rest(grid, len(flights))


def _render_processes(processes: list[ProcessReport]) -> RenderableType:
    living = [process for process in processes if process.state not in ("dead", "zombie")]
    left = sum(process.threads for process in processes if process not in living)
    parts: list[RenderableType] = []
    if living:
        grid = new_grid("Processes", "pid", "state", "threads", "leads", "command")
        for process in living[:_ROWS_SHOWN]:
            cells = (process.pid, process.state, process.threads, process.leads, process.command)
            _add(grid, *cells, style="" if process.state == "alive" else "yellow")
        parts.append(_with_rest(grid, len(living)))
    else:
        parts.append(Text("No living process uses it."))
    if left:
        parts.append(Text(f"{left} records of dead threads are there for the next ones to use."))
    return Group(*parts)


def _render_numbers(report: TableReport) -> RenderableType:
    grid = new_grid("Counters since creation, and room", "name", "value")
    for name, value in (report.counters or {}).items():
        if name == "solo":
            value = ", ".join(f"{why} {count}" for why, count in value.items() if count) or 0
        _add(grid, name, value)
    for name, limit in (report.limits or {}).items():
        used = (report.in_use or {}).get(name)
        _add(grid, f"limit of {name}", f"{limit:,}" + ("" if used is None else f", {used} in use"))
    return grid


def _with_rest(grid: Grid, count: int) -> RenderableType:
    if count <= _ROWS_SHOWN:
        return grid
    return Group(grid, Text(f"… and {count - _ROWS_SHOWN} more: --json lists all"))
