"""Contract: a leader that raises, is cancelled, dies, or would wait for itself."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import threading
import time
import weakref

import pytest
from crew import wait_until

from uniflight_mp import LeaderDied, LeaderPanicked, Merger, MsgpackCodec, Role, UniflightError


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


def pid_of_leader():
    return os.getpid()


def hang():
    time.sleep(60)


class NotFound(LookupError):
    """Importable wherever this module is."""


class Fragile(Exception):
    """Does not rebuild from its args."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")


class Registered(Exception):
    """Hides from its module; see the test."""


# ---- the leader raises ------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [KeyError("sku", 42), NotFound("sku"), OSError(2, "No such file", "f"), ValueError()]
)
def test_an_exception_has_the_same_class_for_everybody(merger, crew, leading, followed, error):
    leader = leading(merger, "key")
    calls = [crew.start(merger.execute, "key", never) for _ in range(2)]
    followed(merger, 2)
    assert leader.finish(error).error() is error
    for call in calls:
        got = call.error()
        assert (type(got), got.args, str(got)) == (type(error), error.args, str(error))
        assert got is not error
        cause = got.__cause__
        assert type(cause) is LeaderPanicked
        assert cause.leader_pid == os.getpid()
        assert cause.message == str(error)
        assert cause.exc_type.endswith(type(error).__name__)
        assert "_function" in cause.traceback
        assert cause.traceback.rstrip().endswith(str(error))
    assert calls[0].error() is not calls[1].error()
    assert merger.stats().failures == 1


def test_nothing_of_a_failure_is_remembered(merger, crew, leading, followed):
    leader = leading(merger, "key")
    call = crew.start(merger.execute, "key", never)
    followed(merger)
    leader.finish(NotFound())
    assert isinstance(call.error(), NotFound)
    assert merger.flights() == []
    assert crew.start(merger.execute, "key", give, 1).result() == 1


def test_an_exception_nobody_waits_for_goes_unchanged_to_its_caller(merger):
    error = NotFound("x")
    with pytest.raises(NotFound) as info:
        merger.execute("key", give_error, error)
    assert info.value is error
    assert error.__cause__ is None
    assert merger.stats().failures == 1


def give_error(error):
    raise error


def test_an_exception_that_does_not_rebuild_arrives_as_leader_panicked(
    merger, crew, leading, followed
):
    leader = leading(merger, "key")
    call = crew.start(merger.execute, "key", never)
    followed(merger)
    assert type(leader.finish(Fragile(404, "gone")).error()) is Fragile
    error = call.error()
    assert type(error) is LeaderPanicked
    assert (error.message, error.leader_pid) == ("404: gone", os.getpid())
    assert error.exc_type.endswith("Fragile")
    assert error.__cause__ is None


@pytest.mark.shared
def test_an_exception_whose_module_the_follower_has_not_imported_is_not_imported(
    merger, hands, leading, followed, monkeypatch
):
    monkeypatch.setattr(NotFound, "__module__", "antigravity")
    leader = leading(merger, "key")
    call = hands.start(merger.execute, "key", never, where="spawned")
    followed(merger)
    leader.finish(NotFound("x"))
    assert type(call.error()) is LeaderPanicked
    assert "antigravity" not in sys.modules


def test_a_registered_exception_arrives_as_its_class(table_name, processes, leading, followed):
    merger = Merger(table_name, codec=MsgpackCodec().register(Registered))
    leader = leading(merger, "key")
    call = processes.start(merger.execute, "key", never)
    followed(merger)
    leader.finish(Registered(1, (2,)))
    assert type(call.error()) is Registered
    assert call.error().args == (1, (2,))


def test_except_works_whatever_the_role(merger, crew, leading, followed):
    leader = leading(merger, "key")
    call = crew.start(merger.execute, "key", never)
    followed(merger)
    for error in [leader.finish(NotFound("x")).error(), call.error()]:
        with pytest.raises(LookupError):
            raise error


