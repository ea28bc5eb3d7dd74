"""What the tests share: tables that vanish, and calls that run somewhere else.

``table_name`` names a table of this session; when the test is over nothing may be in use in it.
``crew`` runs functions in threads, forked children or spawned children; ``until`` waits for a
condition. Every wait is bounded, every child is reaped, and the end of the session checks that
no segment, process or thread is left behind.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import multiprocessing
import os
import pickle
import re
import runpy
import shutil
import signal
import stat
import sys
import threading
import time
import warnings

import psutil
import pytest

BOUND = 30.0  # seconds; far above what anything here takes, so that only a hang reaches it
SHM_DIR = "/dev/shm"
SESSION = f"t{os.getpid():x}"
_numbers = itertools.count()


def wait_until(condition, seconds=BOUND):
    """Return the first true value of ``condition()``; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {condition}")
        time.sleep(0.001)


# ---- calls that run somewhere else ------------------------------------------------------


def _run(function, args, kwargs):
    """Run a job in a child; return what ``Call`` makes a result or an exception of."""
    pid = os.getpid()
    faulthandler.dump_traceback_later(2 * BOUND, exit=True)  # a child outlives no failed test
    try:
        message = (True, function(*args, **kwargs), None)
    except BaseException as error:
        error.__traceback__ = None
        message = (False, error, error.__cause__)
    if os.getpid() != pid:
        os._exit(1)  # a child of the job's that came back
    faulthandler.cancel_dump_traceback_later()
    try:
        return pickle.dumps(message)
    except Exception as error:
        text = f"{message[1]!r} cannot be sent back: {error!r}"
        return pickle.dumps((False, AssertionError(text), None))


def _run_once(sender, function, args, kwargs):
    sender.send_bytes(_run(function, args, kwargs))


_STOP = b"stop"


def _serve(connection):
    """Run job after job, in a child that was spawned; its imports are paid for once."""
    while True:
        try:
            job = connection.recv_bytes()
        except EOFError:
            return
        if job == _STOP:  # other children may have inherited the connection and keep it open
            return
        connection.send_bytes(_run(*pickle.loads(job)))
        del job
        gc.collect()


class Call:
    """A function under way in another thread or process; see ``Crew``."""

    def __init__(self, process=None, connection=None, thread=None):
        self.process, self._connection, self._thread = process, connection, thread
        self._message = None
        self._killed = False

    @property
    def pid(self):
        return self.process.pid if self.process else os.getpid()

    def result(self, seconds=BOUND):
        """Return what the function returned, or raise what it raised, its cause included."""
        if self._message is None:
            self._message = self._receive(seconds)
        fine, value, cause = self._message
        if fine:
            return value
        if cause is not None:
            value.__cause__ = cause
        raise value

    def error(self, seconds=BOUND):
        """Return what the function raised."""
        try:
            value = self.result(seconds)
        except BaseException as error:
            return error
        raise AssertionError(f"returned {value!r} instead of raising")

    def finished(self):
        if self._thread:
            return not self._thread.is_alive()
        return self._killed or self._message is not None or self._connection.poll(0)

    def _receive(self, seconds):
        if self._thread:
            self._thread.join(seconds)
            assert not self._thread.is_alive(), "the thread is still at work"
            return self._thread.message
        assert self._connection.poll(seconds), f"process {self.pid} is still at work"
        try:
            return pickle.loads(self._connection.recv_bytes())
        except EOFError:
            return False, EOFError(f"process {self.pid} died"), None

    def kill(self, number=signal.SIGKILL):
        self._killed |= number == signal.SIGKILL
        os.kill(self.pid, number)

    def join(self, seconds=BOUND):
        """Wait for the end of the process or thread itself."""
        (self.process or self._thread).join(seconds)


class _Job(threading.Thread):
    def __init__(self, function, args, kwargs):
        super().__init__(daemon=True)
        self.job, self.message = (function, args, kwargs), None

    def run(self):
        function, args, kwargs = self.job
        del self.job
        try:
            self.message = (True, function(*args, **kwargs), None)
        except BaseException as error:
            self.message = (False, error, error.__cause__)


