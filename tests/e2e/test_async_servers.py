"""The example applications under servers whose workers serve many requests in one thread.

Connections are kept, and each is known to be one worker's, so that it is certain who has how many
requests; the backend holds its answer until every worker tells that all of its own wait. In the
table a worker counts once, however many of its requests wait (``FlightInfo.followers``).
"""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from gunicorn_server import (
    Backend,
    Gunicorn,
    Line,
    Reply,
    Server,
    TableView,
    Uvicorn,
    lines_to_each,
    wait_until,
)

from uniflight_mp import Merger

pytest.importorskip("gevent", reason="gevent is not installed")
pytest.importorskip("uvicorn_worker", reason="uvicorn-worker is not installed")

KEEP = ("--keep-alive", "60", "--timeout", "60")
GEVENT = ("-k", "gevent", "--worker-connections", "1000", *KEEP)
UVICORN_WORKER = ("-k", "uvicorn_worker.UvicornWorker", *KEEP)


@dataclass
class Kind:
    """A way to run an application in workers that have one thread each."""

    server: type[Server]
    app: str
    options: tuple[str, ...]


KINDS = {
    "gevent": Kind(Gunicorn, "probed_wsgi", GEVENT),
    "gevent-preload": Kind(Gunicorn, "probed_wsgi", (*GEVENT, "--preload")),
    "uvicorn-worker": Kind(Gunicorn, "probed_asgi:app", UVICORN_WORKER),
    "uvicorn-worker-preload": Kind(Gunicorn, "probed_asgi:app", (*UVICORN_WORKER, "--preload")),
    "uvicorn": Kind(Uvicorn, "probed_asgi:app", ("--timeout-keep-alive", "60")),
}


@pytest.fixture
def serve(tmp_path: Path, table_name: str, backend: Backend) -> Iterator[Callable[..., Server]]:
    """``serve(kind, workers)``: start a server; at the end all stop, and the table is empty."""
    started: list[Server] = []

    def start(kind: Kind, workers: int) -> Server:
        options = ("--workers", str(workers), *kind.options)
        started.append(kind.server(tmp_path, table_name, backend, *options, app=kind.app))
        started[-1].wait_until_ready()
        return started[-1]

    yield start
    backend.release()
    try:
        exit_codes = [server.stop() for server in started]
    finally:
        for server in started:
            print(server.log())  # pytest shows it if the test failed
    # uvicorn without a supervisor ends itself by the signal that it was sent, after its shutdown.
    assert set(exit_codes) <= {0, -signal.SIGTERM}
    TableView(table_name).check_empty_after_sweep()


@pytest.fixture
def lines() -> Iterator[dict[int, list[Line]]]:
    """The connections of each worker; closed before the servers stop."""
    lines: dict[int, list[Line]] = {}
    yield lines
    for line in every(lines):
        line.close()


def every(lines: dict[int, list[Line]]) -> list[Line]:
    return [line for kept in lines.values() for line in kept]


def send(lines: dict[int, list[Line]], path: str) -> None:
    """Send a request on each line but the last of each worker, which is for questions."""
    for kept in lines.values():
        for line in kept[:-1]:
            line.send(path)


def wait_until_all_wait(lines: dict[int, list[Line]], leader_pid: int) -> None:
    """Return when each worker tells that all its requests wait, but the one that leads."""
    for pid, kept in lines.items():
        expected = len(kept) - 1 - (pid == leader_pid)
        wait_until(
            lambda line=kept[-1], n=expected: line.ask("/waiting").value == {"waiting": n},
            lambda line=kept[-1], n=expected: f"{n} wait in one worker: {line.ask('/waiting')}",
        )


def receive(lines: dict[int, list[Line]]) -> list[Reply]:
    return [line.receive() for kept in lines.values() for line in kept[:-1]]