def test_a_followers_exception_carries_no_inner_workings_and_is_freed_at_once(
    merger, leading, followed, hands
):
    def follow():
        try:
            return merger.execute("key", never)
        except NotFound as error:
            return error.__context__, weakref.ref(error)

    leader = leading(merger, "key")
    call = hands.start(follow)
    followed(merger)
    leader.finish(NotFound("x"))
    context, freed = call.result()
    assert context is None or isinstance(context, UniflightError)
    del context
    call._message = call._thread.message = None
    assert freed() is None  # without a garbage collection


# ---- the leader is cancelled ------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), asyncio.CancelledError("x")]
)
def test_nobody_inherits_a_cancellation_and_one_follower_leads(
    merger, crew, leading, followed, error
):
    leader = leading(merger, "key")
    calls = [crew.start(merger.flight, "key", pid_of_leader) for _ in range(3)]
    followed(merger, 3)
    assert leader.finish(error).error() is error
    outcomes = [call.result() for call in calls]
    # All three waited, but the new leader may be done before the others wake up: those who were
    # still there got its value, nobody got the cancellation.
    assert [outcome.role for outcome in outcomes].count(Role.LEADER) == 1
    (first,) = [outcome for outcome in outcomes if outcome.role is Role.LEADER]
    assert {outcome.value for outcome in outcomes} == {first.leader_pid}
    assert [first.takeovers, first.followers] == [1, 2]
    assert first.waited > 0
    stats = merger.stats()
    assert (stats.takeovers, stats.failures, stats.leaders) == (1, 0, 2)


def test_a_cancelled_leader_without_followers_leaves_nothing(merger):
    with pytest.raises(KeyboardInterrupt):
        merger.execute("key", give_error, KeyboardInterrupt())
    assert merger.flights() == []
    assert merger.execute("key", give, 1) == 1


def test_an_orphaned_flight_is_led_by_a_newcomer_if_its_followers_sleep(
    merger, processes, leading, followed
):
    leader = leading(merger, "key")
    sleeper = processes.start(merger.flight, "key", never)
    followed(merger)
    sleeper.kill(signal.SIGSTOP)
    leader.finish(SystemExit())
    (flight,) = merger.flights()
    assert (flight.state, flight.followers) == ("orphaned", 1)
    newcomer = merger.flight("key", give, "value")
    assert (newcomer.role, newcomer.takeovers, newcomer.followers) == (Role.LEADER, 1, 1)
    sleeper.kill(signal.SIGCONT)
    assert sleeper.result().value == "value"


# ---- the leader dies --------------------------------------------------------------------


def exit_now():
    os._exit(0)


def become_sleep():
    os.execv("/bin/sleep", ["sleep", "30"])


def lead_in_a_thread_that_ends(merger):
    """Leave a leader behind whose thread is gone, in a process that goes on."""

    def begin():
        leads.append(merger._segment.table.begin("key", None, 3))

    leads = []
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    time.sleep(30)


def test_a_flight_is_taken_over_when_the_leaders_process_is_killed(
    merger, processes, followed, until
):
    leader = processes.start(merger.execute, "key", hang)
    until(merger.flights)
    calls = [processes.start(merger.flight, "key", pid_of_leader) for _ in range(2)]
    followed(merger, 2)
    leader.kill()
    outcomes = [call.result() for call in calls]
    assert sorted(outcome.role.value for outcome in outcomes) == ["follower", "leader"]
    assert outcomes[0].value == outcomes[1].value
    assert {outcome.takeovers for outcome in outcomes} == {1}


@pytest.mark.shared
@pytest.mark.parametrize("end", [exit_now, become_sleep])
def test_a_flight_is_taken_over_when_the_leader_exits_or_becomes_another_program(
    merger, hands, followed, until, tmp_path, end
):
    gate = tmp_path / "gate"
    leader = hands.start(merger.execute, "key", wait_for_file, gate, end, where="forked")
    until(merger.flights)
    call = hands.start(merger.flight, "key", pid_of_leader, where="forked")
    followed(merger)
    gate.touch()
    outcome = call.result()
    assert (outcome.role, outcome.takeovers) == (Role.LEADER, 1)
    leader.kill()


def wait_for_file(path, then):
    wait_until(path.exists)
    return then()


