"""Contract of AsyncMerger: tasks of a loop, loops of a host, sync and async callers together."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import threading
import time
import warnings

import pytest
from crew import wait_until

from uniflight_mp import (
    AsyncMerger,
    FlightTimeout,
    LeaderPanicked,
    Merger,
    RawCodec,
    ResultNotShareable,
    Role,
)

BOUND = 30.0


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine to its end on a loop of each kind."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop", reason="uvloop is not built for this Python")
        factory = uvloop.new_event_loop
    else:
        factory = asyncio.new_event_loop

    def run(coroutine):
        loop = factory()
        try:
            return loop.run_until_complete(asyncio.wait_for(coroutine, BOUND))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run


class Work:
    """A coroutine function that counts its runs and ends when it is told."""

    def __init__(self, value=None, error=None):
        self.value, self.error = value, error
        self.started, self.released = asyncio.Event(), asyncio.Event()
        self.runs = 0

    async def __call__(self):
        self.runs += 1
        self.started.set()
        await self.released.wait()
        if self.error is not None:
            raise self.error
        return self.value


async def soon(condition):
    """Wait, within bounds, until ``condition()`` is true."""
    deadline = time.monotonic() + BOUND
    while not condition():
        assert time.monotonic() < deadline, "not within bounds"
        await asyncio.sleep(0.001)


async def start(*coroutines):
    """Start tasks and let each run until it sleeps."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def lead_until_told(merger, value):
    """In another process: lead the key until "go" is led as well, then return ``value``."""

    def function():
        deadline = time.monotonic() + BOUND
        while "go" not in [flight.key for flight in merger.flights()]:
            assert time.monotonic() < deadline
        return value

    return merger.flight("key", function)


def follow(merger):
    return merger.flight("key", never)


def never():
    raise AssertionError("the function of a follower was called")


async def never_async():
    never()


def test_tasks_of_a_loop_run_one_execution_and_share_its_very_object(run, table_name):
    async def main():
        work = Work(value={"a": [1]})
        merger = AsyncMerger(table_name)
        leader, *_ = await start(*(merger.flight("key", work) for _ in range(50)))
        work.released.set()
        outcomes = [await leader, *[await merger.execute("other", asyncio.sleep, 0, 1)]]
        assert outcomes[0].role is Role.LEADER
        assert outcomes[0].followers == 49
        assert work.runs == 1

    run(main())


def test_followers_in_the_leaders_loop_receive_the_very_object(run, table_name):
    async def main():
        work = Work(value=object())
        merger = AsyncMerger(table_name)
        tasks = await start(*(merger.flight("key", work) for _ in range(50)))
        work.released.set()
        outcomes = await asyncio.gather(*tasks)
        assert [outcome.role for outcome in outcomes].count(Role.LEADER) == 1
        assert {id(outcome.value) for outcome in outcomes} == {id(work.value)}
        assert {outcome.followers for outcome in outcomes} == {49}

    run(main())


def test_an_async_caller_follows_a_sync_leader_in_another_process(run, table_name, processes):
    sync = Merger(table_name)
    leader = processes.start(lead_until_told, sync, {"x": (1, 2)})

    async def main():
        await soon(sync.flights)
        merger, go = AsyncMerger(table_name), Work()
        tasks = await start(*(merger.flight("key", never_async) for _ in range(10)))
        (signal,) = await start(merger.execute("go", go))
        outcomes = await asyncio.gather(*tasks)
        go.released.set()
        await signal
        assert {outcome.role for outcome in outcomes} == {Role.FOLLOWER}
        assert outcomes[0].value == {"x": (1, 2)}
        assert len({id(outcome.value) for outcome in outcomes}) == 1
        assert outcomes[0].leader_pid == leader.pid

    run(main())
    assert leader.result().followers == 1  # the loop counts once


