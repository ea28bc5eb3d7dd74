"""A table, seen from outside: its flights and its counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from .core import Table, shm
from .keys import decode_key

__all__ = ["FlightInfo", "FlightRow", "Stats", "read_flights", "read_stats"]


class FlightRow(NamedTuple):
    """One row of ``Table.flights()``; the key is encoded."""

    key: bytes
    state: str
    leader_pid: int
    leader_thread: int
    leader_start_time: int
    age: float
    followers: int
    takeovers: int
    result_bytes: int
    attached: bool
    leaderless: bool
    slot: int
    generation: int
    epoch: int


@dataclass(frozen=True)
class FlightInfo:
    """One flight, as it was when it was looked at.

    ``key``: the key; a description in words if it was longer than the table keeps, or an enum.
    ``state``: ``"running"``, ``"orphaned"`` (its leader gave up, a follower is about to lead) or
    ``"done"`` (followers are still fetching the result).
    ``leader_pid``, ``leader_thread``: process and kernel thread id of the leader.
    ``age``: seconds since the flight began, takeovers included.
    ``result_bytes``: size of the encoded result, 0 before there is one.
    """

    key: object
    state: str
    leader_pid: int
    leader_thread: int
    age: float
    followers: int
    takeovers: int
    result_bytes: int


@dataclass(frozen=True)
class Stats:
    """Counters of a whole table, all its processes, since its creation.

    ``leaders``: leaderships begun, takeovers included. ``followers``: calls that received a
    leader's value or exception. ``solo``: calls that ran alone, by reason. ``failures``: flights
    that ended with an exception. ``timeouts``: callers that gave up waiting. ``fenced``: results
    of leaders that had been superseded. ``published_bytes``: encoded results, in bytes.

    Counters are read one by one without stopping the table, so they need not add up while
    calls are under way.
    """

    leaders: int
    followers: int
    solo: Mapping[str, int]
    takeovers: int
    failures: int
    timeouts: int
    fenced: int
    published_bytes: int


def read_flights(*tables: Table) -> list[FlightInfo]:
    """List the flights in the tables, the oldest first. Takes no lock."""
    rows = (FlightRow(*row) for table in tables for row in table.flights())
    flights = [
        FlightInfo(
            key=decode_key(row.key),
            state=row.state,
            leader_pid=row.leader_pid,
            leader_thread=row.leader_thread,
            age=row.age,
            followers=row.followers,
            takeovers=row.takeovers,
            result_bytes=row.result_bytes,
        )
        for row in rows
    ]
    return sorted(flights, key=lambda flight: -flight.age)


def read_stats(*tables: Table) -> Stats:
    """Add up the counters of the tables. Takes no lock."""
    totals = [table.totals() for table in tables]
    leaders, followers, takeovers, failures, timeouts, fenced, published = (
        sum(column) for column in islice(zip(*totals, strict=True), 7)
    )
    solo = (sum(column) for column in zip(*(row[7] for row in totals), strict=True))
    return Stats(
        leaders=leaders,
        followers=followers,
        solo=dict(zip(shm.SOLO_REASONS, solo, strict=True)),
        takeovers=takeovers,
        failures=failures,
        timeouts=timeouts,
        fenced=fenced,
        published_bytes=published,
    )