@pytest.mark.shared
def test_a_flight_is_taken_over_when_only_the_leaders_thread_is_gone(merger, hands, until):
    leader = hands.start(lead_in_a_thread_that_ends, merger, where="forked")
    until(lambda: merger.stats().leaders == 1)
    outcome = hands.start(merger.flight, "key", give, 1, where="forked").result()
    assert (outcome.role, outcome.value) == (Role.LEADER, 1)
    leader.kill()


@pytest.mark.shared
def test_an_unreaped_zombie_is_no_leader(merger, followed, until):
    pid = os.fork()
    if pid == 0:
        try:
            merger.execute("key", hang)
        finally:
            os._exit(1)
    try:
        until(merger.flights)
        os.kill(pid, signal.SIGKILL)
        outcome = merger.flight("key", give, 1)  # the zombie is still there
        assert outcome.role is Role.LEADER
    finally:
        os.waitpid(pid, 0)


@pytest.mark.shared
def test_a_stopped_leader_is_not_dead(merger, hands, until, followed):
    leader = hands.start(merger.execute, "key", hang, where="forked")
    until(merger.flights)
    leader.kill(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        merger.with_options(timeout=0.3).execute("key", never)
    leader.kill()


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.shared
@pytest.mark.parametrize("max_takeovers", [0, 1, 2])
def test_no_more_than_max_takeovers_processes_are_risked(
    table_name, hands, followed, until, tmp_path, max_takeovers
):
    merger = Merger(table_name, max_takeovers=max_takeovers)
    gate = tmp_path / "gate"
    hands.start(merger.execute, "key", wait_for_file, gate, kill_self, where="forked")
    until(merger.flights)
    calls = [hands.start(merger.execute, "key", kill_self, where="forked") for _ in range(4)]
    followed(merger, 4)
    gate.touch()
    errors = [call.error() for call in calls]
    died = [error for error in errors if isinstance(error, LeaderDied)]
    assert len(died) == 4 - max_takeovers
    assert all(isinstance(error, (LeaderDied, EOFError)) for error in errors)
    assert {(error.key, error.takeovers) for error in died} == {("key", max_takeovers)}
    pids = {call.pid for call in calls}
    assert all((error.leader_pid in pids) == (max_takeovers > 0) for error in died)
    assert pickle.loads(pickle.dumps(died[0])).args == died[0].args
    assert merger.execute("key", give, "afresh") == "afresh"
    assert merger.stats().takeovers == max_takeovers


@pytest.mark.shared
def test_cancelled_leaders_do_not_count_as_dead_ones(table_name, hands, leading, followed):
    merger = Merger(table_name, max_takeovers=0)
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", give, 1, where="forked")
    followed(merger)
    leader.finish(SystemExit())
    assert call.result().role is Role.LEADER


# ---- a call that would wait for itself --------------------------------------------------


def test_a_call_that_joins_its_own_flight_is_refused_at_once(merger):
    with pytest.raises(RuntimeError, match="already leads the flight of key 'sku:42'"):
        merger.execute("sku:42", lambda: merger.execute("sku:42", never))


def test_a_self_join_is_found_through_nesting_views_and_other_mergers(merger):
    def deep(level):
        if level:
            return merger.execute(("level", level), deep, level - 1)
        for other in [merger, merger.with_options(strict=True), Merger(merger.name)]:
            with pytest.raises(RuntimeError, match="'outer'"):
                other.execute("outer", never)
            with pytest.raises(RuntimeError, match="'outer'"):
                other.flight("outer", never)
        return "done"

    assert merger.execute("outer", deep, 3) == "done"
    assert merger.execute("outer", give, 1) == 1


def test_nested_calls_of_other_keys_are_flights_of_their_own(merger):
    assert merger.execute("a", lambda: merger.execute("b", give, 1) + 1) == 2


def test_another_thread_may_join_what_this_thread_leads(merger, hands, followed):
    def function():
        calls.append(hands.start(merger.flight, "key", never, where="threads"))
        followed(merger)
        return 1

    calls = []
    assert merger.execute("key", function) == 1
    assert calls[0].result().role is Role.FOLLOWER