def test_sync_callers_in_other_processes_follow_an_async_leader(run, table_name, processes):
    sync = Merger(table_name)

    async def main():
        work = Work(value=("a", b"b"))
        (leader,) = await start(AsyncMerger(table_name).flight("key", work))
        calls = [processes.start(follow, sync) for _ in range(2)]
        await soon(lambda: sync.flights()[0].followers == 2)
        work.released.set()
        assert (await leader).followers == 2
        return calls

    for call in run(main()):
        outcome = call.result()
        assert outcome.value == ("a", b"b")
        assert outcome.leader_pid == os.getpid()


def test_a_loop_goes_on_while_its_tasks_wait(run, table_name, leading):
    leader = leading(Merger(table_name), "key")

    async def main():
        merger = AsyncMerger(table_name)
        tasks = await start(*(merger.execute("key", never_async) for _ in range(500)))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert not any(task.done() for task in tasks)
        leader.finish("value")
        assert set(await asyncio.gather(*tasks)) == {"value"}

    run(main())


def test_a_cancelled_leader_is_replaced_by_a_task_of_its_loop(run, table_name):
    async def main():
        first, second = Work(1), Work(2)
        merger = AsyncMerger(table_name)
        leader, chosen, other = await start(
            merger.flight("key", first),
            merger.flight("key", second),
            merger.flight("key", never_async),
        )
        leader.cancel()
        await second.started.wait()
        second.released.set()
        outcomes = await asyncio.gather(chosen, other)
        assert [outcome.role for outcome in outcomes] == [Role.LEADER, Role.FOLLOWER]
        assert [outcome.value for outcome in outcomes] == [2, 2]
        with pytest.raises(asyncio.CancelledError):
            await leader

    run(main())


def test_a_cancelled_leader_without_local_followers_is_replaced_elsewhere(
    run, table_name, processes
):
    sync = Merger(table_name)

    async def main():
        (leader,) = await start(AsyncMerger(table_name).flight("key", Work()))
        call = processes.start(sync.flight, "key", os.getpid)
        await soon(lambda: sync.flights()[0].followers == 1)
        leader.cancel()
        outcome = await asyncio.to_thread(call.result)
        assert outcome.role is Role.LEADER
        assert outcome.takeovers == 1

    run(main())


def test_a_follower_cancelled_when_it_is_chosen_passes_the_lead_on(run, table_name):
    async def main():
        third = Work("third")
        merger = AsyncMerger(table_name)
        leader, chosen, last = await start(
            merger.execute("key", Work()),
            merger.execute("key", never_async),
            merger.execute("key", third),
        )
        leader.cancel()
        await asyncio.sleep(0)  # the leader hands over; the chosen one has not run yet
        chosen.cancel()
        await third.started.wait()
        third.released.set()
        assert await last == "third"
        assert chosen.cancelled()

    run(main())


def test_cancelled_followers_leave_the_flight_alone_and_their_room_free(run, table_name, leading):
    sync = Merger(table_name)
    leader = leading(sync, "key")

    async def main():
        merger = AsyncMerger(table_name)
        tasks = await start(*(merger.execute("key", never_async) for _ in range(5)))
        assert sync.flights()[0].followers == 1
        for task in tasks[:4]:
            task.cancel()
        await asyncio.sleep(0)
        assert sync.flights()[0].followers == 1
        tasks[4].cancel()
        await asyncio.sleep(0)
        assert sync.flights()[0].followers == 0
        await asyncio.sleep(0)
        assert merger._desk()._timer is None

    run(main())
    assert leader.outcome("value").value == "value"


def test_cancelling_everybody_leaves_nothing(run, table_name):
    async def main():
        merger = AsyncMerger(table_name)
        tasks = await start(*(merger.execute("key", Work()) for _ in range(20)))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert merger.flights() == []
        assert await merger.execute("key", asyncio.sleep, 0, "fresh") == "fresh"

    run(main())


def test_the_leaders_context_is_that_of_its_caller(run, table_name):
    variable = contextvars.ContextVar("variable")

    async def read():
        return variable.get()

    async def main():
        variable.set("mine")
        assert await AsyncMerger(table_name).execute("key", read) == "mine"

    run(main())


