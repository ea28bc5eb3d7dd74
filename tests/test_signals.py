"""Contract: signals, exceptions at any moment, finalizers, and the end of the interpreter.

Each storm runs in a forked child, whose timers and handlers are its own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress

import pytest
from crew import BOUND

from uniflight_mp import AsyncMerger, FlightTimeout, Merger, MsgpackCodec, Role
from uniflight_mp.segment import destroy
from uniflight_mp.shmfile import locked, segment_name


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


def usage(merger):
    return merger._segment.table.usage()[:2]


class Tick(KeyboardInterrupt):
    """Raised by a signal handler."""


class storm:
    """A timer that interrupts this process about a thousand times a second."""

    def __init__(self, handler, seconds=0.001):
        self.handler, self.seconds = handler, seconds

    def __enter__(self):
        signal.signal(signal.SIGALRM, self.handler)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, self.seconds)
        return self

    def __exit__(self, *unused):
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)


class storm_of_ticks(storm):
    """A storm whose handler raises Tick, into ``call`` only and at most once in each.

    With ``keep`` the exceptions stay alive, and with them the frames they passed through, as they
    do in a Future, in a log record, or in a reference cycle.
    """

    def __init__(self, seconds, keep=False):
        super().__init__(self._tick, seconds)
        self.hits, self.kept = 0, []
        self._keep, self._armed = keep, False

    def _tick(self, *unused):
        if self._armed:
            self._armed = False  # not into the handling of the exception as well
            raise Tick

    def call(self, function, *args):
        """Return what the function returns, or None if it was hit."""
        try:
            self._armed = True
            value = function(*args)
            self._armed = False
        except Tick as error:
            self.hits += 1
            if self._keep:
                self.kept.append(error)
            return None
        return value


# ---- a waiting call handles signals as any blocking call does ---------------------------


def wait_in_a_storm(merger, timeout, ticks):
    def tick(*unused):
        ticks.value += 1

    with storm(tick):
        began = time.monotonic()
        try:
            return merger.with_options(timeout=timeout).execute("key", never)
        except FlightTimeout as error:
            return time.monotonic() - began, error.waited


def test_a_storm_of_signals_makes_no_wait_end_early_or_late(merger, hands, leading):
    leading(merger, "key")
    ticks = multiprocessing.RawValue("i")
    took, waited = hands.start(wait_in_a_storm, merger, 0.5, ticks, where="forked").result()
    assert 0.5 <= waited <= took < 15
    assert ticks.value > 5


def test_a_storm_of_signals_loses_no_wake_up(merger, hands, leading, followed, until):
    leader = leading(merger, "key")
    ticks = multiprocessing.RawValue("i")
    call = hands.start(wait_in_a_storm, merger, None, ticks, where="forked")
    followed(merger)
    before = ticks.value
    until(lambda: ticks.value > before + 100)
    leader.finish("value")
    assert call.result() == "value"


def test_signal_handlers_run_while_a_call_waits(merger, hands, leading, followed, until, tmp_path):
    leader = leading(merger, "key")
    call = hands.start(wait_with_handler, merger, tmp_path / "ran", where="forked")
    followed(merger)
    call.kill(signal.SIGUSR1)
    until((tmp_path / "ran").exists)
    assert not call.finished()
    leader.finish("value")
    assert call.result() == "value"


def wait_with_handler(merger, path):
    signal.signal(signal.SIGUSR1, lambda *unused: path.touch())
    return merger.execute("key", never)


def test_a_handler_may_use_the_library_while_its_thread_waits(merger, hands, leading, followed):
    leader = leading(merger, "key")
    call = hands.start(wait_with_reentrant_handler, merger, where="forked")
    followed(merger, key="key")
    call.kill(signal.SIGUSR1)
    assert followed(merger, 2, "key")  # the handler waits too
    leader.finish("value")
    assert call.result() == ("value", ["value", "other"])


def wait_with_reentrant_handler(merger):
    def handler(*unused):
        seen.append(merger.execute("key", never))
        seen.append(merger.execute("other", give, "other"))

    seen = []
    signal.signal(signal.SIGUSR1, handler)
    return merger.execute("key", never), seen


def test_ctrl_c_in_a_wait_is_a_keyboard_interrupt_and_frees_the_room(
    merger, hands, leading, followed, until
):
    leader = leading(merger, "key")
    call = hands.start(interrupted_follower, merger, where="forked")
    followed(merger)
    sent = time.monotonic()
    call.kill(signal.SIGINT)
    received, in_use = call.result()
    assert received - sent < 5
    assert in_use == (1, 0)  # the leader's flight, no waiter, though the exception is kept
    assert leader.outcome(1).followers == 0


def interrupted_follower(merger):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        merger.execute("key", never)
    except KeyboardInterrupt as error:
        received = time.monotonic()
        kept = error
    in_use = usage(merger)
    del kept
    return received, in_use


def test_ctrl_c_in_the_leaders_function_lets_a_follower_lead(merger, hands, followed, until):
    leader = hands.start(interrupted_leader, merger, where="forked")
    until(merger.flights)
    call = hands.start(merger.flight, "key", give, 1, where="forked")
    followed(merger)
    leader.kill(signal.SIGINT)
    assert call.result().role is Role.LEADER
    assert isinstance(leader.error(), KeyboardInterrupt)


def interrupted_leader(merger):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    merger.execute("key", time.sleep, 60)


# ---- an exception at any moment ---------------------------------------------------------


def raise_at_any_moment(table_name, rounds, strict, keep, seconds=0.0003):
    """Call while a handler raises; return how often it hit, and what is in use afterwards."""
    merger, values = Merger(table_name, strict=strict), 0
    with storm_of_ticks(seconds, keep) as ticks:
        for number in range(rounds):
            values += ticks.call(merger.execute, ("key", number % 7), give, number) == number
    in_use = usage(merger)
    kept = ticks.kept if in_use[0] else []
    where = [traceback.format_tb(error.__traceback__)[-1] for error in kept]
    return ticks.hits, values, in_use, where[-3:]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_a_handler_that_raises_at_any_moment_loses_no_flight(table_name, hands, strict, keep):
    Merger(table_name)
    call = hands.start(raise_at_any_moment, table_name, 200_000, strict, keep, where="forked")
    hits, values, in_use, where = call.result(60)
    assert hits > 20
    assert values + hits == 200_000
    assert in_use == (0, 0), where


def follow_at_any_moment(table_name, rounds, keep):
    """Follow while a handler raises in this thread; another thread leads, again and again."""

    def lead():
        while not over:
            merger.execute("key", time.sleep, 0.0005)

    merger = Merger(table_name)
    over = False
    thread = threading.Thread(target=lead)
    thread.start()
    with storm_of_ticks(0.0007, keep) as ticks:
        for _ in range(rounds):
            ticks.call(merger.execute, "key", give, None)
    over = True
    thread.join(20)
    return ticks.hits, thread.is_alive(), usage(merger)


@pytest.mark.parametrize("keep", [False, True])
def test_a_handler_that_raises_at_any_moment_loses_no_waiter(table_name, hands, keep):
    Merger(table_name)
    call = hands.start(follow_at_any_moment, table_name, 5_000, keep, where="forked")
    hits, hangs, in_use = call.result(60)
    assert hits > 20
    assert not hangs
    assert in_use == (0, 0)


def share_at_any_moment(table_name, rounds):
    """Lead and follow with large results while a handler raises; return how often it hit, and
    which results are still open afterwards."""

    def function():
        time.sleep(0.0003)
        return bytes(100_000)

    merger = Merger(table_name)
    with storm_of_ticks(0.0007) as ticks:
        for _ in range(rounds):
            ticks.call(merger.execute, "key", function)
    names = (os.readlink(link.path) for link in os.scandir("/proc/self/fd") if link.is_file())
    return ticks.hits, [name for name in names if "~r" in name]


@pytest.mark.shared
def test_a_handler_that_raises_at_any_moment_leaves_no_large_result_open(table_name, hands):
    Merger(table_name)
    calls = [hands.start(share_at_any_moment, table_name, 3_000, where="forked") for _ in range(3)]
    for call in calls:
        hits, left = call.result(60)
        assert hits > 20
        assert left == []


def open_at_any_moment(table_name, rounds):
    """Make and remove a table while a handler raises; return how often it hit."""

    def make_and_remove():
        Merger(table_name)
        destroy(segment, table_name)

    segment = segment_name(table_name)
    with storm_of_ticks(0.0007) as ticks:
        for _ in range(rounds):
            ticks.call(make_and_remove)
    with locked(segment, table_name, 0):  # or it says who holds it: this process
        return ticks.hits


@pytest.mark.shared
def test_a_handler_that_raises_while_a_table_is_made_leaves_it_unlocked(table_name, hands):
    assert hands.start(open_at_any_moment, table_name, 500, where="forked").result(60) > 20


class StruckLead:
    """A Lead; a signal handler raises as ``publish`` returns."""

    def __init__(self, lead):
        self.lead = lead

    def __getattr__(self, name):
        return getattr(self.lead, name)

    def publish(self, *args):
        self.lead.publish(*args)
        raise Tick


@pytest.mark.shared
def test_a_leader_interrupted_when_it_has_published_leaves_followers_their_result(
    merger, hands, followed, monkeypatch
):
    def function():
        calls.append(hands.start(merger.flight, "key", never, where="forked"))
        followed(merger)
        return bytes(100_000)

    calls, publish = [], Merger._publish_extra
    monkeypatch.setattr(
        Merger, "_publish_extra", lambda self, lead, *rest: publish(self, StruckLead(lead), *rest)
    )
    with pytest.raises(Tick):
        merger.execute("key", function)
    outcome = calls[0].result()
    assert (outcome.role, len(outcome.value)) == (Role.FOLLOWER, 100_000)
    assert usage(merger) == (0, 0)


class InterruptedCodec(MsgpackCodec):
    """Is interrupted while it encodes, when the function has returned already."""

    def encode(self, value):
        raise KeyboardInterrupt

    def decode(self, payload):
        raise KeyboardInterrupt


def test_a_leader_interrupted_while_it_publishes_lets_a_follower_lead(table_name, hands, followed):
    def function():
        calls.append(hands.start(plain.flight, "key", give, 1, where="forked"))
        followed(plain)
        return "value"

    calls, plain = [], Merger(table_name)
    with pytest.raises(KeyboardInterrupt) as info:
        Merger(table_name, codec=InterruptedCodec()).execute("key", function)
    assert calls[0].result(10).role is Role.LEADER  # while the exception is kept, with its frames
    assert info.value.__traceback__ is not None


def test_a_follower_interrupted_while_it_decodes_frees_its_room(
    table_name, hands, leading, followed
):
    plain = Merger(table_name)
    leader = leading(plain, "key")
    interrupted = Merger(table_name, codec=InterruptedCodec())
    call = hands.start(interrupted_decode, interrupted, where="forked")
    followed(plain)
    leader.finish("value")
    assert call.result() == (0, 0)


def interrupted_decode(merger):
    try:
        merger.execute("key", never)
    except KeyboardInterrupt as error:
        kept = error
    in_use = usage(merger)
    del kept
    return in_use


# ---- tasks and greenlets ----------------------------------------------------------------

SECONDS = 2.0
ENOUGH = 10  # strikes


class Blow(BaseException):
    """Raised by a signal handler; unlike KeyboardInterrupt it does not end a loop."""


def strike_while_in(module):
    """Return a handler that raises Blow wherever it meets our code in a call of that module.

    Not in asyncio's: a future whose callbacks are being scheduled would never wake its task.
    """

    def handler(number, frame):
        if "uniflight_mp" not in frame.f_code.co_filename:
            return
        while frame is not None:
            if frame.f_code.co_name == "execute" and frame.f_code.co_filename.endswith(module):
                struck.append(number)
                raise Blow
            frame = frame.f_back

    struck = []
    return handler, struck


def lead_most_of_the_time(merger, keys, until):
    def call(key):
        while time.monotonic() < until:
            merger.execute(key, time.sleep, 0.02)

    threads = [threading.Thread(target=call, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def task_in_a_storm(merger, keys, goes_on):
    async def give():
        return 1

    calls = 0
    while goes_on():
        for key in (*keys, *keys[1:] * 20):  # mostly those that nobody leads for long
            calls += 1
            with suppress(Blow):
                await asyncio.wait_for(merger.execute(key, give), 10)
    return calls


def tasks_in_a_storm(name, keys, until):
    def goes_on():
        now = time.monotonic()
        return now < until or (len(struck) <= ENOUGH and now < until + BOUND / 2)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: troubles.append(repr(context)))
        with storm(handler, 0.002):
            tasks = [task_in_a_storm(merger, keys, goes_on) for _ in range(8)]
            calls = sum(await asyncio.gather(*tasks))
        # What was struck is cleaned up a little later, and the process that leads has to end.
        while time.monotonic() < until + BOUND and (merger.flights() or any(usage(merger))):
            await asyncio.sleep(0.001)
        return calls

    troubles = []
    merger = AsyncMerger(name)
    handler, struck = strike_while_in("aio.py")
    calls = asyncio.run(main())
    return calls, len(struck), troubles, [f.key for f in merger.flights()], usage(merger)


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="Python 3.10 runs handlers between any two bytecodes, also where nobody can clean up",
)
def test_exceptions_raised_anywhere_in_a_task_lose_no_flight_and_stop_no_loop(merger, hands):
    keys, until = ("one", "two", "three"), time.monotonic() + SECONDS
    leader = hands.start(lead_most_of_the_time, merger, keys[:1], until, where="forked")
    storms = hands.start(tasks_in_a_storm, merger.name, keys, until, where="forked")
    calls, struck, troubles, flights, in_use = storms.result()
    leader.result()
    assert calls > 50
    assert struck > ENOUGH
    # What strikes the loop's own call of a desk is reported by the loop; it goes on.
    assert [trouble for trouble in troubles if "Blow" not in trouble] == []
    assert (flights, in_use) == ([], (0, 0))
