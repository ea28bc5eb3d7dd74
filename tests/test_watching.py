"""How a waiting event loop learns that a leader has died: a thread that the kernel wakes rings it;
where the kernel cannot do that (before Linux 5.16, in some sandboxes), the loop looks.

The loops run in forked children, whose timers and system calls are their own to lose.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import itertools
import os
import signal
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

import pytest
from crew import BOUND, wait_for_followers, wait_until

from uniflight_mp import AsyncMerger, Merger, Role, desk
from uniflight_mp.core import shm
from uniflight_mp.desk import Desk

pytestmark = pytest.mark.shared

MANY = 100  # flights
can_watch = pytest.mark.skipif(not shm.can_watch(), reason="this kernel cannot wait for words")


def forbid_watching():
    """Have futex_waitv fail in this process, as an older kernel or a sandbox does."""
    load, equal, give = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    number, refuse, allow = 449, 0x00050000 | errno.ENOSYS, 0x7FFF0000
    steps = [(load, 0, 0, 0), (equal, 0, 1, number), (give, 0, 0, refuse), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert prctl(22, 2, program) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP


class Untimed:
    """The core for a desk without timers, which tells when a loop is told of its leader's death."""

    def __init__(self, watching):
        self.watching = watching  # the writing end of a pipe

    def __getattr__(self, name):
        return getattr(shm, name)

    def look(self, *args):
        ready, delay_ns = shm.look(*args)
        if not ready and delay_ns == 50_000_000:  # UF_WATCH_BACKSTOP_NS
            os.write(self.watching, b"w")
        return ready, delay_ns


def forbid_timers(watching):
    """Let a desk do nothing but what somebody rings for; tell when it watches a leader."""
    Desk._set_timer = lambda self, seconds: None
    desk.shm = Untimed(watching)


def run(kind, main):
    """Run a coroutine on a loop of a kind; in a child, which needs no clean-up."""
    if kind == "uvloop":
        loop = pytest.importorskip("uvloop").new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    return loop.run_until_complete(asyncio.wait_for(main, BOUND))


@pytest.fixture(params=["asyncio", "uvloop"])
def kind(request):
    """Which event loop."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop", reason="uvloop is not built for this Python")
    return request.param


async def never():
    raise AssertionError("the function of a follower was called")


async def follow_with_five(name):
    merger = AsyncMerger(name)
    calls = (merger.flight("key", asyncio.sleep, 0, "next") for _ in range(5))
    outcomes = await asyncio.gather(*calls)
    return [(outcome.value, outcome.role, outcome.takeovers) for outcome in outcomes]


def follow_untimed(name, kind, watching):
    forbid_timers(watching)
    return run(kind, follow_with_five(name))


def follow_by_looks(name, kind):
    forbid_watching()
    return run(kind, follow_with_five(name))


def check(outcomes, takeovers):
    assert sorted(outcomes, key=lambda outcome: outcome[1].name) == (
        [("next", Role.FOLLOWER, takeovers)] * 4 + [("next", Role.LEADER, takeovers)]
    )


@pytest.fixture
def pipe():
    """Its reading end, and the writing one."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@can_watch
def test_a_loop_is_told_of_its_leaders_death(table_name, hands, kind, pipe):
    sync = Merger(table_name)
    leader = hands.start(sync.execute, "key", time.sleep, 60, where="forked")
    wait_until(sync.flights)
    follower = hands.start(follow_untimed, table_name, kind, pipe[1], where="forked")
    assert os.read(pipe[0], 1) == b"w"
    leader.kill()
    check(follower.result(), 1)


@can_watch
def test_a_loop_is_told_of_the_death_of_a_leader_that_took_over(table_name, hands, kind, pipe):
    sync = Merger(table_name)
    first = hands.start(sync.execute, "key", time.sleep, 60, where="forked")
    wait_until(sync.flights)
    second = hands.start(sync.execute, "key", time.sleep, 60, where="forked")
    wait_for_followers(sync)
    follower = hands.start(follow_untimed, table_name, kind, pipe[1], where="forked")
    wait_for_followers(sync, 2)
    first.kill()
    assert os.read(pipe[0], 1) == b"w"
    assert sync.flights()[0].leader_pid == second.pid
    second.kill()
    check(follower.result(), 2)


def test_a_loop_finds_its_leaders_death_by_looking(table_name, hands, kind):
    sync = Merger(table_name)
    leader = hands.start(sync.execute, "key", time.sleep, 60, where="forked")
    wait_until(sync.flights)
    follower = hands.start(follow_by_looks, table_name, kind, where="forked")
    wait_for_followers(sync)
    leader.kill()
    check(follower.result(), 1)


def go_on_joining(name, kind, leader_pid):
    """Follow one flight, kill its leader, go on joining others until it lands; whether it does."""

    async def main():
        merger, joined = AsyncMerger(name), deque()
        next_one = asyncio.create_task(merger.execute("key", asyncio.sleep, 0, "next"))
        await asyncio.sleep(0)
        os.kill(leader_pid, signal.SIGKILL)
        deadline = time.monotonic() + BOUND / 2
        for number in itertools.cycle(range(MANY)):
            if next_one.done() or time.monotonic() > deadline:
                break
            joined.append(asyncio.create_task(merger.execute(number, never)))
            await asyncio.sleep(0)
            if len(joined) > MANY // 2:  # it has left its flight when its turn comes again
                joined.popleft().cancel()
        for call in joined:
            call.cancel()
        return next_one.done()

    forbid_watching()
    return run(kind, main())


def test_a_loop_that_goes_on_joining_flights_does_not_put_off_its_looks(table_name, hands, kind):
    sync = Merger(table_name)
    leader = hands.start(sync.execute, "key", time.sleep, 60, where="forked")
    wait_until(sync.flights)
    leads = [sync._begin(number) for number in range(MANY)]
    follower = hands.start(go_on_joining, table_name, kind, leader.pid, where="forked")
    assert follower.result(), "a look was put off for as long as flights were joined"
    for lead in leads:
        lead.abandon()


def threads():
    """Return the names of this process's threads, but of those that end meanwhile."""
    names = set()
    for entry in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            names.add(Path(entry, "comm").read_text().strip())
    return names


def wait_and_stop(name, kind):
    async def main():
        merger = AsyncMerger(name)
        call = asyncio.create_task(merger.execute("key", never))
        while "uniflight-watch" not in threads():
            await asyncio.sleep(0.001)
        call.cancel()
        while "uniflight-watch" in threads():  # it ends a second or two later
            await asyncio.sleep(0.01)

    run(kind, main())


@can_watch
def test_the_thread_that_watches_leaders_ends_when_nobody_waits(table_name, hands, kind, leading):
    lead = leading(Merger(table_name), "key")
    hands.start(wait_and_stop, table_name, kind, where="forked").result()
    lead.finish()


def test_doctor_says_where_dead_leaders_have_to_be_looked_for():
    command = [sys.executable, "-m", "uniflight_mp", "doctor"]
    output = subprocess.run(
        command, preexec_fn=forbid_watching, capture_output=True, text=True, timeout=BOUND
    ).stdout
    (line,) = [line for line in output.splitlines() if " kernel " in line]
    assert "WARN" in line
    assert "futex_waitv" in output
