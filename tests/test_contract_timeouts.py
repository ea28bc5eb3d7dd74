"""Contract: how long a follower waits, and how long a leader may lead."""

from __future__ import annotations

import math
import pickle
import signal
import time

import pytest

from uniflight_mp import FlightTimeout, LeaderDied, Merger, Role, UniflightError


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


# ---- timeout ----------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.0, 0.01, 0.2])
def test_a_follower_gives_up_after_its_timeout_and_the_flight_goes_on(
    merger, crew, leading, followed, timeout
):
    leader = leading(merger, "sku:42")
    patient = crew.start(merger.flight, "sku:42", never)
    followed(merger)
    error = crew.start(merger.with_options(timeout=timeout).execute, "sku:42", never).error()
    assert type(error) is FlightTimeout
    assert isinstance(error, TimeoutError)
    assert isinstance(error, UniflightError)
    assert (error.key, error.timeout) == ("sku:42", timeout)
    assert timeout <= error.waited < timeout + 20
    assert "'sku:42'" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.key, again.timeout, again.waited) == (error.key, error.timeout, error.waited)
    assert followed(merger).key == "sku:42"
    leader.finish(1)
    assert patient.result().value == 1
    assert merger.stats().timeouts == 1


@pytest.mark.parametrize("timeout", [None, math.inf, 1e300, 4e9, 25])
def test_a_follower_with_a_long_timeout_waits_for_the_value(
    merger, crew, leading, followed, timeout
):
    leader = leading(merger, "key")
    call = crew.start(merger.with_options(timeout=timeout).flight, "key", never)
    followed(merger)
    leader.finish(1)
    assert call.result().value == 1


def test_a_timeout_is_no_limit_for_leaders(merger):
    outcome = merger.with_options(timeout=0).flight("key", lambda: time.sleep(0.05))
    assert outcome.role is Role.LEADER


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_on_timeout_run_runs_the_function_alone(merger, crew, leading, timeout):
    leading(merger, "key")
    view = merger.with_options(timeout=timeout, on_timeout="run", strict=True)
    call = crew.start(view.flight, "key", give, "own")
    outcome = call.result()
    assert (outcome.value, outcome.role, outcome.followers) == ("own", Role.SOLO, 0)
    assert outcome.leader_pid == call.pid
    assert timeout <= outcome.waited < timeout + 20
    assert merger.stats().solo["timeout"] == 1
    assert merger.stats().timeouts == 1


def test_a_follower_that_gave_up_is_not_waited_for(merger, hands, leading):
    leader = leading(merger, "key")
    for _ in range(20):
        with pytest.raises(FlightTimeout):
            merger.with_options(timeout=0).execute("key", never)
    assert merger.flights()[0].followers == 0
    assert leader.outcome(1).followers == 0


@pytest.mark.shared
def test_when_the_first_follower_gives_up_the_next_one_still_sees_the_leader_die(
    merger, hands, followed, until
):
    leader = hands.start(merger.execute, "key", time.sleep, 60, where="forked")
    until(merger.flights)
    # Long enough for both to have come by then.
    first = hands.start(merger.with_options(timeout=2).execute, "key", never, where="forked")
    followed(merger, 1)
    second = hands.start(merger.flight, "key", give, 1, where="forked")
    followed(merger, 2)
    assert isinstance(first.error(), FlightTimeout)
    leader.kill()
    assert second.result().role is Role.LEADER


@pytest.mark.shared
def test_a_stopped_leader_does_not_hold_its_followers_past_their_timeout(merger, hands, until):
    leader = hands.start(merger.execute, "key", time.sleep, 60, where="forked")
    until(merger.flights)
    leader.kill(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(FlightTimeout):
        merger.with_options(timeout=0.2).execute("key", never)
    assert 0.2 <= time.monotonic() - began < 15
    leader.kill(signal.SIGKILL)


# ---- lease and fence --------------------------------------------------------------------


def test_a_leader_that_outlives_its_lease_is_superseded_and_fenced(
    table_name, crew, leading, followed
):
    merger = Merger(table_name, lease=0.1)
    stuck = leading(merger, "key")
    calls = [crew.start(merger.with_options(lease=30).flight, "key", give, n) for n in (1, 2)]
    outcomes = [call.result() for call in calls]
    assert sorted(outcome.role.value for outcome in outcomes) in (
        ["follower", "leader"],
        ["leader", "leader"],  # the second began when the first had finished
    )
    assert outcomes[0].takeovers + outcomes[1].takeovers >= 1
    late = stuck.outcome("late")
    assert (late.value, late.role) == ("late", Role.LEADER)
    assert merger.stats().fenced == 1
    assert merger.flights() == []


@pytest.mark.shared
def test_the_late_result_of_a_fenced_leader_goes_only_to_its_own_caller(
    table_name, hands, leading, followed
):
    merger = Merger(table_name, lease=0.05)
    stuck = leading(merger, "key")
    leader = leading(merger.with_options(lease=None), "key")  # waits for the lease, takes over
    assert merger.flights()[0].takeovers == 1
    call = hands.start(merger.flight, "key", never, where="forked")
    followed(merger)
    assert stuck.outcome("late").value == "late"
    assert followed(merger).state == "running"
    leader.finish("value")
    assert call.result().value == "value"


@pytest.mark.parametrize("error", [LookupError("late"), KeyboardInterrupt()])
def test_the_late_exception_of_a_fenced_leader_goes_only_to_its_own_caller(
    table_name, hands, leading, followed, error
):
    merger = Merger(table_name, lease=0.05)
    stuck = leading(merger, "key")
    leader = leading(merger.with_options(lease=None), "key")
    call = hands.start(merger.flight, "key", never)
    followed(merger)
    assert stuck.finish(error).error() is error
    leader.finish("value")
    assert call.result().value == "value"
    assert merger.stats().failures == 0


def test_the_lease_is_that_of_the_leaders_call(merger, leading):
    leading(merger, "key")  # without a lease
    with pytest.raises(FlightTimeout):
        merger.with_options(lease=0.01, timeout=0.2).execute("key", never)
    assert merger.stats().takeovers == 0


def test_a_lease_of_nothing_is_over_at_once(table_name, leading):
    merger = Merger(table_name, lease=0)
    leading(merger, "key")
    assert merger.flight("key", give, 1).role is Role.LEADER


def test_a_leader_past_its_lease_still_finishes_if_nobody_came(table_name, hands):
    merger = Merger(table_name, lease=0.01)
    outcome = merger.flight("key", lambda: time.sleep(0.1))
    assert outcome.role is Role.LEADER
    assert merger.stats().fenced == 0


def test_a_leader_past_its_lease_may_not_join_itself(table_name):
    merger = Merger(table_name, lease=0)
    with pytest.raises(RuntimeError, match="already leads"):
        merger.execute("key", lambda: merger.execute("key", never))


@pytest.mark.shared
def test_overrun_leases_use_up_max_takeovers(table_name, hands, leading, followed, until):
    merger = Merger(table_name, lease=30, max_takeovers=0)
    leading(merger.with_options(lease=1), "key")  # whoever comes later starts a fresh flight
    error = hands.start(merger.execute, "key", never, where="forked").error()
    assert isinstance(error, LeaderDied)
