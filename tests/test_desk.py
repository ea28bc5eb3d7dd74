"""Event loops under attack: cancelled at every await, closed while they wait, forked, out of
descriptors, on a table that is destroyed or damaged meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import sys
import threading
import time
import weakref

import pytest
from crew import wait_for_followers

from uniflight_mp import AsyncMerger, FlightTimeout, Limits, Merger, RawCodec, Role
from uniflight_mp.segment import destroy, segment_name

BOUND = 30.0


@pytest.fixture(params=["asyncio", "uvloop"])
def new_loop(request):
    """A function that makes a loop of each kind."""
    if request.param == "uvloop":
        return pytest.importorskip("uvloop", reason="uvloop is not installed").new_event_loop
    return asyncio.new_event_loop


def run(loop, coroutine):
    """Run a coroutine to its end, and close the loop."""
    try:
        return loop.run_until_complete(asyncio.wait_for(coroutine, BOUND))
    finally:
        loop.close()


async def start(*coroutines):
    """Start tasks and let each run until it sleeps."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def never():
    raise AssertionError("the function of a follower was called")


async def forever():
    await asyncio.Event().wait()


class Work:
    """A coroutine function that returns its value when it is told."""

    def __init__(self, value):
        self.value, self.released = value, asyncio.Event()

    async def __call__(self):
        await self.released.wait()
        return self.value


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def in_use(merger):
    slots, cells, _threads = merger._segment.table.usage()
    return slots, cells


# ---- random schedules -------------------------------------------------------------------


class Exclusive:
    """Executions of one key, in any thread: at most one at a time, each with its own value."""

    def __init__(self):
        self._lock = threading.Lock()
        self._running = 0
        self.overlaps = self.runs = 0

    async def run(self, chance):
        with self._lock:
            self.overlaps += self._running
            self._running += 1
            self.runs += 1
            value = self.runs
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            if chance.random() < 0.1:
                raise ValueError(value)
            return value
        except asyncio.CancelledError:
            if chance.random() < 0.2:  # takes its time to end, or does not end at all
                await asyncio.sleep(0)
            if chance.random() < 0.05:
                return value
            raise
        finally:
            with self._lock:
                self._running -= 1


async def play(merger, chance, keys, steps):
    """Start, cancel and let run, at random; then wait for everybody."""
    hasty = merger.with_options(timeout=0.0002)
    tasks = []
    for _ in range(steps):
        action = chance.random()
        if action < 0.45:
            name, work = chance.choice(list(keys.items()))
            caller = hasty if chance.random() < 0.1 else merger
            call = caller.execute if chance.random() < 0.7 else caller.flight
            tasks.append(asyncio.create_task(call(name, work.run, chance)))
        elif action < 0.65 and tasks:
            chance.choice(tasks).cancel()
        else:
            await asyncio.sleep(0)
    if chance.random() < 0.2:
        for task in tasks:
            task.cancel()
    if not tasks:
        return
    _, pending = await asyncio.wait(tasks, timeout=BOUND)
    assert not pending, f"{len(pending)} of {len(tasks)} calls hang"
    for task in tasks:
        error = None if task.cancelled() else task.exception()
        assert error is None or isinstance(error, (ValueError, FlightTimeout)), error


def test_calls_of_one_loop_that_are_cancelled_anywhere_never_overlap_hang_or_leak(
    new_loop, table_name
):
    async def main():
        merger = AsyncMerger(table_name)
        for seed in range(4000):
            chance = random.Random(seed)
            keys = {f"key{i}": Exclusive() for i in range(chance.randrange(1, 4))}
            await play(merger, chance, keys, chance.randrange(2, 40))
            assert not any(work.overlaps for work in keys.values()), f"seed {seed}"
            assert in_use(merger) == (0, 0), f"seed {seed}"
        desk = merger._desk()
        assert (desk._flights, desk._followed, desk._leased) == ({}, {}, set())
        assert (desk._timer, desk._socket) == (None, None)

    run(new_loop(), main())