class Crew:
    """Starts functions in threads, forked or spawned children; ends and reaps what it started.

    What is given to spawned children is pickled: functions from the top level of a test module,
    and Mergers, whose bound methods will do as functions.
    """

    def __init__(self, where, servers):
        self.where = where
        self._servers = servers
        self._calls = []

    def start(self, function, *args, where=None, **kwargs):
        """Start ``function(*args, **kwargs)`` and return its ``Call``."""
        call = getattr(self, "_start_" + (where or self.where))(function, args, kwargs)
        self._calls.append(call)
        return call

    def _start_threads(self, function, args, kwargs):
        thread = _Job(function, args, kwargs)
        thread.start()
        return Call(thread=thread)

    def _start_forked(self, function, args, kwargs):
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_once, args=(sender, function, args, kwargs))
        process.start()
        sender.close()
        return Call(process, receiver)

    def _start_spawned(self, function, args, kwargs):
        job = pickle.dumps((function, args, kwargs))
        process, connection = self._servers.take()
        connection.send_bytes(job)
        return Call(process, connection)

    def end(self):
        """Reap everything; return descriptions of what was still at work."""
        busy = []
        for call in self._calls:
            deadline = time.monotonic() + 5
            while not call.finished() and time.monotonic() < deadline:
                time.sleep(0.001)
            if not call.finished():
                busy.append(f"{call.process or call._thread}")
                if call.process:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(call.pid, signal.SIGCONT)
                    call.process.kill()
            if call.process is None:
                call.join(5)
            elif self._servers.is_server(call.process):
                with contextlib.suppress(EOFError, AssertionError, OSError):
                    call._message or call._receive(5)
                if call._killed:
                    call.process.join(BOUND)  # it looks alive for a moment yet
                self._servers.give_back(call.process)
            else:
                call.process.join(BOUND)
                call.process.close()
                call._connection.close()
        self._calls.clear()
        return busy


class _Servers:
    """Spawned children, used again and again: each costs a third of a second to start."""

    def __init__(self):
        self._idle, self._connections = [], {}

    def take(self):
        process = self._idle.pop() if self._idle else self._start()
        return process, self._connections[process]

    def _start(self):
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=runpy.run_path,
            args=(__file__, {"CONNECTION": theirs}, "__crew__"),
            daemon=True,
        )
        process.start()
        theirs.close()
        self._connections[process] = ours
        return process

    def is_server(self, process):
        return process in self._connections

    def give_back(self, process):
        if process.is_alive():
            if process not in self._idle:
                self._idle.append(process)
        else:
            self._connections.pop(process).close()
            process.join(BOUND)

    def end(self):
        for process, connection in self._connections.items():
            with contextlib.suppress(OSError):
                connection.send_bytes(_STOP)
            connection.close()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join(BOUND)


@pytest.fixture(scope="session")
def _servers():
    servers = _Servers()
    yield servers
    servers.end()


@pytest.fixture
def hands(_servers):
    """A ``Crew`` without a place of its own: ``hands.start(f, where="forked")``."""
    crew = Crew("threads", _servers)
    yield crew
    busy = crew.end()
    assert not busy, f"still at work at the end of the test: {busy}"


@pytest.fixture(params=["threads", "forked", "spawned"])
def crew(request, hands):
    """A ``Crew`` for each place where callers can be."""
    hands.where = request.param
    return hands


@pytest.fixture(params=["forked", "spawned"])
def processes(request, hands):
    """A ``Crew`` for each kind of process other than the test's own."""
    hands.where = request.param
    return hands


@pytest.fixture
def until():
    """``until(condition)``: wait, within bounds, for a true value and return it."""
    return wait_until


@pytest.fixture
def followed():
    """``followed(merger, n)``: wait until some flight has ``n`` followers, return its info."""

    def wait(merger, followers=1, key=None):
        def look():
            for flight in merger.flights():
                if flight.followers == followers and key in (None, flight.key):
                    return flight
            return None

        return wait_until(look)

    return wait


class Leader:
    """A call in a thread whose function waits for the test to say how it ends."""

    def __init__(self, crew, merger, key):
        self._running, self._go, self._answer = threading.Event(), threading.Event(), None
        self._call = crew.start(merger.flight, key, self._function, where="threads")
        wait_until(lambda: self._running.is_set() or self._call.finished())
        assert self._running.is_set(), f"does not lead: {self._call.result()}"

    def _function(self):
        self._running.set()
        assert self._go.wait(2 * BOUND)
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    def finish(self, answer=None):
        """Let the function return ``answer``, or raise it; return the call's ``Call``."""
        self._answer = answer
        self._go.set()
        self._call.join()
        return self._call

    def outcome(self, answer=None):
        """Let the function return ``answer``, and return the leader's ``Outcome``."""
        return self.finish(answer).result()


@pytest.fixture
def leading(hands):
    """``leading(merger, key)``: a ``Leader``, whose function is running by now."""
    leaders = []

    def lead(merger, key):
        leaders.append(Leader(hands, merger, key))
        return leaders[-1]

    yield lead
    for leader in leaders:
        leader.finish(leader._answer)


# ---- tables -----------------------------------------------------------------------------


def _segments(part):
    return sorted(name for name in os.listdir(SHM_DIR) if part in name)


