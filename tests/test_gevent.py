"""Contract of Merger under gevent: greenlets of a hub, hubs of a host, native threads beside them.

A test cannot patch its own process. Each one starts an interpreter that patches itself and calls
a function of this file; the two talk in lines of JSON, and meet in the table.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from uniflight_mp import FlightTimeout, Merger, Role

gevent = pytest.importorskip("gevent", reason="gevent is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

BOUND = 30.0
PATCHED = (
    "from gevent import monkey; monkey.patch_all()\nimport sys, test_gevent\ntest_gevent.main()"
)
PLAIN = "import sys, test_gevent\ntest_gevent.main()"


def main():
    """In the child: call the function that the command line names."""
    faulthandler.dump_traceback_later(2 * BOUND, exit=True)
    name, *arguments = sys.argv[1:]
    tell(globals()[name](*arguments))


def tell(message):
    print(json.dumps(message), flush=True)


class Child:
    """A process of its own that runs a function of this file."""

    def __init__(self, function, *arguments, code=PATCHED):
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, function.__name__, *arguments],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def hear(self):
        """Return the next thing it tells."""
        line = self._process.stdout.readline()
        assert line, self._process.communicate(timeout=BOUND)[1]
        return json.loads(line)

    def answer(self):
        """Let it go on from ``wait_for_answer``."""
        self._process.stdin.write("go on\n")
        self._process.stdin.flush()

    def result(self):
        """Return what the function returned; fail if it raised, or left something in a mess."""
        output, errors = self._process.communicate(timeout=2 * BOUND)
        assert self._process.returncode == 0, errors
        assert errors == ""
        return json.loads(output.splitlines()[-1])

    def end(self):
        self._process.kill()
        self._process.communicate(timeout=BOUND)


@pytest.fixture
def child():
    """Start ``Child``ren; none survives the test."""
    children = []

    def start(function, *arguments, **options):
        children.append(Child(function, *arguments, **options))
        return children[-1]

    yield start
    for each in children:
        with contextlib.suppress(ValueError):  # its pipes are closed: it has ended
            each.end()


# ---- for the children -------------------------------------------------------------------


def never():
    raise AssertionError("the function of a follower was called")


def soon(condition):
    """Let other greenlets run, within bounds, until ``condition()`` is true."""
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, "not within bounds"
        gevent.sleep(0.001)


def wait_for_answer():
    gevent.get_hub().threadpool.apply(sys.stdin.readline)


def started(*calls):
    """Spawn greenlets and let each run until it sleeps."""
    greenlets = [gevent.spawn(*call) for call in calls]
    for _ in range(3):
        gevent.sleep(0)
    return greenlets


def values(greenlets):
    gevent.joinall(greenlets, timeout=BOUND, raise_error=True)
    assert all(greenlet.ready() for greenlet in greenlets)
    return [greenlet.value for greenlet in greenlets]


class Work:
    """A function that counts its runs and ends when it is told."""

    def __init__(self, value=None, error=None):
        from gevent.event import Event

        self.value, self.error, self.runs = value, error, 0
        self.started, self.released = Event(), Event()

    def __call__(self):
        self.runs += 1
        self.started.set()
        assert self.released.wait(BOUND)
        if self.error is not None:
            raise self.error
        return self.value


def coalesce(merger, count=50):
    """Let so many greenlets want one key; check that they get one execution's very object."""
    work = Work(object())
    greenlets = started(*[(merger.flight, "key", work)] * count)
    assert not any(greenlet.ready() for greenlet in greenlets)
    work.released.set()
    outcomes = values(greenlets)
    assert work.runs == 1
    assert {id(outcome.value) for outcome in outcomes} == {id(work.value)}
    roles = [outcome.role for outcome in outcomes]
    assert roles == [Role.LEADER] + [Role.FOLLOWER] * (count - 1)
    assert outcomes[1].followers == count - 1


# ---- the tests, each beside what its child does -----------------------------------------


def greenlets_coalesce(name):
    merger = Merger(name)
    for _ in range(3):
        coalesce(merger)
    return merger.stats().leaders