def test_calls_of_two_loops_that_are_cancelled_anywhere_never_overlap_hang_or_leak(
    new_loop, table_name
):
    rounds = 300
    keys = [{f"key{i}": Exclusive() for i in range(1 + seed % 2)} for seed in range(rounds)]
    together, problems = threading.Barrier(2), []

    def thread(number):
        async def main():
            merger = AsyncMerger(table_name)
            for seed in range(rounds):
                together.wait(BOUND)
                await play(merger, random.Random(2 * seed + number), keys[seed], 30)
                together.wait(BOUND)
                if in_use(merger) != (0, 0):
                    problems.append(f"seed {seed}: {in_use(merger)} in use")

        try:
            run(new_loop(), main())
        except BaseException as error:
            problems.append(error)
            together.abort()

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # or a round would be over before the other thread has begun
    try:
        for each in threads:
            each.start()
        for each in threads:
            each.join(4 * BOUND)
    finally:
        sys.setswitchinterval(interval)
    assert problems == []
    assert [seed for seed in range(rounds) if any(w.overlaps for w in keys[seed].values())] == []


# ---- loops that end badly ---------------------------------------------------------------


def closed_with(new_loop, *coroutines):
    """Let the calls begin in a loop, close it without cancelling them, and return it."""
    loop = new_loop()
    loop.run_until_complete(start(*coroutines))
    loop.set_exception_handler(lambda *_: None)  # "Task was destroyed but it is pending"
    loop.close()
    return loop


def test_a_loop_that_ends_with_its_last_follower_has_closed_its_bell(
    new_loop, table_name, leading, followed
):
    merger, loop = AsyncMerger(table_name), new_loop()
    leader = leading(Merger(table_name), "key")

    def end():
        followed(merger)
        leader.finish()

    ending = threading.Thread(target=end)
    ending.start()
    loop.run_until_complete(merger.execute("key", never))
    loop.close()
    assert merger._last()._socket is None
    ending.join(BOUND)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_a_loop_that_is_closed_with_waiting_tasks_leaves_nothing(new_loop, table_name, leading):
    merger = AsyncMerger(table_name)
    leader = leading(Merger(table_name), "key")
    closed_with(new_loop)
    gc.collect()
    before = descriptors()
    loop = closed_with(new_loop, *(merger.execute("key", never) for _ in range(3)))
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None
    assert merger.flights()[0].followers == 0
    assert descriptors() <= before
    leader.finish()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_what_a_closed_loop_leads_is_given_up_when_the_loop_is_collected(new_loop, table_name):
    merger = AsyncMerger(table_name)
    closed_with(new_loop, merger.execute("key", forever), merger.execute("key", never))
    gc.collect()
    assert merger.flights() == []


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_what_a_closed_loop_leads_is_given_up_when_the_thread_starts_another_loop(
    new_loop, table_name
):
    merger = AsyncMerger(table_name)
    closed = closed_with(new_loop, merger.execute("key", forever), merger.execute("key", never))
    assert run(new_loop(), merger.execute("key", asyncio.sleep, 0, "fresh")) == "fresh"
    del closed
    gc.collect()


def test_a_merger_does_not_keep_the_loops_that_used_it(new_loop, table_name):
    merger, loop = AsyncMerger(table_name), new_loop()
    run(loop, merger.execute("key", asyncio.sleep, 0))
    gone = weakref.ref(loop)
    del loop
    gc.collect()
    assert gone() is None


def test_a_call_under_way_is_joined_through_a_new_merger_when_its_own_is_closed(
    new_loop, table_name
):
    async def main():
        merger, work = AsyncMerger(table_name), Work("value")
        (leader,) = await start(merger.execute("key", work))
        merger.close()
        del merger
        gc.collect()
        with AsyncMerger(table_name) as merger:
            (follower,) = await start(merger.execute("key", never))
            work.released.set()
            assert await asyncio.gather(leader, follower) == ["value"] * 2

    run(new_loop(), main())


# ---- tables that end badly --------------------------------------------------------------


def test_a_table_that_is_destroyed_while_a_loop_waits_still_brings_the_value(
    new_loop, table_name, leading
):
    leader = leading(Merger(table_name), "key")

    async def main():
        merger = AsyncMerger(table_name)
        tasks = await start(*(merger.execute("key", never) for _ in range(3)))
        destroy(segment_name(table_name), table_name)
        for number in range(50):
            assert await merger.execute(number, asyncio.sleep, 0, number) == number
        leader.finish("value")
        assert await asyncio.gather(*tasks) == ["value"] * 3

    run(new_loop(), main())


