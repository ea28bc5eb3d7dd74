"""What ``inspect`` knows about tables, and prints as it is with ``--json``.

Looking must be harmless, as it is done while something is wrong: tables are mapped for reading
only, no lock is taken, and nobody is asked but ``/proc``.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import click

from .. import segment, shmfile
from ..core import Table, is_built, missing, shm, why_missing
from ..errors import TableUnavailable, UniflightError, show
from ..keys import decode_key, encode_key
from ..results import extra_segments
from ..shmfile import SegmentName
from ..stats import FlightRow, read_stats
from . import identity
from .identity import printable


@dataclass(frozen=True)
class FlightReport:
    """One flight; the fields are those of the JSON document."""

    key: str | int | float | bool | None
    key_type: str
    state: str
    forgotten: bool
    leader_pid: int
    leader_thread: int
    leader_state: str
    leader_command: str
    age: float
    followers: int
    takeovers: int
    result_bytes: int


@dataclass(frozen=True)
class ProcessReport:
    """One process that uses a table, or left a record in it when it died."""

    pid: int
    state: str
    threads: int
    leads: int
    command: str


@dataclass
class TableReport:
    """One table; the lists and dicts are None unless it was asked for by name."""

    name: str
    scope: str
    partition: str
    segment: str
    marks: list[str]
    detail: str
    bytes: int
    extra_segments: int
    extra_bytes: int
    created: float | None = None
    creator_pid: int | None = None
    flight_count: int | None = None
    follower_count: int | None = None
    process_count: int | None = None
    flights: list[FlightReport] | None = None
    processes: list[ProcessReport] | None = None
    counters: dict[str, Any] | None = None
    limits: dict[str, int] | None = None
    in_use: dict[str, int] | None = None


@dataclass(frozen=True)
class Found:
    """A table's file, and who has it mapped for writing."""

    name: SegmentName
    size: int
    mapped_by: frozenset[int] = field(default_factory=frozenset)

    @property
    def is_foreign(self) -> bool:
        return self.name.namespace != identity.pid_namespace()

    @property
    def is_other_layout(self) -> bool:
        return self.name.layout != shm.format()


def find(name: str | None) -> list[Found]:
    """List this user's tables, or those of one name in all partitions, layouts and namespaces."""
    if not is_built():
        raise TableUnavailable("unsupported", why_missing(), name or "") from missing
    files: dict[SegmentName, os.stat_result] = {}
    for segment_name in shmfile.find_segments(name):
        try:
            files[segment_name] = os.stat(shmfile.path_of(segment_name.segment))
        except OSError:  # removed in this moment
            continue
    where = {found: (status.st_dev, status.st_ino) for found, status in files.items()}
    # Before anything is mapped here, or this process would count itself among the users.
    users = identity.pids_that_map(where.values(), shmfile.PREFIX)
    return [
        Found(found, status.st_size, frozenset(users[where[found]]))
        for found, status in files.items()
    ]


def find_named(name: str) -> list[Found]:
    """List the tables of one name.

    Raises:
        click.ClickException: there is none; the text names those that there are.
    """
    tables = find(name)
    if not tables:
        others = sorted({found.name for found in shmfile.find_segments()})
        known = f"; there are: {', '.join(others[:20])}" if others else "; there are none"
        raise click.ClickException(f"this user has no table named {name!r}{known}")
    return tables


def report_on(found: Found, details: bool) -> TableReport:
    extras = _sizes_of_extras(found.name.segment)
    report = TableReport(
        name=found.name.name,
        scope=found.name.scope or "PerHost",
        partition=found.name.partition,
        segment=found.name.segment,
        marks=["foreign_pid_namespace"] if found.is_foreign else [],
        detail="",
        bytes=found.size,
        extra_segments=len(extras),
        extra_bytes=sum(extras),
    )
    if found.is_other_layout:
        report.marks.append("other_layout")
        report.process_count = len(found.mapped_by)
        return report
    try:
        table = segment.attach_read_only(found.name.segment, found.name.name)
    except (UniflightError, OSError) as error:
        report.marks.append("unreadable")
        report.detail = printable(str(error), 500)
        return report
    if table is None:
        report.marks.append("gone")
        return report
    _fill(report, table, found, details)
    return report