def test_greenlets_of_a_hub_run_one_execution_and_share_its_very_object(table_name, child):
    assert child(greenlets_coalesce, table_name).result() == 3


def follow_and_tick(name):
    merger, ticks = Merger(name), 0
    greenlets = started(*[(merger.flight, "key", never)] * 20)
    for _ in range(100):
        gevent.sleep(0)
        ticks += not any(greenlet.ready() for greenlet in greenlets)
    tell(ticks)
    outcomes = values(greenlets)
    assert len({id(outcome.value) for outcome in outcomes}) == 1
    return [outcomes[0].value, outcomes[0].role.name, outcomes[0].leader_pid]


def test_other_greenlets_run_while_one_waits_for_a_leader_in_another_process(
    table_name, child, leading
):
    sync = Merger(table_name)
    leader = leading(sync, "key")
    follower = child(follow_and_tick, table_name)
    assert follower.hear() == 100
    assert sync.flights()[0].followers == 1  # the hub counts once
    outcome = leader.outcome({"x": 1})
    assert outcome.followers == 1
    assert follower.result() == [{"x": 1}, "FOLLOWER", os.getpid()]


def lead_for_others(name):
    merger = Merger(name)

    def function():
        soon(lambda: merger.flights()[0].followers == 2)
        return "value"

    return merger.flight("key", function).followers


def test_sync_callers_in_other_processes_follow_a_greenlet(table_name, child, hands, until):
    sync = Merger(table_name)
    leader = child(lead_for_others, table_name)
    until(sync.flights)
    calls = [hands.start(sync.execute, "key", never, where="forked") for _ in range(2)]
    assert [call.result() for call in calls] == ["value"] * 2
    assert leader.result() == 2


def take_over(name):
    merger = Merger(name)
    greenlets = started(*[(merger.flight, "key", lambda: gevent.sleep(0.01) or "next")] * 5)
    tell("following")
    outcomes = values(greenlets)
    assert [outcome.value for outcome in outcomes] == ["next"] * 5
    return [[outcome.role.name, outcome.takeovers] for outcome in outcomes]


def test_a_killed_leader_in_another_process_is_replaced_by_one_greenlet(
    table_name, child, hands, until
):
    sync = Merger(table_name)
    call = hands.start(sync.execute, "key", time.sleep, 60, where="forked")
    until(sync.flights)
    follower = child(take_over, table_name)
    assert follower.hear() == "following"
    call.kill()
    assert follower.result() == [["LEADER", 1]] + [["FOLLOWER", 1]] * 4


def kill_a_leader_with_local_followers(name):
    merger, second = Merger(name), Work("second")
    first, chosen, other = started(
        (merger.flight, "key", Work("first")),
        (merger.flight, "key", second),
        (merger.flight, "key", never),
    )
    first.kill()
    assert second.started.wait(BOUND)
    second.released.set()
    outcomes = values([chosen, other])
    assert isinstance(first.value, gevent.GreenletExit)
    return [[outcome.value, outcome.role.name] for outcome in outcomes]


def test_a_killed_greenlet_that_leads_hands_over_to_another_one(table_name, child):
    result = child(kill_a_leader_with_local_followers, table_name).result()
    assert result == [["second", "LEADER"], ["second", "FOLLOWER"]]


def kill_the_one_that_was_chosen(name):
    merger, third = Merger(name), Work("third")

    def function():
        try:
            Work()()
        finally:  # takes effect when the leader has handed over, and before the chosen one runs
            chosen.kill(block=False)

    first, chosen, last = started(
        (merger.execute, "key", function),
        (merger.execute, "key", never),
        (merger.execute, "key", third),
    )
    first.kill()
    assert third.started.wait(BOUND)
    third.released.set()
    return values([last])[0]


def test_a_greenlet_killed_when_it_is_chosen_passes_the_lead_on(table_name, child):
    assert child(kill_the_one_that_was_chosen, table_name).result() == "third"