def test_each_follower_raises_an_exception_of_its_own_with_the_leaders_as_cause(run, table_name):
    async def main():
        work = Work(error=KeyError("gone"))
        merger = AsyncMerger(table_name)
        tasks = await start(*(merger.execute("key", work) for _ in range(3)))
        work.released.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [KeyError] * 3
        assert len({id(error) for error in errors}) == 3
        assert errors[0] is work.error
        assert isinstance(errors[1].__cause__, LeaderPanicked)

    run(main())


def test_a_timeout_ends_one_callers_wait_and_not_the_flight(run, table_name):
    async def main():
        work = Work("value")
        merger = AsyncMerger(table_name)
        hasty = merger.with_options(timeout=0.01)
        (leader,) = await start(merger.execute("key", work))
        with pytest.raises(FlightTimeout, match="no result for key 'key'") as caught:
            await hasty.execute("key", never_async)
        assert caught.value.timeout == 0.01
        alone = merger.with_options(timeout=0, on_timeout="run")
        outcome = await alone.flight("key", asyncio.sleep, 0, "alone")
        assert (outcome.role, outcome.value) == (Role.SOLO, "alone")
        work.released.set()
        assert await leader == "value"

    run(main())


def test_wait_for_cancels_a_follower_as_any_coroutine(run, table_name, leading):
    sync = Merger(table_name)
    leader = leading(sync, "key")

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(AsyncMerger(table_name).execute("key", never_async), 0.01)
        assert sync.flights()[0].followers == 0

    run(main())
    leader.finish()


def test_an_overdue_leader_is_replaced_in_its_own_loop_and_keeps_its_late_value(run, table_name):
    async def main():
        late, prompt = Work("late"), Work("prompt")
        prompt.released.set()
        merger = AsyncMerger(table_name, lease=0.05)
        tasks = await start(merger.flight("key", late), merger.flight("key", prompt))
        outcome = await tasks[1]
        assert (outcome.value, outcome.role) == ("prompt", Role.LEADER)
        late.released.set()
        assert (await tasks[0]).value == "late"
        assert merger.stats().fenced == 1

    run(main())


def test_a_killed_leader_is_replaced_by_a_waiting_loop(run, table_name, processes, until):
    sync = Merger(table_name)
    call = processes.start(sync.execute, "key", time.sleep, 60)
    until(sync.flights)

    async def main():
        merger = AsyncMerger(table_name)
        tasks = await start(*(merger.flight("key", asyncio.sleep, 0, "next") for _ in range(5)))
        call.kill()
        outcomes = await asyncio.gather(*tasks)
        assert [outcome.value for outcome in outcomes] == ["next"] * 5
        assert [outcome.role for outcome in outcomes].count(Role.LEADER) == 1
        assert outcomes[0].takeovers == 1

    run(main())


def test_a_superseded_leader_keeps_its_late_value_from_the_followers_of_its_loop(
    run, table_name, hands, until
):
    sync = Merger(table_name)
    go = threading.Event()

    def prompt():
        return go.wait(BOUND) and "prompt"

    async def main():
        followed = asyncio.Event()

        async def late():
            await followed.wait()
            call = hands.start(sync.execute, "key", prompt, where="threads")
            until(lambda: sync.flights()[0].takeovers == 1)  # the loop is blocked meanwhile
            return "late", call

        merger = AsyncMerger(table_name, lease=0.2)
        leader, follower = await start(
            merger.execute("key", late), merger.execute("key", never_async)
        )
        followed.set()
        value, call = await leader
        assert value == "late"
        go.set()
        assert await follower == "prompt"
        assert await asyncio.to_thread(call.result) == "prompt"

    run(main())