def _fill(report: TableReport, table: Table, found: Found, details: bool) -> None:
    if table.damaged:
        report.marks.append("damaged")
    geometry = table.geometry()
    report.created = geometry["created_ns"] / 1e9
    report.creator_pid = geometry["creator_pid"]
    rows = sorted((FlightRow(*row) for row in table.flights()), key=lambda row: -row.age)
    processes = _processes(table, found, rows)
    report.flight_count = len(rows)
    report.follower_count = sum(row.followers for row in rows)
    report.process_count = sum(process.state not in ("dead", "zombie") for process in processes)
    if not details:
        return
    report.flights = [_flight(row, found) for row in rows]
    report.processes = processes
    stats = read_stats(table)
    report.counters = {**vars(stats), "solo": dict(stats.solo)}
    report.limits = {
        "flights": geometry["flights"],
        "waiters": geometry["asked_waiters"],
        "waiters_per_group": geometry["waiters_per_group"],
        "threads": geometry["threads"],
        "inline_bytes": geometry["inline_bytes"],
        "result_bytes": geometry["result_bytes"],
    }
    report.in_use = dict(zip(("flights", "waiters", "threads"), table.usage(), strict=True))


def _processes(table: Table, found: Found, rows: list[FlightRow]) -> list[ProcessReport]:
    """List who has a record in the table or its file mapped; the living first."""
    records = Counter((pid, started) for pid, _, started in table.threads())
    leads = Counter(row.leader_pid for row in rows if row.state == "running")
    if not found.is_foreign:
        for pid in found.mapped_by - {pid for pid, _ in records}:
            records[pid, 0] = 0
    reports = []
    for (pid, started), threads in records.items():
        process = look_up(pid, started, found)
        leading = 0 if process.is_dead else leads[pid]
        reports.append(ProcessReport(pid, process.state, threads, leading, process.command))
    return sorted(reports, key=lambda report: (report.state in ("dead", "zombie"), report.pid))


def look_up(pid: int, started: int, found: Found) -> identity.Process:
    # A pid of another namespace says nothing here: somebody else has that number.
    return identity.Process(pid, "unknown") if found.is_foreign else identity.look_up(pid, started)


def _flight(row: FlightRow, found: Found) -> FlightReport:
    leader = look_up(row.leader_pid, row.leader_start_time, found)
    leader_state = leader.state
    if leader_state == "alive" and identity.thread_is_gone(row.leader_pid, row.leader_thread):
        leader_state = "dead"
    key, key_type = _key_for_json(row.key)
    return FlightReport(
        key=key,
        key_type=key_type,
        state=row.state,
        forgotten=not row.attached and row.state != "done",
        leader_pid=row.leader_pid,
        leader_thread=row.leader_thread,
        leader_state=leader_state,
        leader_command=leader.command,
        age=row.age,
        followers=row.followers,
        takeovers=row.takeovers,
        result_bytes=row.result_bytes,
    )


def _key_for_json(data: bytes) -> tuple[str | int | float | bool | None, str]:
    """Return a key as JSON where JSON has its type, else as text; and its type's name."""
    key = decode_key(data)
    try:
        is_the_key = encode_key(key) == data
    except (TypeError, ValueError):
        is_the_key = False
    if not is_the_key:  # an enum or a long key, of which the table keeps no more than it shows
        return printable(str(key), 200), "description"
    if key is None or type(key) in (str, bool, int):
        return key, type(key).__name__  # type: ignore[return-value]
    if type(key) is float and math.isfinite(key):
        return key, "float"
    return show(key, 200), type(key).__name__


def _sizes_of_extras(name: str) -> list[int]:
    sizes = []
    for extra in extra_segments(name):
        try:
            sizes.append(os.stat(shmfile.path_of(extra)).st_size)
        except OSError:  # its last follower has left
            continue
    return sizes