def kill_a_lonely_leader(name):
    merger = Merger(name)
    (leader,) = started((merger.execute, "key", Work()))
    soon(lambda: merger.flights()[0].followers == 1)
    leader.kill()


def test_a_killed_greenlet_without_local_followers_is_replaced_elsewhere(
    table_name, child, hands, until
):
    sync = Merger(table_name)
    leader = child(kill_a_lonely_leader, table_name)
    until(sync.flights)
    outcome = sync.flight("key", os.getpid)
    assert (outcome.value, outcome.role, outcome.takeovers) == (os.getpid(), Role.LEADER, 1)
    leader.result()


def give_up_following(name):
    merger = Merger(name)
    for _ in range(3):
        with gevent.Timeout(0.02, False):
            merger.execute("key", never)
            raise AssertionError("there was nothing to return")
        (flight,) = merger.flights()
        assert flight.followers == 0
    (killed,) = started((merger.execute, "key", never))
    assert merger.flights()[0].followers == 1
    killed.kill()
    return merger.flights()[0].followers


def test_a_gevent_timeout_or_a_kill_frees_a_followers_room(table_name, child, leading):
    leader = leading(Merger(table_name), "key")
    assert child(give_up_following, table_name).result() == 0
    assert leader.outcome("value").followers == 0


def time_out(name):
    merger = Merger(name)
    hasty = merger.with_options(timeout=0.02)
    with pytest.raises(FlightTimeout, match="no result for key 'key'"):
        hasty.execute("key", never)
    with pytest.raises(FlightTimeout):
        merger.with_options(timeout=0).execute("key", never)
    outcome = hasty.with_options(on_timeout="run").flight("key", lambda: "alone")
    assert merger.flights()[0].followers == 0
    return [outcome.value, outcome.role.name, merger.stats().timeouts]


def test_timeouts_are_those_of_any_caller(table_name, child, leading):
    leader = leading(Merger(table_name), "key")
    assert child(time_out, table_name).result() == ["alone", "SOLO", 3]
    leader.finish()


def join_oneself(name):
    merger = Merger(name)
    with pytest.raises(RuntimeError, match="already leads the flight of key 'key'"):
        merger.execute("key", merger.execute, "key", never)
    # A greenlet that its leader started is another caller.
    work = Work("value")

    def function():
        (inner,) = started((merger.execute, "key", never))
        work.released.set()
        assert not inner.ready()
        return inner, work()

    inner, value = merger.execute("key", function)
    return [value, values([inner])[0][1]]


def test_a_greenlet_that_joins_its_own_flight_is_told_at_once(table_name, child):
    assert child(join_oneself, table_name).result() == ["value", "value"]


def fail_together(name):
    merger, work = Merger(name), Work(error=KeyError("gone"))
    greenlets = started(*[(outcome_of, merger, work)] * 3)
    work.released.set()
    return values(greenlets)


def outcome_of(merger, function):
    try:
        return merger.execute("key", function)
    except KeyError as error:
        return [repr(error), type(error.__cause__).__name__]


def test_each_greenlet_raises_an_exception_of_its_own(table_name, child):
    result = child(fail_together, table_name).result()
    assert (
        result == [["KeyError('gone')", "NoneType"]] + [["KeyError('gone')", "LeaderPanicked"]] * 2
    )


def patch_after_fork(name):
    merger = Merger(name)
    assert merger.execute("key", lambda: "before") == "before"
    pid = os.fork()
    if pid:
        assert os.waitpid(pid, 0)[1] == 0
        return merger.execute("key", lambda: "parent")
    try:
        from gevent import monkey

        monkey.patch_all()
        coalesce(merger)
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def test_a_merger_made_before_fork_and_patching_works_as_under_gunicorn_preload(table_name, child):
    assert child(patch_after_fork, table_name, code=PLAIN).result() == "parent"


