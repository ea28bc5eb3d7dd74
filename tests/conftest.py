"""What the tests share: tables that vanish, and calls that run somewhere else.

``table_name`` names a table of this session; when the test is over nothing may be in use in it.
``crew`` runs functions in threads, forked children or spawned children; ``until`` waits for a
condition; crew.py is what they are made of. The end of the session checks that no segment, process
or thread is left behind.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import os
import re
import shutil
import stat
import sys
import threading
import time
import warnings

import hypothesis
import psutil
import pytest
from crew import Crew, Leader, Servers, wait_for_followers, wait_until

SHM_DIR = "/dev/shm"
SESSION = f"t{os.getpid():x}"
_numbers = itertools.count()

# An example that took 200 ms says something about the machine, not about what is tested.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


# ---- calls that run somewhere else ------------------------------------------------------


@pytest.fixture(scope="session")
def _servers():
    servers = Servers()
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
    return wait_for_followers


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


@pytest.fixture(scope="module", autouse=True)
def _garbage_is_of_this_module():
    """Spare each collection the modules and pytest's reports: they took half of a session."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(_session_watchdog):
    """At the end of the session: no segment, no process, no thread of ours."""
    threads = set(threading.enumerate())
    yield
    gc.collect()
    wait_until(lambda: set(threading.enumerate()) <= threads, 10)
    wait_until(lambda: not _children(), 10)
    assert _segments(f"-{SESSION}-") == []  # not those of a session t1234 if this is t123
