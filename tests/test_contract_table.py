"""Contract: what one can see of a table, forget, and what happens when it has no room."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time

import pytest

from uniflight_mp import (
    FlightInfo,
    Limits,
    Merger,
    Role,
    Stats,
    TableUnavailable,
)

TINY = Limits(flights=1, waiters=2, threads=64, inline_bytes=4096)


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


# ---- forget -----------------------------------------------------------------------------


def test_after_forget_the_next_call_is_fresh_and_those_who_joined_keep_theirs(
    merger, crew, leading, followed
):
    leader = leading(merger, "key")
    joined = crew.start(merger.flight, "key", never)
    followed(merger)
    assert crew.start(merger.forget, "key").result() is True
    fresh = crew.start(merger.flight, "key", give, "fresh").result()
    assert (fresh.value, fresh.role) == ("fresh", Role.LEADER)
    assert leader.outcome("old").followers == 1
    assert joined.result().value == "old"


def test_a_fresh_flight_is_joined_while_the_forgotten_one_goes_on(merger, crew, leading, followed):
    old = leading(merger, "key")
    merger.forget("key")
    fresh = leading(merger, "key")
    call = crew.start(merger.flight, "key", never)
    followed(merger)
    assert old.outcome("old").followers == 0
    assert fresh.outcome("fresh").followers == 1
    assert call.result().value == "fresh"


def test_forget_tells_whether_there_was_a_flight(merger, leading):
    assert merger.forget("key") is False
    leading(merger, "key")
    assert merger.forget("other") is False
    assert merger.forget("key") is True
    assert merger.forget("key") is False


def test_a_leader_may_forget_its_own_flight_and_call_again(merger):
    def function():
        assert merger.forget("key")
        return merger.execute("key", give, "inner")

    assert merger.execute("key", function) == "inner"


# ---- flights and stats ------------------------------------------------------------------


@pytest.mark.shared
def test_flights_tells_all_about_each_flight_the_oldest_first(merger, hands, leading, followed):
    assert merger.flights() == []
    leading(merger, ("sku", 42))
    hands.start(merger.flight, ("sku", 42), never, where="forked")
    old = followed(merger)
    leading(merger, b"young")
    first, second = merger.flights()
    thread = next(t for t in threading.enumerate() if t.native_id == first.leader_thread)
    assert thread is not threading.current_thread()
    assert first == FlightInfo(
        key=("sku", 42),
        state="running",
        leader_pid=os.getpid(),
        leader_thread=thread.native_id,
        age=first.age,
        followers=1,
        takeovers=0,
        result_bytes=0,
    )
    assert first.age >= old.age > 0
    assert (second.key, second.followers) == (b"young", 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.followers = 2


@pytest.mark.shared
def test_flights_shows_a_result_that_is_still_being_fetched(merger, hands, leading, followed):
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", never, where="forked")
    followed(merger)
    call.kill(signal.SIGSTOP)
    leader.finish("12345")
    (flight,) = merger.flights()
    assert (flight.state, flight.followers, flight.result_bytes) == ("done", 1, 6)
    call.kill(signal.SIGCONT)
    assert call.result().value == "12345"
    assert merger.flights() == []


def test_flights_sweeps_those_of_the_dead(merger, processes, until):
    call = processes.start(merger.execute, "key", time.sleep, 60)
    until(merger.flights)
    call.kill()
    call.join()
    until(lambda: merger.flights() == [], 5)


def test_flights_and_stats_show_the_whole_table_to_every_process(merger, processes, leading):
    leading(merger, "key")
    (seen,) = processes.start(merger.flights).result()
    assert (seen.key, seen.leader_pid) == ("key", os.getpid())
    assert processes.start(merger.stats).result() == merger.stats()


@pytest.mark.shared
def test_each_counter_counts_what_it_says(merger, hands, leading, followed):
    reasons = [
        "table_full",
        "too_many_waiters",
        "too_many_threads",
        "lock_timeout",
        "damaged",
        "not_shareable",
        "too_large",
        "not_decodable",
        "timeout",
        "unavailable",
    ]
    empty = merger.stats()
    assert empty == Stats(0, 0, dict.fromkeys(reasons, 0), 0, 0, 0, 0, 0)

    def step(**changes):
        nonlocal before
        now = merger.stats()
        found = {
            name: getattr(now, name) - getattr(before, name)
            for name in vars(now)
            if name != "solo" and getattr(now, name) != getattr(before, name)
        }
        assert found == changes
        before = now

    before = empty
    merger.execute("key", give, 1)
    step(leaders=1)
    leader = leading(merger, "key")
    calls = [hands.start(merger.flight, "key", never, where=w) for w in ("threads", "forked")]
    followed(merger, 2)
    leader.finish("12345")
    for call in calls:
        call.result()
    step(leaders=1, followers=2, published_bytes=6)
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", never)
    followed(merger)
    leader.finish(LookupError())
    call.error()
    assert merger.stats().published_bytes > before.published_bytes
    before = dataclasses.replace(before, published_bytes=merger.stats().published_bytes)
    step(leaders=1, followers=1, failures=1)
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", give, 1)
    followed(merger)
    leader.finish(SystemExit())
    call.result()
    step(leaders=2, takeovers=1)
    leader = leading(merger, "key")
    with pytest.raises(TimeoutError):
        merger.with_options(timeout=0).execute("key", never)
    step(leaders=1, timeouts=1)


@pytest.mark.shared
def test_a_call_that_ran_alone_is_no_follower(merger, hands, leading, followed):
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", give, 1, where="forked")
    followed(merger)
    with pytest.warns(RuntimeWarning):
        leader.finish(object())
    assert call.result().role is Role.SOLO
    stats = merger.stats()
    assert (stats.followers, stats.solo["not_shareable"]) == (0, 1)


# ---- no room ----------------------------------------------------------------------------


def fill(merger, leading):
    """Lead until the table has no room for another flight; return the leaders."""
    capacity = merger._segment.table.geometry()["flights"]
    return [leading(merger, n) for n in range(capacity)]


def assert_solo_or_refused(merger, reason, start):
    """A call runs alone and is counted; a strict one is refused with the reason."""
    before = merger.stats().solo[reason]
    outcome = start(merger.flight, "extra", give, "own").result()
    assert (outcome.value, outcome.role, outcome.followers) == ("own", Role.SOLO, 0)
    assert merger.stats().solo[reason] == before + 1
    error = start(merger.with_options(strict=True).flight, "extra", never).error()
    assert type(error) is TableUnavailable
    assert (error.reason, error.table) == (reason, merger.name)
    assert f"raise Limits.{dict(RAISE)[reason]}" in str(error)
    assert merger.stats().solo[reason] == before + 1


RAISE = [
    ("table_full", "flights"),
    ("too_many_waiters", "waiters"),
    ("too_many_threads", "threads"),
]


def test_with_every_flight_taken_a_call_runs_alone(table_name, crew, leading):
    merger = Merger(table_name, limits=dataclasses.replace(TINY, threads=100, waiters=100))
    leaders = fill(merger, leading)
    assert_solo_or_refused(merger, "table_full", crew.start)
    leaders[0].finish()
    assert crew.start(merger.flight, "extra", give, 1).result().role is Role.LEADER


@pytest.mark.shared
def test_flights_of_the_dead_make_room(table_name, hands, leading, until):
    merger = Merger(table_name, limits=dataclasses.replace(TINY, threads=100, waiters=100))
    leaders = fill(merger, leading)
    leaders[0].finish()
    dead = hands.start(merger.execute, "dead", time.sleep, 60, where="forked")
    until(lambda: len(merger.flights()) == len(leaders))
    dead.kill()
    dead.join()
    assert merger.flight("extra", give, 1).role is Role.LEADER


def test_with_every_waiter_taken_a_call_runs_alone(table_name, crew, leading, followed):
    merger = Merger(table_name, limits=TINY)
    leader = leading(merger, "extra")
    calls = [crew.start(merger.flight, "extra", never) for _ in range(TINY.waiters)]
    followed(merger, TINY.waiters)
    assert_solo_or_refused(merger, "too_many_waiters", crew.start)
    leader.finish(1)
    assert [call.result().value for call in calls] == [1, 1]


def test_with_every_thread_taken_a_call_runs_alone(table_name, crew, leading, until):
    merger = Merger(table_name, limits=dataclasses.replace(TINY, threads=2, waiters=2))
    leaders = [leading(merger, n) for n in range(2)]
    assert_solo_or_refused(merger, "too_many_threads", crew.start)
    leaders[0].finish()
    # For Python a thread is over a moment before libc gives its record back.
    until(lambda: merger._segment.table.usage()[2] < 2)
    assert crew.start(merger.flight, "extra", give, 1).result().role is Role.LEADER


def test_a_thread_that_ended_makes_room_for_another(table_name, hands, until):
    merger = Merger(table_name, limits=dataclasses.replace(TINY, threads=1))
    for _ in range(5):
        call = hands.start(merger.flight, "key", give, 1)
        assert call.result().role is Role.LEADER
        call.join()
        until(lambda: merger._segment.table.usage() == (0, 0, 0))


def test_all_threads_of_the_default_table_can_wait_for_one_key(merger):
    sizes = merger._segment.table.geometry()
    assert sizes["waiters_per_group"] >= sizes["threads"] == 1024