def _assert_unused(name):
    """Whatever the test did to the table, nothing is in use and every invariant holds."""
    from uniflight_mp import Merger, UniflightError

    gc.collect()  # exceptions in reference cycles keep their frames
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the limits are others
            merger = Merger(name)
    except (UniflightError, OSError):
        return  # the test has put something else there
    with merger:
        table = merger._segment.table
        wait_until(lambda: table.reap() and table.usage()[:2] == (0, 0), 5)
        assert table.check() is None
    assert not [part for part in _segments(f"-{name}") if "~r" in part], "a big result is left"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call":
        item.stash[_FAILED] = report.failed
    return report


_FAILED = pytest.StashKey[bool]()


@pytest.fixture
def table_names(request):
    """A function that makes up names of tables, which are destroyed after the test."""
    made = []

    def make():
        about = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name)[:36].strip("-")
        made.append(f"{SESSION}-{next(_numbers)}-{about}")
        return made[-1]

    make.made = made
    yield make
    try:
        if not request.node.stash.get(_FAILED, True):
            for name in made:
                if _segments(f"-{name}"):
                    _assert_unused(name)
    finally:
        for name in made:
            for part in _segments(f"-{name}"):
                path = f"{SHM_DIR}/{part}"
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink(path)


@pytest.fixture
def table_name(table_names):
    """The name of a table that is destroyed after the test."""
    return table_names()


@pytest.fixture
def merger(table_name):
    """A Merger with default options on a table of its own."""
    from uniflight_mp import Merger

    with Merger(table_name) as merger:
        yield merger


# ---- scopes -----------------------------------------------------------------------------

_EVERY_SCOPE = re.compile(r"test_contract_\w+|test_async")
_SHARED, _PRIVATE = ("PerHost", "PerNuma"), ("PerProcess", "PerCore")


def pytest_generate_tests(metafunc):
    """Run the contract's tests under every scope; those about several processes, the shared ones.

    The rest of the tests have the default.
    """
    if _EVERY_SCOPE.fullmatch(metafunc.module.__name__):
        processes = "processes" in metafunc.fixturenames
        shared = processes or metafunc.definition.get_closest_marker("shared")
        scopes = _SHARED if shared else _SHARED + _PRIVATE
        metafunc.parametrize("scope", scopes, indirect=True)


def pytest_collection_modifyitems(config, items):
    """Leave out callers in other processes where the scope is private."""

    def is_possible(item):
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        private = parameters.get("scope") in _PRIVATE
        return not (private and parameters.get("crew") in ("forked", "spawned"))

    impossible = [item for item in items if not is_possible(item)]
    config.hook.pytest_deselected(items=impossible)
    items[:] = filter(is_possible, items)


@pytest.fixture(autouse=True)
def scope(request, monkeypatch):
    """The scope that Mergers of this test have by default."""
    import uniflight_mp
    from uniflight_mp.base import BaseMerger

    scope = getattr(uniflight_mp, getattr(request, "param", "PerHost"))()
    cpus = os.sched_getaffinity(0)
    monkeypatch.setattr(BaseMerger, "_default_scope", scope)
    if type(scope) is uniflight_mp.PerCore:  # or callers would be on different ones
        os.sched_setaffinity(0, {min(cpus)})
    yield scope
    os.sched_setaffinity(0, cpus)


# ---- watchdog and leaks -----------------------------------------------------------------


class _Watchdog(threading.Thread):
    """Ends a session whose test neither bounded waits nor pytest-timeout could end.

    Not faulthandler's: its timer thread, gone in a forked child, would hang the child's own.
    """

    def __init__(self):
        super().__init__(name="watchdog", daemon=True)
        self.deadline = None

    def run(self):
        while True:
            time.sleep(1)
            if self.deadline is not None and time.monotonic() > self.deadline:
                faulthandler.dump_traceback(file=sys.__stderr__)
                os._exit(70)


@pytest.fixture(scope="session")
def _session_watchdog():
    watchdog = _Watchdog()
    watchdog.start()
    return watchdog


@pytest.fixture(autouse=True)
def _watchdog(_session_watchdog):
    _session_watchdog.deadline = time.monotonic() + 400
    yield
    _session_watchdog.deadline = None


def _children():
    """This process's children, without the servants of multiprocessing."""
    servants = {
        getattr(servant, "_pid", None) or getattr(servant, "_forkserver_pid", None)
        for module, name in (
            ("multiprocessing.resource_tracker", "_resource_tracker"),
            ("multiprocessing.forkserver", "_forkserver"),
        )
        if (servant := getattr(sys.modules.get(module), name, None))
    }
    return [child for child in psutil.Process().children() if child.pid not in servants]


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(_session_watchdog):
    """At the end of the session: no segment, no process, no thread of ours."""
    threads = set(threading.enumerate())
    yield
    gc.collect()
    wait_until(lambda: set(threading.enumerate()) <= threads, 10)
    wait_until(lambda: not _children(), 10)
    assert _segments(SESSION) == []


if __name__ == "__crew__":
    _serve(globals()["CONNECTION"])
