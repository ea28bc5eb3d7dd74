"""What the tests of real servers need: a backend that answers when told, the servers themselves,
clients, and a look at the table from outside."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from uniflight_mp import FlightInfo, Merger
from uniflight_mp.segment import attach_read_only
from uniflight_mp.shmfile import segment_name
from uniflight_mp.stats import read_flights

HERE = Path(__file__).resolve().parent
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PATIENCE = 20.0  # seconds; only a broken test waits for so long, and the application longer


def wait_until(condition: Callable[[], object], what: Callable[[], str] | str) -> None:
    """Return once ``condition()`` is true, or fail and say what did not happen."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {PATIENCE:g} s: {what if isinstance(what, str) else what()}"
            )
        time.sleep(0.002)


class Backend:
    """Counts the requests it gets, and answers when the test says so.

    Each answer has a serial number, so that a value tells which request it is from.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []  # the sku of each, in order of arrival
        self.work = 0.0  # seconds that an answer takes, held or not
        self.status = 200
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        backend = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                backend._answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def hold(self) -> None:
        """Let requests from now on wait until ``release``."""
        self._open.clear()

    def release(self) -> None:
        """Answer the held requests, and later ones at once."""
        self._open.set()

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        sku = handler.path.rpartition("/")[2]
        with self._lock:
            self.requests.append(sku)
            serial = len(self.requests)
        status = self.status
        if not self._open.wait(2 * PATIENCE):
            status = 503
        time.sleep(self.work)
        body = json.dumps({"sku": sku, "serial": serial}).encode()
        try:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        except OSError:
            pass  # the worker that asked was killed


@dataclass
class Reply:
    """How one request ended, as its client saw it."""

    started: float
    ended: float = 0.0
    status: int = 0  # 0: no answer
    value: dict[str, object] = field(default_factory=dict)
    worker_pid: int = 0
    role: str = ""
    error: str = ""


def ask(port: int, path: str) -> Reply:
    """Send one request on a connection of its own."""
    reply = Reply(started=time.monotonic())
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2 * PATIENCE)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
    except (OSError, http.client.HTTPException) as error:
        reply.error, reply.ended = repr(error), time.monotonic()
    else:
        _receive(connection, reply)
    finally:
        connection.close()
    return reply


def _receive(connection: http.client.HTTPConnection, reply: Reply) -> None:
    """Fill in how the request ended."""
    try:
        response = connection.getresponse()
        body = response.read()
        reply.status = response.status
        reply.worker_pid = int(response.headers.get("X-Worker-Pid", 0))
        reply.role = response.headers.get("X-Uniflight-Role", "")
        if response.headers.get("Content-Type") == "application/json":
            reply.value = json.loads(body)
    except (OSError, http.client.HTTPException) as error:
        reply.error = repr(error)
    finally:
        reply.ended = time.monotonic()


class Clients:
    """Threads that send requests, all that are asked for at the same time."""

    def __init__(self, port: int, threads: int = 64) -> None:
        self._port = port
        self._pool = ThreadPoolExecutor(threads)

    def send(self, *paths: str) -> list[Future[Reply]]:
        return [self._pool.submit(ask, self._port, path) for path in paths]

    def close(self) -> None:
        self._pool.shutdown()


class Line:
    """A connection that is kept, so that one worker gets all its requests."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2 * PATIENCE)
        self._reply = Reply(started=0.0, ended=0.0)

    def is_waiting(self) -> bool:
        """Whether a request was sent whose answer was not received."""
        return self._reply.started > self._reply.ended

    def send(self, path: str) -> None:
        """Send a request, and do not wait for its answer."""
        self._reply = Reply(started=time.monotonic())
        self._connection.request("GET", path)

    def receive(self) -> Reply:
        """Wait for the answer to the last request."""
        _receive(self._connection, self._reply)
        return self._reply

    def ask(self, path: str) -> Reply:
        self.send(path)
        return self.receive()

    def close(self) -> None:
        self._connection.close()


def lines_to_each(server: Server, count: int, workers: int) -> dict[int, list[Line]]:
    """Connect so many times to each worker of an idle server that keeps connections.

    Whoever is awake accepts. So all workers but one are stopped while it gets its connections.
    """
    wait_until(lambda: len(server.workers()) == workers, "all workers are there")
    pids = sorted(server.workers())
    wait_until(lambda: _all_serve(server, pids), "all workers serve")
    lines: dict[int, list[Line]] = {}
    for pid in pids:
        with _stopped(set(pids) - {pid}):
            lines[pid] = [Line(server.port) for _ in range(count)]
            assert {line.ask("/").worker_pid for line in lines[pid]} == {pid}
    return lines


def _all_serve(server: Server, pids: list[int]) -> bool:
    """Whether each worker answers: one that is still starting takes nothing while others do."""
    for pid in pids:
        with _stopped(set(pids) - {pid}):
            line = Line(server.port)
            line._connection.timeout = 1.0
            answered = line.ask("/").worker_pid == pid
            line.close()
        if not answered:
            return False
    return True


