"""Contract: fork in both directions, preload, and every start method."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest
from crew import wait_for_followers, wait_until

from uniflight_mp import Merger, Role


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


def in_child(function, *args):
    """Fork, run ``function`` in the child, and return what it returned, or its exception."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = function(*args)
        except BaseException as error:
            result = error
        try:
            os.write(sender, pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(sender)
    with open(receiver, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(data)


# ---- a Merger made before fork ----------------------------------------------------------


def test_a_merger_made_before_fork_works_in_every_child_and_between_them(
    merger, hands, leading, followed
):
    leader = leading(merger, "key")
    calls = [hands.start(merger.flight, "key", never, where="forked") for _ in range(5)]
    followed(merger, 5)
    leader.finish("value")
    assert [call.result().value for call in calls] == ["value"] * 5


def test_a_merger_that_was_used_before_fork_works_in_children_of_children(merger):
    def grandchild():
        return in_child(merger.flight, "key", give, os.getpid())

    assert merger.execute("key", give, 1) == 1
    outcome = in_child(grandchild)
    assert outcome.role is Role.LEADER
    assert outcome.leader_pid not in (os.getpid(), outcome.value)


def test_parent_and_child_lead_and_follow_each_other(merger, hands, followed, until):
    assert merger.execute("key", give, 1) == 1  # the parent has its record before the fork
    led = hands.start(lead_until_followed, merger, where="forked")
    until(merger.flights)
    assert merger.flight("key", never).role is Role.FOLLOWER
    assert led.result() == 1


def lead_until_followed(merger):
    def function():
        wait_for_followers(merger)

    return merger.flight("key", function).followers


def test_a_child_is_a_thread_of_its_own_in_the_table(merger):
    def records():
        merger.execute("key", give, 1)
        return merger._segment.table.threads()

    merger.execute("key", give, 1)
    (mine,) = merger._segment.table.threads()
    both = in_child(records)
    assert mine in both
    assert len({pid for pid, _, _ in both}) == 2


# ---- fork inside a leader's function ----------------------------------------------------


def test_a_child_forked_inside_the_leaders_function_is_no_self_joiner(merger):
    def function():
        return in_child(merger.with_options(timeout=0.05).flight, "key", never)

    assert isinstance(merger.execute("key", function), TimeoutError)  # it waited as a follower


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_child_that_returns_from_the_leaders_function_completes_nothing(
    table_name, hands, followed, strict, size
):
    merger = Merger(table_name, strict=strict)

    def function():
        calls.append(hands.start(merger.flight, "key", never, where="forked"))
        followed(merger)
        pids.append(os.fork())
        if pids[-1]:
            status.append(os.waitpid(pids[-1], 0)[1])  # it has returned from execute, below
            assert merger.flights()[0].state == "running"
            return "parent" * size
        return "child" * size

    calls, pids, status = [], [], []
    value = error = None
    try:
        value = merger.execute("key", function)
    except BaseException as caught:
        error = caught
    if pids == [0]:
        os._exit(0 if value == "child" * size and error is None else 1)
    assert error is None
    assert status == [0]
    assert value == "parent" * size
    assert calls[0].result().value == "parent" * size
    assert not [name for name in os.listdir("/dev/shm") if f"{table_name}~r" in name]


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_a_child_that_raises_out_of_the_leaders_function_ends_nothing(
    merger, hands, followed, error
):
    def function():
        calls.append(hands.start(merger.flight, "key", never, where="forked"))
        followed(merger)
        pids.append(os.fork())
        if pids[-1] == 0:
            raise error
        os.waitpid(pids[-1], 0)
        return "parent"

    calls, pids = [], []
    try:
        value = merger.execute("key", function)
    except error:
        os._exit(0)  # the child
    assert value == "parent"
    assert calls[0].result().value == "parent"


def test_the_death_of_a_leader_is_seen_though_its_child_lives(merger, hands, until, followed):
    leader = hands.start(fork_and_hang, merger, where="forked")
    until(merger.flights)
    call = hands.start(merger.flight, "key", give, 1, where="forked")
    followed(merger)
    leader.kill()
    assert call.result().role is Role.LEADER


def fork_and_hang(merger):
    def function():
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(1)  # the end of a child that nobody waits for
            signal.pause()
        time.sleep(60)

    merger.execute("key", function)


def test_a_child_forked_while_another_thread_waits_is_no_waiter(merger, hands, leading, followed):
    def child():
        (flight,) = merger.flights()
        return flight.followers, merger.flight("other", give, 1).role

    leader = leading(merger, "key")
    thread = hands.start(merger.flight, "key", never)
    followed(merger)
    assert in_child(child) == (1, Role.LEADER)
    assert leader.outcome(1).followers == 1
    assert thread.result().value == 1


def test_a_fork_at_any_moment_leaves_parent_and_child_well(merger):
    def keep_busy(number):
        count = 0
        while not over.is_set():
            merger.execute(("key", count % 3), give, count)
            merger.flights()
            count += 1
        return count

    def child():
        values = [merger.execute(("key", n % 3), give, n) for n in range(20)]
        return len(values), merger._segment.table.check()

    over = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(3) as executor:
        futures = [executor.submit(keep_busy, n) for n in range(3)]
        try:
            assert {in_child(child) for _ in range(60)} == {(20, None)}
        finally:
            over.set()
        assert all(future.result(30) for future in futures)


def test_tables_can_be_opened_in_a_child_forked_while_another_thread_opens_one(table_names):
    def open_and_close():
        while not over.is_set():
            for name in names:
                Merger(name).close()

    def child():
        return [Merger(name).execute("key", give, 1) for name in names]

    names = [table_names() for _ in range(2)]
    over = threading.Event()
    thread = threading.Thread(target=open_and_close)
    thread.start()
    try:
        for _ in range(15):
            assert in_child(child) == [1, 1]
    finally:
        over.set()
        thread.join(30)


# ---- start methods ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_merger_travels_to_children_of_every_start_method(merger, leading, followed, method):
    context = multiprocessing.get_context(method)
    leader = leading(merger, "key")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        futures = [executor.submit(merger.execute, "key", never) for _ in range(2)]
        followed(merger, 2)
        leader.finish("value")
        assert [future.result(30) for future in futures] == ["value", "value"]
    end_of_servants(context)


def end_of_servants(context):
    if context.get_start_method() == "forkserver":
        multiprocessing.forkserver._forkserver._stop()


OPENER = """
import sys
from uniflight_mp import Merger
print(Merger(sys.argv[1]).execute("key", int, 5))
"""


def test_a_subprocess_with_closed_descriptors_finds_the_table_by_name(merger, leading, followed):
    leader = leading(merger, "key")
    child = subprocess.Popen(
        [sys.executable, "-c", OPENER, merger.name],
        close_fds=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    followed(merger)
    leader.finish(7)
    assert child.communicate(timeout=60) == ("7\n", "")
    assert child.returncode == 0


def test_no_descriptor_is_left_open_or_inherited(table_name, hands):
    def descriptors():
        return {
            fd: os.readlink(f"/proc/self/fd/{fd}")
            for fd in map(int, os.listdir("/proc/self/fd"))
            if os.path.exists(f"/proc/self/fd/{fd}")
        }

    with Merger(table_name) as warm:  # what Python itself opens once
        warm.execute("key", give, 1)
    before = descriptors()
    for _ in range(5):
        with Merger(table_name) as merger:
            merger.execute("key", give, 1)
            big = hands.start(merger.execute, "big", bytes, 100_000)
            big.result()
            merger.flights()
            assert descriptors() == before


def test_descriptors_of_followers_are_closed_after_big_results(merger, hands, leading, followed):
    hands.start(int, where="spawned").result()
    assert hands.end() == []  # the child and its connection are used again
    before = len(os.listdir("/proc/self/fd"))
    leader = hands.start(lead_big, merger, where="spawned")
    outcome = wait_for_big(merger)
    assert len(outcome) == 100_000
    leader.result()
    assert len(os.listdir("/proc/self/fd")) <= before


def lead_big(merger):
    def function():
        wait_for_followers(merger)
        return bytes(100_000)

    merger.execute("key", function)


def wait_for_big(merger):
    wait_until(merger.flights)
    return merger.execute("key", never)


TRACKED = """
import multiprocessing, multiprocessing.shared_memory, sys
from multiprocessing import resource_tracker
from uniflight_mp import Merger

def child(name):
    Merger(name).execute("key", bytes, 100_000)

if __name__ == "__main__":
    resource_tracker.ensure_running()
    merger = Merger(sys.argv[1])
    process = multiprocessing.get_context("spawn").Process(target=child, args=(sys.argv[1],))
    process.start()
    process.join()
"""


def test_the_resource_tracker_never_touches_a_table(table_name, tmp_path, leading):
    merger = Merger(table_name)
    inode = os.stat(f"/dev/shm/{merger._segment.segment}").st_ino
    script = tmp_path / "tracked.py"
    script.write_text(TRACKED)
    done = subprocess.run(
        [sys.executable, script, table_name], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert os.stat(f"/dev/shm/{merger._segment.segment}").st_ino == inode
    assert merger.execute("key", give, 1) == 1