def test_a_leader_that_took_over_has_its_own_lease_from_then_on(run, table_name, processes, until):
    sync = Merger(table_name)
    call = processes.start(sync.execute, "key", time.sleep, 60)
    until(sync.flights)

    async def main():
        merger, stuck = AsyncMerger(table_name, lease=0.05), Work("late")
        tasks = await start(
            merger.execute("key", stuck), merger.execute("key", asyncio.sleep, 0, "prompt")
        )
        call.kill()
        assert await tasks[1] == "prompt"
        stuck.released.set()
        assert await tasks[0] == "late"

    run(main())


def test_a_successor_in_the_same_loop_has_its_own_lease(run, table_name):
    async def main():
        merger, stuck = AsyncMerger(table_name), Work("late")
        first, second, third = await start(
            merger.execute("key", Work()),
            merger.with_options(lease=0.05).execute("key", stuck),
            merger.execute("key", asyncio.sleep, 0, "prompt"),
        )
        first.cancel()
        assert await third == "prompt"
        stuck.released.set()
        assert await second == "late"

    run(main())


def test_a_successor_in_the_same_loop_does_not_inherit_a_lease(run, table_name):
    async def main():
        merger, second = AsyncMerger(table_name), Work("second")
        first, successor = await start(
            merger.with_options(lease=0.02).execute("key", Work()), merger.execute("key", second)
        )
        first.cancel()
        await second.started.wait()
        await asyncio.sleep(0.04)  # until that lease would be over
        (follower,) = await start(merger.execute("key", never_async))
        second.released.set()
        assert await asyncio.gather(successor, follower) == ["second", "second"]

    run(main())


def test_a_takeover_is_not_by_the_lease_of_one_who_is_about_to_leave(
    run, table_name, processes, until
):
    sync = Merger(table_name)
    call = processes.start(sync.execute, "key", time.sleep, 60)
    until(sync.flights)

    async def main():
        merger, second = AsyncMerger(table_name), Work("second")
        first, successor = await start(
            merger.with_options(lease=0.02).execute("key", never_async),
            merger.execute("key", second),
        )
        first.cancel()
        call.kill()
        desk = merger._desk()
        until(lambda: desk._look() or not desk._followed)  # before the first one has left
        await second.started.wait()
        await asyncio.sleep(0.04)  # until that lease would be over
        (follower,) = await start(merger.execute("key", never_async))
        second.released.set()
        assert await asyncio.gather(successor, follower) == ["second", "second"]

    run(main())


def test_a_leader_that_was_cancelled_and_calls_again_follows_its_successor(run, table_name):
    async def main():
        merger, second = AsyncMerger(table_name), Work("second")

        async def stubborn():
            with contextlib.suppress(asyncio.CancelledError):
                await merger.execute("key", Work("first"))
            return await merger.execute("key", never_async)

        leader, follower = await start(stubborn(), merger.execute("key", second))
        leader.cancel()
        await second.started.wait()
        second.released.set()
        assert await asyncio.gather(leader, follower) == ["second", "second"]

    run(main())


def test_forget_starts_a_fresh_flight_in_the_same_loop(run, table_name):
    async def main():
        old, new = Work("old"), Work("new")
        merger = AsyncMerger(table_name)
        (first,) = await start(merger.execute("key", old))
        assert merger.forget("key") is True
        (second,) = await start(merger.execute("key", new))
        old.released.set()
        assert await first == "old"
        (third,) = await start(merger.execute("key", never_async))
        new.released.set()
        assert await asyncio.gather(second, third) == ["new", "new"]

    run(main())


def test_a_flight_that_landed_elsewhere_is_not_joined_by_a_newcomer(run, table_name, leading):
    sync = Merger(table_name)
    leader = leading(sync, "key")

    async def main():
        merger = AsyncMerger(table_name)
        (waiting,) = await start(merger.execute("key", never_async))
        leader.finish("old")  # the loop has not run since: it does not know yet
        assert await merger.execute("key", asyncio.sleep, 0, "fresh") == "fresh"
        assert await waiting == "old"

    run(main())