def use_native_threads(name):
    merger, work = Merger(name), Work("greenlet's")
    pool = gevent.get_hub().threadpool
    (leader,) = started((merger.execute, "key", work))
    followers = [pool.spawn(merger.flight, "key", never) for _ in range(3)]
    soon(lambda: merger.flights()[0].followers == 3)
    work.released.set()
    outcomes = values(followers)
    assert values([leader]) == ["greenlet's"]
    assert {outcome.value for outcome in outcomes} == {"greenlet's"}
    assert outcomes[0].value is outcomes[1].value

    from gevent.monkey import get_original

    go = get_original("threading", "Lock")()
    go.acquire()
    native = pool.spawn(merger.execute, "key", lambda: go.acquire(timeout=BOUND) and "thread's")
    soon(lambda: merger.flights())
    greenlets = started(*[(merger.execute, "key", never)] * 5)
    assert merger.flights()[0].followers == 1
    go.release()
    return values([native, *greenlets])


def test_native_threads_and_greenlets_follow_each_other(table_name, child):
    assert child(use_native_threads, table_name).result() == ["thread's"] * 6


def count_descriptors(name):
    from gevent.monkey import get_original

    from uniflight_mp.green import hub_desk

    merger, pool = Merger(name), gevent.get_hub().threadpool
    desk = hub_desk(merger._segment)
    allocate = get_original("threading", "Lock")

    def once():
        go = allocate()
        go.acquire()
        native = pool.spawn(merger.execute, "key", go.acquire, timeout=BOUND)
        soon(merger.flights)
        greenlets = started(*[(merger.execute, "key", never)] * 3)
        go.release()
        values([native, *greenlets])
        soon(lambda: desk._socket is None)  # closed when those who waited have gone on
        return len(os.listdir("/proc/self/fd"))

    first = once()
    return [first, *(once() for _ in range(20))]


def test_no_descriptor_is_left(table_name, child):
    first, *later = child(count_descriptors, table_name).result()
    assert max(later) <= first


def fork_while_greenlets_wait(name):
    merger = Merger(name)
    greenlets = started(*[(merger.execute, "key", never)] * 3)
    pid = os.fork()
    if pid == 0:
        try:
            gevent.killall(greenlets)
            assert merger.execute("other", lambda: "child's") == "child's"
            inherited = merger._segment.table.usage()[1]
            os._exit(0 if inherited == 1 else 2)
        except BaseException:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    from uniflight_mp.green import hub_desk

    hub_desk(merger._segment)._stop_timer()  # now nothing but the bell can wake this hub
    tell(status)
    return values(greenlets)


def test_a_fork_while_greenlets_wait_leaves_the_parents_bell_and_flights_alone(
    table_name, child, leading
):
    sync = Merger(table_name)
    leader = leading(sync, "key")
    parent = child(fork_while_greenlets_wait, table_name)
    assert parent.hear() == 0
    assert sync.flights()[0].followers == 1
    leader.finish("value")
    assert parent.result() == ["value"] * 3


def refuse_a_coroutine_function(name):
    async def function():
        return 1

    with pytest.raises(TypeError, match="Use AsyncMerger"):
        Merger(name).execute("key", function)


def test_a_coroutine_function_is_refused(table_name, child):
    child(refuse_a_coroutine_function, table_name).result()


def lead_until_killed(name):
    merger = Merger(name)
    tell("leading") if merger.flights() else None
    merger.execute("key", lambda: tell("leading") or gevent.sleep(60))


def test_a_killed_gevent_process_is_replaced_by_a_blocked_thread(table_name, child, hands, until):
    sync = Merger(table_name)
    leader = child(lead_until_killed, table_name)
    assert leader.hear() == "leading"
    call = hands.start(sync.flight, "key", threading.get_ident, where="threads")
    until(lambda: sync.flights()[0].followers == 1)
    leader.end()
    assert call.result().takeovers == 1


def test_a_call_while_another_thread_imports_gevent_is_an_ordinary_one(table_name, monkeypatch):
    monkeypatch.setitem(sys.modules, "gevent.monkey", types.ModuleType("gevent.monkey"))
    with Merger(table_name) as merger:
        assert merger.flight("key", lambda: 1).role is Role.LEADER