def assert_all_got(replies: list[Reply], sku: str, serial: int) -> None:
    assert [(reply.status, reply.value, reply.error) for reply in replies] == [
        (200, {"sku": sku, "serial": serial}, "")
    ] * len(replies)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_40_concurrent_requests_over_4_workers_reach_the_backend_once(
    kind: Kind, serve: Callable[..., Server], lines, backend: Backend, table_name: str
):
    lines |= lines_to_each(serve(kind, 4), 11, workers=4)
    table = TableView(table_name)
    for round_ in range(1, 6):
        backend.hold()
        send(lines, "/role/1")
        flight = table.wait_for_followers("1", 3)
        wait_until_all_wait(lines, flight.leader_pid)
        backend.release()
        replies = receive(lines)
        assert_all_got(replies, "1", round_)
        assert sorted(reply.role for reply in replies) == ["follower"] * 39 + ["leader"]
        assert len(backend.requests) == round_
        table.check_empty()
    stats = Merger(table_name).stats()
    assert (stats.leaders, stats.takeovers) == (5, 0)
    assert not any(stats.solo.values())


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_when_the_leaders_worker_is_killed_the_others_get_the_value_by_one_takeover(
    kind: Kind, serve: Callable[..., Server], lines, backend: Backend, table_name: str
):
    server = serve(kind, 4)
    lines |= lines_to_each(server, 11, workers=4)
    table = TableView(table_name)
    backend.hold()
    send(lines, "/role/1")
    leader_pid = table.wait_for_followers("1", 3).leader_pid
    wait_until_all_wait(lines, leader_pid)
    wait_until(lambda: len(backend.requests) == 1, "the leader asks the backend")
    lost = {leader_pid: lines.pop(leader_pid)}

    os.kill(leader_pid, signal.SIGKILL)
    wait_until(lambda: len(backend.requests) == 2, "a follower asks the backend anew")
    second = table.wait_for_followers("1", 2)
    assert second.takeovers == 1
    assert second.leader_pid in lines
    backend.release()

    replies = receive(lines)
    assert_all_got(replies, "1", 2)
    assert sorted(reply.role for reply in replies) == ["follower"] * 29 + ["leader"]
    assert len(backend.requests) == 2
    assert {reply.status for reply in receive(lost)} == {0}
    table.check_empty()
    wait_until(lambda: leader_pid not in server.workers(), "the dead worker is reaped")
    fresh = lines_to_each(server, 3, workers=4)  # the one that replaces it included
    backend.hold()
    send(fresh, "/price/2")
    wait_until_all_wait(fresh, table.wait_for_followers("2", 3).leader_pid)
    backend.release()
    assert_all_got(receive(fresh), "2", 3)
    for line in every(fresh):
        line.close()


@pytest.mark.parametrize("kind", [KINDS["gevent"], KINDS["uvicorn"]], ids=["gevent", "uvicorn"])
def test_a_worker_serves_other_routes_while_500_of_its_requests_wait(
    kind: Kind, serve: Callable[..., Server], lines, backend: Backend, table_name: str, capsys
):
    lines |= lines_to_each(serve(kind, 1), 501, workers=1)
    (kept,) = lines.values()
    table = TableView(table_name)
    backend.hold()
    other = Merger(table_name)  # the leader is another process: this one

    def function() -> dict[str, object]:
        send(lines, "/role/1")
        assert table.wait_for_followers("1", 1).leader_pid == os.getpid()
        wait_until_all_wait(lines, os.getpid())
        times.extend(round_trip(kept[-1]) for _ in range(300))
        return {"sku": "1", "serial": 0}

    times: list[float] = []
    outcome = other.flight("price:1", function)
    assert outcome.followers == 1
    assert_all_got(receive(lines), "1", 0)
    assert backend.requests == []
    times.sort()
    with capsys.disabled():
        median, p99 = statistics.median(times), times[int(len(times) * 0.99)]
        print(f"\n500 wait, another route: median {median:.2f} ms, p99 {p99:.2f} ms ", end="")
    # What is promised is a p99 below 20 ms. A neighbour that takes the CPU from a worker for a
    # time slice or two costs as much, here as without waiting requests; it does not move the
    # median, which a loop that is blocked, or busy with those that wait, does.
    assert median < 20


def round_trip(line: Line) -> float:
    """Ask for a route that waits for nothing; return milliseconds."""
    reply = line.ask("/")
    assert reply.status == 404
    return (reply.ended - reply.started) * 1000


@pytest.mark.parametrize("leading", ["sync", "gevent", "uvicorn"])
def test_sync_gevent_and_uvicorn_servers_on_one_table_reach_the_backend_once(
    leading: str, serve: Callable[..., Server], lines, backend: Backend, table_name: str
):
    sync = serve(Kind(Gunicorn, "gunicorn_app", ()), 2)
    servers = {name: serve(KINDS[name], 2) for name in ("gevent", "uvicorn")}
    kept = {name: lines_to_each(server, 6, workers=2) for name, server in servers.items()}
    for of_server in kept.values():
        lines |= of_server
    table = TableView(table_name)
    backend.hold()
    # A sync worker serves one request at a time: two requests are both workers'.
    askers = [Line(sync.port), Line(sync.port)]
    if leading == "sync":
        askers[0].send("/role/1")
    else:
        next(iter(kept[leading].values()))[0].send("/role/1")
    leader = table.wait_for_followers("1", 0)
    assert leader.leader_pid in (sync if leading == "sync" else servers[leading]).workers()
    for line in [*askers, *(line for kept in lines.values() for line in kept[:-1])]:
        if not line.is_waiting():
            line.send("/role/1")
    table.wait_for_followers("1", 5)
    wait_until_all_wait(lines, leader.leader_pid)
    backend.release()

    replies = [*receive(lines), *(line.receive() for line in askers)]
    assert len(replies) == 22
    assert_all_got(replies, "1", 1)
    assert sorted(reply.role for reply in replies) == ["follower"] * 21 + ["leader"]
    assert len({reply.worker_pid for reply in replies}) == 6
    assert backend.requests == ["1"]
    table.check_empty()
    for line in askers:
        line.close()