def test_a_task_that_joins_its_own_flight_is_told_at_once(run, table_name):
    async def main():
        merger = AsyncMerger(table_name)

        async def again():
            return await merger.execute("key", never_async)

        with pytest.raises(RuntimeError, match="already leads the flight of key 'key'"):
            await merger.execute("key", again)

    run(main())


def test_a_sync_call_inside_a_leading_task_is_a_self_join(run, table_name):
    async def main():
        async def blocked():
            return Merger(table_name).execute("key", never)

        with pytest.raises(RuntimeError, match="already leads"):
            await AsyncMerger(table_name).execute("key", blocked)

    run(main())


def test_loops_that_come_and_go_leave_no_descriptor_behind(run, table_name, leading, hands):
    sync = Merger(table_name)

    def once():
        leader = leading(sync, "key")

        async def main():
            (task,) = await start(AsyncMerger(table_name).execute("key", never_async))
            await asyncio.to_thread(leader.finish, 1)
            return await task

        assert run(main()) == 1

    once()
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        once()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_loops_in_several_threads_follow_one_another(run, table_name):
    results, barrier = [], threading.Barrier(4)

    async def slow():
        await soon(lambda: Merger(table_name).flights()[0].followers == 3)
        return "value"

    def thread():
        async def main():
            barrier.wait(BOUND)
            return await AsyncMerger(table_name).flight("key", slow)

        results.append(run(main()))

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(BOUND)
    assert sorted(result.role.name for result in results) == ["FOLLOWER"] * 3 + ["LEADER"]


def test_nothing_is_scheduled_when_nobody_waits(run, table_name, leading):
    leader = leading(Merger(table_name), "key")

    async def main():
        merger = AsyncMerger(table_name)
        (task,) = await start(merger.execute("key", never_async))
        desk = merger._desk()
        assert desk._timer is not None
        await asyncio.to_thread(leader.finish, 1)
        await task
        assert (desk._timer, desk._socket, desk._flights, desk._followed) == (None, None, {}, {})

    run(main())


def test_a_plain_function_is_refused_with_the_right_call_in_the_text(run, table_name):
    async def main():
        merger = AsyncMerger(table_name)
        with pytest.raises(TypeError, match=r"returned int\. Use Merger for plain functions"):
            await merger.execute("key", lambda: 1)
        assert merger.flights() == []

    run(main())


class Lazy:
    """Evaluates itself when it is asked for anything, and cannot here."""

    __class__ = property(lambda self: 1 / 0)

    def __getattr__(self, name):
        raise LookupError(name)


class Forwarding:
    """Has what the object behind it has, but not for `await`, which asks the type."""

    def __getattr__(self, name):
        return getattr(asyncio.sleep(0), name)


class LazyAwaitable(Lazy):
    def __await__(self):
        return asyncio.sleep(0, "value").__await__()


class Unprintable:
    def __repr__(self):
        raise LookupError

    def __call__(self):
        return 1


@pytest.mark.parametrize(
    "function", [Lazy, Forwarding, Unprintable()], ids=["lazy", "forwarding", "func"]
)
@pytest.mark.parametrize("method", ["execute", "flight"])
def test_what_await_would_refuse_is_refused_whatever_it_says_of_itself(
    run, table_name, function, method
):
    async def main():
        merger = AsyncMerger(table_name)
        with pytest.raises(TypeError, match=r"returned [\w.]+\. Use Merger for plain functions"):
            await getattr(merger, method)("key", function)
        assert merger.flights() == []

    run(main())


def test_what_await_takes_is_taken_whatever_it_says_of_itself(run, table_name):
    async def main():
        merger = AsyncMerger(table_name)
        assert await merger.execute("key", LazyAwaitable) == "value"
        assert (await merger.flight("key", LazyAwaitable)).value == "value"

    run(main())