def test_calls_that_wait_in_a_damaged_table_run_alone(new_loop, table_name, leading):
    leader = leading(Merger(table_name), "key")

    async def main():
        merger = AsyncMerger(table_name)
        calls = [merger.flight("key", asyncio.sleep, 0, number) for number in range(3)]
        tasks = await start(*calls)
        merger._segment.table.damage()
        outcomes = await asyncio.gather(*tasks)
        assert [outcome.value for outcome in outcomes] == [0, 1, 2]
        assert {outcome.role for outcome in outcomes} == {Role.SOLO}
        assert await merger.execute("key", asyncio.sleep, 0, "fresh") == "fresh"

    run(new_loop(), main())
    leader.finish()


def test_tasks_whose_leader_is_theirs_have_its_value_though_the_table_is_damaged(
    new_loop, table_name
):
    async def main():
        merger, work = AsyncMerger(table_name), Work("value")
        tasks = await start(*(merger.execute("key", work) for _ in range(3)))
        merger._segment.table.damage()
        work.released.set()
        assert await asyncio.gather(*tasks) == ["value"] * 3

    run(new_loop(), main())


@pytest.mark.parametrize("what", ["forgotten", "damaged"])
def test_followers_of_a_leader_with_a_lease_keep_their_flight_until_it_is_over(
    new_loop, table_name, what
):
    async def main():
        merger, work = AsyncMerger(table_name, lease=BOUND), Work("value")
        tasks = await start(merger.execute("key", work), merger.execute("key", never))
        if what == "forgotten":
            assert merger.forget("key") is True
        else:
            merger._segment.table.damage()
        merger._desk()._look()
        work.released.set()
        assert await asyncio.gather(*tasks) == ["value"] * 2

    run(new_loop(), main())


# ---- what a process runs out of, and forks ----------------------------------------------


def follow_without_descriptors(new_loop, merger, leaders_go):
    """Follow a flight with no descriptor left for the bell; then get one, and follow again."""

    async def main():
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        desk = merger._desk()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        tasks = await start(*(merger.execute("key", never) for _ in range(3)))
        assert desk._socket is None
        leaders_go.send_bytes(b"1")
        values = await asyncio.gather(*tasks)
        resource.setrlimit(resource.RLIMIT_NOFILE, (_soft, hard))
        (task,) = await start(merger.execute("other", never))
        assert desk._socket is not None
        leaders_go.send_bytes(b"2")
        return [*values, await task]

    return run(new_loop(), main())


def test_a_loop_without_a_descriptor_for_its_bell_looks_for_itself(
    new_loop, table_name, leading, hands
):
    import multiprocessing

    sync = Merger(table_name)
    first, second = leading(sync, "key"), leading(sync, "other")
    here, there = multiprocessing.Pipe(duplex=False)
    call = hands.start(
        follow_without_descriptors, new_loop, AsyncMerger(table_name), there, where="forked"
    )
    for leader in (first, second):
        assert here.poll(BOUND), call.error()
        here.recv_bytes()
        leader.finish("value")
    assert call.result() == ["value"] * 4
    here.close()
    there.close()


def test_a_loop_that_must_look_for_itself_goes_from_one_flight_to_the_next(
    new_loop, table_name, leading, hands
):
    sync, keys = Merger(table_name), ["one", "two", "three"]
    leaders = [leading(sync, key) for key in keys]

    def child(merger):
        async def main():
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
            return [await merger.execute(key, never) for key in keys]

        return run(new_loop(), main())

    call = hands.start(child, AsyncMerger(table_name), where="forked")
    for key, leader in zip(keys, leaders, strict=True):
        wait_for_followers(sync, key=key)
        leader.finish(key)
    assert call.result() == keys


def test_a_bell_is_made_as_soon_as_there_is_a_descriptor(new_loop, table_name, leading, hands):
    def child(merger):
        async def main():
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            desk = merger._desk()
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            (task,) = await start(merger.execute("key", never))
            assert desk._socket is None
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            deadline = time.monotonic() + BOUND
            while desk._socket is None:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)
            task.cancel()

        run(new_loop(), main())

    leader = leading(Merger(table_name), "key")
    hands.start(child, AsyncMerger(table_name), where="forked").result()
    leader.finish()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork while a thread leads