@contextlib.contextmanager
def _stopped(pids: set[int]) -> Iterator[None]:
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(_is_stopped(pid) for pid in pids), "the others are stopped")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


class Load:
    """Clients that ask for one of a few prices, again and again, until stopped."""

    def __init__(self, port: int, clients: int = 8, skus: int = 3) -> None:
        self.replies: list[Reply] = []
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(port, f"/role/{i % skus}"))
            for i in range(clients)
        ]

    def _run(self, port: int, path: str) -> None:
        while not self._stopped.is_set():
            self.replies.append(ask(port, path))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()


class TableView:
    """The table from outside, mapped for reading only.

    Merger.flights() would sweep what dead processes left; here nobody helps the workers.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        table = attach_read_only(segment_name(name), name)
        assert table is not None, f"no worker has opened the table {name}"
        self._table = table

    def flights(self) -> list[FlightInfo]:
        return read_flights(self._table)

    def wait_for_followers(self, sku: str, count: int) -> FlightInfo:
        """Return the flight of a price, once so many wait for its leader."""
        found: list[FlightInfo] = []

        def reached() -> bool:
            found[:] = [flight for flight in self.flights() if flight.key == f"price:{sku}"]
            return [flight.followers for flight in found] == [count]

        wait_until(reached, lambda: f"price:{sku} has {count} followers; flights: {found}")
        return found[0]

    def check_empty(self) -> None:
        """Fail if a flight or a waiter's cell is in use."""
        assert self.flights() == []
        slots, cells, _threads = self._table.usage()
        assert (slots, cells) == (0, 0)

    def check_empty_after_sweep(self) -> None:
        """The same, after one open has swept what the dead left; and the table is sound."""
        with Merger(self.name) as merger:
            assert merger.flights() == []
            assert merger._segment.table.check() is None
        self.check_empty()


class Server:
    """A real server with an example application, in a process group of its own."""

    command: tuple[str, ...]  # what `python -m` gets before the options
    announcement: str  # what stands before the port in the log

    def __init__(
        self, directory: Path, table: str, backend: Backend, *options: str, app: str
    ) -> None:
        self._log = directory / f"{type(self).__name__.lower()}-{uuid.uuid4().hex[:8]}.log"
        environment = {
            **os.environ,
            "PRICES_TABLE": table,
            "PRICES_BACKEND": backend.url,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "XDG_RUNTIME_DIR": str(directory),  # newer gunicorns put a socket there
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(HERE), *filter(None, sys.path)]),
        }
        environment.pop("GUNICORN_CMD_ARGS", None)
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.command, *options, app],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.port = 0

    def wait_until_ready(self) -> int:
        """Return the port, once a worker answers there."""

        def answers() -> bool:
            assert self._process.poll() is None, f"the server ended:\n{self.log()}"
            listening = re.search(rf"{self.announcement} http://127\.0\.0\.1:(\d+)", self.log())
            self.port = int(listening[1]) if listening else 0
            return bool(self.port) and ask(self.port, "/").status == 404

        wait_until(answers, lambda: f"the server answers:\n{self.log()}")
        return self.port

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def workers(self) -> set[int]:
        """Return the pids of the master's living children."""
        children = psutil.Process(self.pid).children()
        return {child.pid for child in children if _is_running(child)}

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the master."""
        os.kill(self.pid, number)

    def stop(self) -> int:
        """End it gracefully and return its exit code; fail if any process of it is left."""
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(PATIENCE)
        finally:
            left = self._group()
            if self._process.poll() is None or left:
                os.killpg(self.pid, signal.SIGKILL)
                self._process.wait(PATIENCE)
                wait_until(lambda: not self._group(), "the group of the server is gone")
            assert not left, f"processes outlived the server: {left}"

    def _group(self) -> list[int]:
        """List the living processes of the group, orphans included."""
        members = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) != self.pid or not _is_running(process):
                    continue
                if "resource_tracker" not in " ".join(process.cmdline()):  # ends a little later
                    members.append(process.pid)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return members


@dataclass
class Site:
    """Everything between the clients and the backend."""

    gunicorn: Gunicorn
    port: int
    clients: Clients
    table: TableView


class Gunicorn(Server):
    command = ("gunicorn", "--bind", "127.0.0.1:0")
    announcement = "Listening at:"

    def __init__(
        self,
        directory: Path,
        table: str,
        backend: Backend,
        *options: str,
        app: str = "gunicorn_app",
    ) -> None:
        super().__init__(directory, table, backend, *options, app=app)


class Uvicorn(Server):
    command = ("uvicorn", "--port", "0", "--no-access-log")
    announcement = "Uvicorn running on"

    def workers(self) -> set[int]:
        """Return the pids of the workers; of a server without a supervisor, its own."""
        children = psutil.Process(self.pid).children()
        spawned = {
            child.pid
            for child in children
            if _is_running(child) and "spawn_main" in " ".join(child.cmdline())
        }
        return spawned or {self.pid}


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