def test_a_coroutine_function_is_refused_by_the_sync_merger(table_name):
    async def function():
        return 1

    merger = Merger(table_name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the coroutine was closed, not forgotten
        with pytest.raises(TypeError, match="Use AsyncMerger"):
            merger.execute("key", function)
        gc.collect()
    assert merger.flights() == []


def test_a_follower_never_calls_its_function(run, table_name):
    calls = []

    async def function():
        calls.append(1)
        await asyncio.sleep(0)
        return 1

    async def main():
        merger = AsyncMerger(table_name)
        await asyncio.gather(*(merger.execute("key", function) for _ in range(100)))
        assert len(calls) == 1

    run(main())


def test_use_after_close_is_an_error(run, table_name):
    async def main():
        async with AsyncMerger(table_name) as merger:
            assert await merger.execute("key", asyncio.sleep, 0, 1) == 1
        with pytest.raises(RuntimeError, match="closed"):
            await merger.execute("key", asyncio.sleep, 0)

    run(main())


def test_the_decorator_keeps_signature_and_original(run, table_name):
    async def main():
        merger = AsyncMerger(table_name)
        runs = []

        @merger.coalesce(key="sku:{sku}")
        async def price(sku: int) -> int:
            runs.append(sku)
            await asyncio.sleep(0)
            return sku * 2

        assert await asyncio.gather(price(4), price(4), price(sku=4)) == [8, 8, 8]
        assert runs == [4]
        assert price.__name__ == "price"
        assert price.merger is merger
        assert await price.uncoalesced(1) == 2

    run(main())


class Stop(BaseException):
    """Nothing that anybody catches by accident."""


class Stopping(RawCodec):
    def encode(self, value):
        raise Stop


class Disguised(Stop):
    __class__ = property(lambda self: ValueError)


def test_an_interruption_is_one_whatever_it_says_its_class_is(run, table_name):
    async def main():
        merger = AsyncMerger(table_name)
        work, successor = Work(error=Disguised()), Work(value=1)
        leader, follower = await start(merger.execute("key", work), merger.flight("key", successor))
        work.released.set()
        successor.released.set()
        with pytest.raises(Disguised):
            await leader
        assert (await follower).role is Role.LEADER

    run(main())


@pytest.mark.shared
@pytest.mark.parametrize("local", [0, 2])
def test_a_leader_that_is_interrupted_while_it_encodes_is_replaced_elsewhere(
    run, table_name, hands, local
):
    merger, other = AsyncMerger(table_name, codec=Stopping()), Merger(table_name)

    async def main():
        work = Work(value=object())
        leader, *locals_ = await start(*(merger.flight("key", work) for _ in range(1 + local)))
        call = hands.start(other.flight, "key", str, "successor", where="forked")
        await soon(lambda: other.flights()[0].followers == 1)
        work.released.set()
        with pytest.raises(Stop):
            await leader
        assert [(await task).value for task in locals_] == [work.value] * local
        outcome = await asyncio.to_thread(call.result)
        assert (outcome.value, outcome.role) == ("successor", Role.LEADER)

    run(main())


def share_an_object(merger, gate):
    def function():
        wait_until(gate.exists)
        return object()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merger.execute("key", function)


def test_strict_followers_of_a_loop_raise_an_error_each(
    run, table_name, processes, until, tmp_path
):
    sync, gate = Merger(table_name), tmp_path / "gate"
    call = processes.start(share_an_object, sync, gate)
    until(sync.flights)

    async def main():
        merger = AsyncMerger(table_name, strict=True)
        tasks = await start(*(merger.execute("key", asyncio.sleep, 0) for _ in range(2)))
        gate.touch()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [ResultNotShareable] * 2
        assert errors[0] is not errors[1]

    run(main())
    call.join()


def test_a_strict_leader_learns_what_cannot_be_shared(run, table_name):
    async def main():
        merger = AsyncMerger(table_name, strict=True)
        with pytest.raises(ResultNotShareable, match=r"\$\.a"):
            await merger.execute("key", asyncio.sleep, 0, {"a": object()})

    run(main())