def test_a_fork_inside_a_running_loop_leaves_the_parents_bell_and_flights_alone(
    new_loop, table_name, leading, followed
):
    sync = Merger(table_name)
    leader = leading(sync, "key")

    def child(merger, tasks):
        for task in tasks:  # as at the end of an interpreter
            task.get_coro().close()
        gc.collect()
        assert merger._segment.table.usage()[1] == 1, "the parent's cell is gone"

    async def main():
        merger = AsyncMerger(table_name)
        tasks = await start(*(merger.execute("key", never) for _ in range(3)))
        pid = os.fork()
        if pid == 0:
            try:
                child(merger, tasks)
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert sync.flights()[0].followers == 1
        merger._desk()._stop_timer()  # now nothing but the bell can wake this loop
        await asyncio.to_thread(leader.finish, "value")
        assert await asyncio.gather(*tasks) == ["value"] * 3

    run(new_loop(), main())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_forked_inside_a_running_loop_follows_in_a_loop_of_its_own(
    new_loop, table_name, leading, followed
):
    sync = Merger(table_name)
    leader = leading(sync, "key")

    async def main():
        merger = AsyncMerger(table_name)
        (task,) = await start(merger.execute("key", never))
        pid = os.fork()
        if pid == 0:
            try:
                asyncio._set_running_loop(None)  # Python does so itself, before 3.12
                value = run(asyncio.new_event_loop(), merger.execute("key", never))
                os._exit(0 if value == "value" else 2)
            except BaseException:
                os._exit(1)
        await asyncio.to_thread(followed, sync, 2)
        await asyncio.to_thread(leader.finish, "value")
        assert await task == "value"
        assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0

    run(new_loop(), main())


def test_a_loop_that_waits_for_a_thousand_flights_is_idle(new_loop, table_name, hands):
    ready, done = threading.Event(), threading.Event()
    merger = AsyncMerger(table_name, limits=Limits(flights=4096, waiters=4096))

    def lead():
        async def main():
            go = asyncio.Event()
            tasks = await start(*(merger.execute(number, go.wait) for number in range(1000)))
            ready.set()
            await asyncio.to_thread(done.wait, BOUND)
            go.set()
            await asyncio.gather(*tasks)

        run(new_loop(), main())

    async def follow():
        tasks = await start(*(merger.execute(number, never) for number in range(1000)))
        await asyncio.sleep(0.5)  # a flight is looked at more often while it is young
        before = time.thread_time()
        await asyncio.sleep(2)
        used = (time.thread_time() - before) / 2
        done.set()
        assert set(await asyncio.gather(*tasks)) == {True}
        return used

    leader = hands.start(lead, where="threads")
    assert ready.wait(BOUND)
    try:
        assert run(new_loop(), follow()) < 0.02  # 0.006 where nothing disturbs it
    finally:
        done.set()
    leader.result()


# ---- flights that were sealed ------------------------------------------------------------


class Stuck(RawCodec):
    """Says that it encodes, and never comes back."""

    def __init__(self, pipe):
        self.pipe = pipe

    def encode(self, value):
        os.write(self.pipe, b"s")
        time.sleep(BOUND)
        return value


def lead_and_get_stuck(name, pipe):
    def function():
        os.write(pipe, b"l")
        wait_for_followers(merger)

    merger = Merger(name, codec=Stuck(pipe))
    merger.execute("key", function)


def test_a_sealed_flight_that_a_task_takes_over_is_found_by_the_next_call(
    table_name, hands, new_loop
):
    reader, writer = os.pipe()
    leader = hands.start(lead_and_get_stuck, table_name, writer, where="forked")
    assert os.read(reader, 1) == b"l"

    async def main():
        merger, work = AsyncMerger(table_name), Work("new")

        async def give():
            return "own"

        (first,) = await start(merger.execute("key", work))  # follows the process
        assert os.read(reader, 1) == b"s"
        assert await merger.execute("key", give) == "own"
        leader.kill()
        while not any(f.leader_pid == os.getpid() for f in merger.flights()):
            await asyncio.sleep(0.001)
        (second,) = await start(merger.execute("key", never))
        work.released.set()
        return await first, await second

    assert run(new_loop(), main()) == ("new", "new")
    leader.join()
    os.close(reader)
    os.close(writer)
