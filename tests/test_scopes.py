"""Scopes: who coalesces with whom, and where the tables are.

The contract's tests run under every scope of ours. Here is what sets the scopes apart, and what
those who write one of their own can rely on.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import itertools
import os
import pickle
import re
import struct
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from uniflight_mp import (
    AsyncMerger,
    Limits,
    Merger,
    PerCore,
    PerHost,
    PerNuma,
    PerProcess,
    ResultNotShareable,
    Role,
    Scope,
    TableUnavailable,
    numa,
    segment,
)
from uniflight_mp.segment import destroy
from uniflight_mp.shmfile import path_of, segment_name

SCOPES = [PerHost, PerNuma, PerProcess, PerCore]
CPUS = sorted(os.sched_getaffinity(0))


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


def files(name):
    """What the table of that name has in /dev/shm, without what all names begin with."""
    return sorted(file.split(name, 1)[1] for file in os.listdir("/dev/shm") if f"-{name}" in file)


@pytest.fixture
def on_cpu():
    """``on_cpu(n)``: move the calling thread; all are back where they were after the test."""

    def move(cpu):
        os.sched_setaffinity(0, {cpu})

    yield move
    os.sched_setaffinity(0, set(CPUS))


def run_on(cpu, function, *args):
    """Run a function in a thread of its own on that CPU; return its result."""

    def run():
        os.sched_setaffinity(0, {cpu})
        results.append(function(*args))

    results = []
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    (result,) = results
    return result


def wait_on(cpu, merger, release):
    """Call on that CPU, with a function that waits for ``release``; return the role."""
    os.sched_setaffinity(0, {cpu})
    return merger.flight("key", release.wait, 30).role


two_cpus = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs")


# ---- constructors and identity ----------------------------------------------------------


@pytest.mark.parametrize("kind", [Merger, AsyncMerger])
def test_each_scope_has_a_constructor(table_name, kind):
    mergers = [
        kind.per_host(table_name),
        kind.per_numa(table_name, timeout=3),
        kind.per_process(table_name),
        kind.per_core(table_name),
    ]
    assert [type(merger.scope) for merger in mergers] == SCOPES
    assert all(type(merger) is kind for merger in mergers)
    assert mergers[1]._options.timeout == 3
    for merger, scope in zip(mergers, SCOPES, strict=True):
        assert scope.__name__ in repr(merger)
        assert isinstance(scope(), Scope)
        assert scope() == scope()


def test_one_name_under_two_scopes_is_two_tables(table_name, leading, on_cpu):
    on_cpu(CPUS[0])
    mergers = [Merger(table_name, scope=scope()) for scope in SCOPES]
    for merger in mergers:
        leading(merger, "key")  # leads, though others of that name lead this key
    assert [len(merger.flights()) for merger in mergers] == [1, 1, 1, 1]
    node = PerNuma().partition()
    expected = ["", "~lock", f"@PerNuma@{node}", f"@PerNuma@{node}~lock"]
    assert files(table_name) == sorted(expected)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_merger_keeps_its_scope_when_it_is_pickled(table_name, scope, hands, followed):
    merger = pickle.loads(pickle.dumps(Merger(table_name, scope=scope())))
    assert merger.scope == scope()
    assert merger.execute("key", give, 1) == 1


@pytest.mark.parametrize("scope", SCOPES)
def test_counters_are_there_when_the_table_was_removed(table_name, scope):
    merger = Merger(table_name, scope=scope())
    merger.execute("key", int)
    for rest in files(table_name):
        os.unlink(path_of(segment_name(table_name)) + rest)
    assert merger.stats().leaders == 1
    assert merger.flights() == []
    assert merger.forget("key") is False


@pytest.mark.parametrize("scope", SCOPES)
def test_a_closed_merger_says_so_wherever_its_caller_is(table_name, scope):
    merger = Merger(table_name, scope=scope())
    for cpu in CPUS:
        run_on(cpu, merger.execute, "key", int)
    view = merger.with_options(timeout=3)
    merger.close()
    for use in (lambda: merger.execute("key", never), merger.flights, merger.stats):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    assert view.execute("key", give, 1) == 1


# ---- private scopes ---------------------------------------------------------------------

PRIVATE = pytest.mark.parametrize("scope", [PerProcess, PerCore])


@PRIVATE
def test_a_private_table_has_no_file(table_name, scope, leading):
    merger = Merger(table_name, scope=scope())
    leader = leading(merger, "key")
    assert files(table_name) == []
    leader.finish(bytes(1_000_000))
    assert files(table_name) == []


@PRIVATE
def test_all_mergers_of_a_name_share_the_processs_table(
    table_name, scope, hands, leading, followed, on_cpu
):
    on_cpu(CPUS[0])
    leader = leading(Merger(table_name, scope=scope()), "key")
    other = Merger(table_name, scope=scope())
    call = hands.start(other.flight, "key", never, where="threads")
    followed(other)
    value = object()  # not shareable with another process
    assert leader.outcome(value).value is value
    assert call.result().value is value


@PRIVATE
def test_no_other_process_sees_a_private_table(table_name, scope, hands, leading, on_cpu):
    on_cpu(CPUS[0])
    merger = Merger(table_name, scope=scope())
    leading(merger, "key")
    call = hands.start(merger.flight, "key", os.getpid, where="spawned")
    assert call.result().role is Role.LEADER
    assert merger.stats().leaders == 1


def use_in_child(merger):
    before = (merger.flights(), merger.stats().leaders)
    outcome = merger.flight("key", give, "child's")
    return before, outcome.value, outcome.role, merger.stats().leaders


@PRIVATE
def test_a_forked_child_has_an_empty_table_of_its_own(table_name, scope, hands, leading, on_cpu):
    on_cpu(CPUS[0])
    merger = Merger(table_name, scope=scope())
    leader = leading(merger, "key")
    call = hands.start(use_in_child, merger, where="forked")
    assert call.result() == (([], 0), "child's", Role.LEADER, 1)
    assert [flight.key for flight in merger.flights()] == ["key"]
    assert leader.outcome("parent's").value == "parent's"
    assert merger.stats().leaders == 1


def fork_in_function(merger):
    """Lead, fork, and let the child come back from the function as well."""

    def function():
        pid = os.fork()
        if pid == 0:
            return "child"
        os.waitpid(pid, 0)
        return "parent"

    value = merger.execute("key", function)
    if value == "child":
        fresh = merger.flight("key", give, 1)
        os._exit(0 if fresh.role is Role.LEADER and merger.flights() == [] else 1)
    return value, merger.flights()


@PRIVATE
def test_a_child_forked_in_the_leaders_function_is_no_leader(table_name, scope, hands):
    merger = Merger(table_name, scope=scope())
    call = hands.start(fork_in_function, merger, where="forked")
    assert call.result() == ("parent", [])


def test_strict_checks_results_of_private_tables_too(table_name):
    merger = Merger(table_name, scope=PerProcess(), strict=True)
    assert merger.execute("key", bytes, 100_000) == bytes(100_000)
    with pytest.raises(ResultNotShareable):
        merger.execute("key", object)
    assert files(table_name) == []


def test_a_thread_takes_part_in_no_more_tables_than_the_kernel_can_watch(table_name, hands):
    def fill():
        tiny = Limits(flights=1, waiters=1, threads=2, inline_bytes=1)
        mergers = [
            Merger(f"{table_name[:50]}-{n}", scope=PerProcess(), limits=tiny) for n in range(1030)
        ]
        roles = [merger.flight("key", int).role for merger in mergers]
        last = mergers[-1]
        solo = last.stats().solo["too_many_threads"]
        with pytest.raises(TableUnavailable, match="close Mergers"):
            last.with_options(strict=True).execute("key", never)
        for merger in mergers[:10]:
            merger.close()
        return roles, solo, last.flight("key", int).role

    roles, solo, afterwards = hands.start(fill, where="threads").result()
    assert roles == [Role.LEADER] * 1024 + [Role.SOLO] * 6
    assert solo == 1
    assert afterwards is Role.LEADER


def test_submit_goes_to_the_partition_of_its_caller(table_name):
    merger = Merger(table_name, scope=PerTenant())
    assert as_tenant("one", merger.submit, "key", give, 1).result() == 1
    assert "@PerTenant@one" in files(table_name)
    merger.close()


def test_what_was_submitted_and_has_not_begun_when_a_merger_is_closed_raises(table_name):
    merger, gate = Merger(table_name, scope=PerTenant()), threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(gate.wait, 30)
        submit = partial(merger.submit, executor=executor)
        future = as_tenant("one", submit, "key", give, 1)
        merger.close()
        gate.set()
        with pytest.raises(RuntimeError, match="closed"):
            future.result(30)


def test_other_limits_for_a_private_table_are_warned_of(table_name):
    merger = Merger(table_name, scope=PerProcess())
    with pytest.warns(RuntimeWarning, match="close all Mergers of that name first"):
        Merger(table_name, scope=PerProcess(), limits=Limits(flights=1))
    assert merger.execute("key", give, 1) == 1


def test_a_private_table_vanishes_with_its_last_merger(table_name):
    merger = Merger(table_name, scope=PerProcess())
    merger.execute("key", int)
    merger.close()
    assert Merger(table_name, scope=PerProcess()).stats().leaders == 0


@two_cpus
def test_each_core_has_a_table_and_the_owner_sees_all(table_name, hands, until):
    merger, release = Merger(table_name, scope=PerCore()), threading.Event()
    calls = [hands.start(wait_on, cpu, merger, release, where="threads") for cpu in CPUS[:2]]
    until(lambda: len(merger.flights()) == 2)
    follower = hands.start(wait_on, CPUS[0], merger, release, where="threads")
    until(lambda: sorted(flight.followers for flight in merger.flights()) == [0, 1])
    release.set()
    assert [call.result() for call in calls] == [Role.LEADER] * 2
    assert follower.result() is Role.FOLLOWER
    stats = merger.stats()
    assert (stats.leaders, stats.followers) == (2, 1)


@two_cpus
def test_forget_reaches_every_partition(table_name, hands, until):
    merger, release = Merger(table_name, scope=PerCore()), threading.Event()
    calls = [hands.start(wait_on, cpu, merger, release, where="threads") for cpu in CPUS[:2]]
    until(lambda: len(merger.flights()) == 2)
    assert merger.forget("key") is True
    assert [run_on(cpu, merger.flight, "key", give, 1).role for cpu in CPUS[:2]] == [
        Role.LEADER,
        Role.LEADER,
    ]
    assert merger.forget("key") is False
    release.set()
    assert all(call.result() is Role.LEADER for call in calls)


# ---- NUMA nodes -------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path):
    """``machine({node: cpulist})``: a sysfs of that topology, as the path of its root."""

    def make(nodes, **lists):
        directory = tmp_path / "devices/system/node"
        directory.mkdir(parents=True)
        for node, cpus in nodes.items():
            (directory / f"node{node}").mkdir()
            (directory / f"node{node}/cpulist").write_text(f"{cpus}\n")
        lists.setdefault("online", ",".join(map(str, nodes)))
        for name, text in lists.items():
            (directory / name).write_text(f"{text}\n")
        return str(tmp_path)

    return make


def test_the_nodes_of_this_machine_are_those_of_its_kernel(on_cpu):
    for cpu in CPUS:
        on_cpu(cpu)
        path = f"/sys/devices/system/cpu/cpu{cpu}"
        nodes = [name[4:] for name in os.listdir(path) if re.fullmatch(r"node\d+", name)]
        assert [PerNuma().partition()] == (nodes or ["0"])


@two_cpus
@pytest.mark.parametrize(
    "nodes",
    [
        {0: CPUS[0], 1: CPUS[-1]},
        {0: f"{CPUS[0]},100-103", 1: f"{CPUS[-1]},104-107"},
        {0: "200-207", 1: CPUS[0], 2: "300", 3: CPUS[-1]},  # four nodes
        {3: CPUS[0], 8: CPUS[-1], 12: ""},  # sparse, and one of memory only
        {7 - n: cpu for n, cpu in enumerate([*(CPUS[0], CPUS[-1]), *range(400, 406)])},  # eight
    ],
    ids=["2", "2 with more CPUs", "4", "sparse", "8"],
)
def test_a_caller_is_on_the_node_of_its_cpu(machine, nodes, on_cpu):
    scope = PerNuma(sysfs=machine(nodes))
    for cpu in (CPUS[0], CPUS[-1]):
        on_cpu(cpu)
        (node,) = [node for node, cpus in nodes.items() if str(cpu) in str(cpus).split(",")]
        assert scope.partition() == str(node)


def test_a_cpu_that_no_node_lists_is_on_some_node(machine, on_cpu):
    scope = PerNuma(sysfs=machine({4: CPUS[0], 6: "900"}))
    for cpu in CPUS:
        on_cpu(cpu)
        assert scope.partition() in ("4", "6")


@two_cpus
@pytest.mark.parametrize("others", ["", "900"], ids=["the highest", "below the highest"])
def test_a_cpu_that_comes_online_later_is_on_its_own_node(machine, on_cpu, others):
    root = machine({4: CPUS[0], 6: others})
    scope = PerNuma(sysfs=root)
    cpulist = Path(root, "devices/system/node/node6/cpulist")
    cpulist.write_text(",".join(filter(None, [str(CPUS[1]), others])))
    on_cpu(CPUS[1])
    assert scope.partition() == "6"
    cpulist.unlink()  # from here on it is known
    assert scope.partition() == "6"
    on_cpu(CPUS[0])
    assert scope.partition() == "4"


@two_cpus
def test_a_topology_that_contradicts_itself_later_is_no_error_in_a_call(machine, on_cpu):
    root = machine({4: CPUS[0], 6: "900"})
    scope = PerNuma(sysfs=root)
    Path(root, "devices/system/node/node6/cpulist").write_text("nonsense")
    on_cpu(CPUS[1])
    assert scope.partition() == "4"


@two_cpus
def test_callers_on_one_node_coalesce_and_those_on_two_do_not(table_name, machine, hands, until):
    scope = PerNuma(sysfs=machine({0: CPUS[0], 1: CPUS[1]}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no node 1 to bind to
        merger = Merger(table_name, scope=scope)
    release = threading.Event()
    leader = hands.start(wait_on, CPUS[0], merger, release, where="threads")
    until(merger.flights)
    near = hands.start(call_on, merger, CPUS[0], where="forked")
    until(lambda: merger.flights()[0].followers == 1)
    far = hands.start(call_on, merger, CPUS[1], where="forked")
    assert far.result() is Role.LEADER
    release.set()
    assert leader.result() is Role.LEADER
    assert near.result() is Role.FOLLOWER
    assert files(table_name) == ["@PerNuma@0", "@PerNuma@0~lock", "@PerNuma@1", "@PerNuma@1~lock"]
    assert merger.stats().leaders == 2


def call_on(merger, cpu):
    os.sched_setaffinity(0, {cpu})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return merger.flight("key", give, True).role


@two_cpus
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_flight_ends_on_the_table_where_it_began(table_name, machine, on_cpu, kind):
    scope = PerNuma(sysfs=machine({0: CPUS[0], 1: CPUS[1]}, has_memory="0"))
    on_cpu(CPUS[0])

    def move():
        on_cpu(CPUS[1])
        return [flight.state for flight in merger.flights()]

    if kind == "sync":
        merger = Merger(table_name, scope=scope)
        assert merger.execute("key", move) == ["running"]
    else:
        merger = AsyncMerger(table_name, scope=scope)

        async def move_slowly():
            await asyncio.sleep(0)
            return move()

        assert asyncio.run(merger.execute("key", move_slowly)) == ["running"]
    assert merger.flights() == []
    assert merger.stats().leaders == 1
    assert files(table_name) == ["@PerNuma@0", "@PerNuma@0~lock"]
    merger = Merger(table_name, scope=scope)  # on the other node by now
    assert merger.execute("key", give, 1) == 1
    assert "@PerNuma@1" in files(table_name)


def test_a_nodes_table_is_bound_to_its_memory(table_name, machine):
    root = machine({0: f"0-{max(CPUS)}", 1: "900"})  # of which the first one is real
    merger = Merger(table_name, scope=PerNuma(sysfs=root))
    path = path_of(segment_name(table_name, "PerNuma", "0"))
    maps = Path("/proc/self/numa_maps").read_text().splitlines()
    lines = [line for line in maps if f"file={path}" in line]
    assert [line.split()[1] for line in lines] == ["prefer:0"], lines
    assert merger.execute("key", give, 1) == 1


@pytest.mark.parametrize(
    "root", [{"nodes": {0: f"0-{max(CPUS)}"}}, {"nodes": {0: "", 1: "0-99"}, "has_memory": "0"}]
)
def test_where_binding_makes_no_difference_nothing_is_bound(table_name, machine, root):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merger = Merger(table_name, scope=PerNuma(sysfs=machine(**root)))
    assert merger.execute("key", give, 1) == 1


CONTRADICTIONS = [
    ({0: "0-3", 1: "3-5"}, {}, "CPU 3 is on nodes 0 and 1"),
    ({0: "0-3"}, {"online": "0-1"}, "names node 1, but has no node1/cpulist"),
    ({0: "0-3"}, {"online": ""}, "names no NUMA node"),
    ({0: "", 1: ""}, {}, "no NUMA node has a CPU"),
    ({0: "0-3"}, {"has_memory": "0,5"}, "has_memory names nodes that"),
    ({0: "zero"}, {}, "'zero' is no list such as 0-3,8"),
    ({0: "3-"}, {}, "'3-' is no list such as 0-3,8"),
    ({0: "5-2"}, {}, "'5-2' is no range of CPUs or nodes"),
    ({0: "0-99999999999"}, {}, "is no range of CPUs or nodes"),
]


@pytest.mark.parametrize(("nodes", "lists", "text"), CONTRADICTIONS)
def test_a_topology_that_contradicts_itself_is_an_error_at_once(machine, nodes, lists, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        PerNuma(sysfs=machine(nodes, **lists))


def test_a_topology_that_is_not_there_is_an_error_at_once(tmp_path):
    with pytest.raises(ValueError, match="names no NUMA node"):
        PerNuma(sysfs=str(tmp_path))


# What a container's seccomp profile answers to mbind: BPF, as the kernel's struct sock_filter.
_MBIND = {"x86_64": 237, "aarch64": 235}[os.uname().machine]
_FILTER = [
    (0x20, 0, 0, 0),  # load the number of the system call
    (0x15, 0, 1, _MBIND),  # skip one unless it is mbind
    (0x06, 0, 0, 0x00050000 | 1),  # EPERM
    (0x06, 0, 0, 0x7FFF0000),  # allow
]


class _Program(ctypes.Structure):
    _fields_: ClassVar = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def use_without_mbind(name, root):
    code = b"".join(struct.pack("<HBBI", *line) for line in _FILTER)
    memory = ctypes.create_string_buffer(code)
    program = _Program(len(_FILTER), ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
    numa._warned.clear()  # another test may have been told
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = [
            Merger(f"{name}{n}", scope=PerNuma(sysfs=root)).execute("key", give, n)
            for n in range(2)
        ]
    return values, [str(warning.message) for warning in caught]


def test_where_binding_is_forbidden_tables_work_and_it_is_said_once(table_names, machine, hands):
    name = table_names()[:-1]
    for n in range(2):
        table_names.made.append(f"{name}{n}")
    root = machine({0: f"0-{max(CPUS)}", 1: "900"})
    values, said = hands.start(use_without_mbind, name, root, where="forked").result()
    assert values == [0, 1]
    (text,) = said
    assert "Operation not permitted" in text
    assert "seccomp" in text


HIDE_NODES = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x00020000) == 0, ctypes.get_errno()  # a mount namespace
assert libc.mount(None, b"/", None, 0x4000 | 0x40000, None) == 0  # nothing gets out of it
assert libc.mount(b"none", b"/sys/devices/system/node", b"tmpfs", 0, None) == 0
os.rmdir  # the directory stays, and is empty
from uniflight_mp import Merger
merger = Merger.per_numa(sys.argv[1])
print(merger.scope.partition(), merger.execute("key", int))
"""


def test_a_container_that_shows_no_nodes_has_what_the_kernel_says(table_name, on_cpu):
    import subprocess

    if os.geteuid() != 0:
        pytest.skip("no right to hide sysfs")
    on_cpu(CPUS[0])
    done = subprocess.run(
        [sys.executable, "-c", HIDE_NODES, table_name], capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr) == ([PerNuma().partition(), "0"], "")


# ---- a scope of one's own ---------------------------------------------------------------

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")


@dataclass(frozen=True)
class PerTenant:
    shared: ClassVar[bool] = True

    def partition(self):
        return tenant.get("nobody")


def call_as(who, function, *args):
    tenant.set(who)
    return function(*args)


def as_tenant(who, function, *args):
    return contextvars.copy_context().run(call_as, who, function, *args)


def test_a_scope_of_ones_own_divides_callers(table_name, hands, until):
    merger = Merger(table_name, scope=PerTenant())
    assert isinstance(merger.scope, Scope)
    release = threading.Event()
    leader = hands.start(as_tenant, "one", merger.flight, "key", release.wait, 30, where="threads")
    until(merger.flights)
    assert as_tenant("two", merger.flight, "key", give, 2).role is Role.LEADER
    other = hands.start(as_tenant, "one", merger.flight, "key", never, where="spawned")
    until(lambda: merger.flights()[0].followers == 1)
    assert Merger(table_name).flight("key", give, 3).role is Role.LEADER
    release.set()
    assert leader.result().role is Role.LEADER
    assert other.result().role is Role.FOLLOWER
    tables = [file for file in files(table_name) if "~" not in file]
    assert tables == ["", "@PerTenant@nobody", "@PerTenant@one", "@PerTenant@two"]


def test_tasks_of_one_loop_coalesce_within_their_tenants_only(table_name):
    runs = []

    async def main():
        merger = AsyncMerger(table_name, scope=PerTenant())
        started = asyncio.Event()

        async def work(who):
            runs.append(who)
            await started.wait()
            return who

        async def call(who):
            tenant.set(who)
            return await merger.execute("key", work, who)

        tasks = [asyncio.create_task(call(who)) for who in ("one", "two") * 5]
        await asyncio.sleep(0)  # each of them runs until it waits
        started.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == ["one", "two"] * 5
    assert runs == ["one", "two"]


def test_every_process_sees_the_flights_of_all_partitions(table_name, hands, until):
    merger = Merger(table_name, scope=PerTenant())
    release = threading.Event()
    for who in ("one", "two"):
        hands.start(as_tenant, who, merger.execute, "key", release.wait, 30, where="threads")
    until(lambda: len(merger.flights()) == 2)
    seen = hands.start(merger.flights, where="spawned").result()
    assert [flight.key for flight in seen] == ["key", "key"]
    assert hands.start(merger.forget, "key", where="spawned").result() is True
    assert as_tenant("one", merger.flight, "key", give, 1).role is Role.LEADER
    release.set()


def destroy_after(function, name, who):
    """Have the partition's table removed as soon as somebody has seen that it is there."""

    def listing(*args):
        found = function(*args)
        destroy(segment_name(name, "PerTenant", who), name)
        return found

    return listing


@pytest.mark.parametrize("here", [True, False], ids=["open here", "open nowhere"])
@pytest.mark.parametrize("ask", ["flights", "stats", "forget"])
def test_a_table_that_is_destroyed_while_it_is_asked_is_not_made_again(
    table_name, monkeypatch, ask, here
):
    merger = Merger(table_name, scope=PerTenant())
    user = merger if here else Merger(table_name, scope=PerTenant())
    assert as_tenant("one", user.execute, "key", give, 1) == 1
    del user
    listing = destroy_after(segment.find_segments, table_name, "one")
    monkeypatch.setattr(segment, "find_segments", listing)
    getattr(merger, ask)(*["key"] if ask == "forget" else [])
    assert files(table_name) == ["@PerTenant@nobody", "@PerTenant@nobody~lock"]


def test_private_tables_are_counted_while_other_threads_open_theirs(table_name, hands):
    scope = Says("home")
    scope.shared = False
    merger = Merger(table_name, scope=scope, limits=Limits(64, 64, 64))
    over = threading.Event()

    def open_tables():
        for n in itertools.count():
            if over.is_set():
                return
            scope._partition = f"p{n % 200}"
            merger.with_options().execute("key", give, n)  # has a table until it is collected

    hands.start(open_tables, where="threads")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(3000):
            merger.stats()
    finally:
        sys.setswitchinterval(interval)
        over.set()


def test_a_file_with_a_name_that_no_partition_has_is_in_nobodys_way(table_name):
    merger = Merger(table_name, scope=PerTenant())
    assert merger.execute("key", give, 1) == 1
    path = path_of(segment_name(table_name, "PerTenant", "nobody")) + " and nobody else"
    Path(path).touch()
    assert merger.flights() == []
    assert merger.stats().leaders == 1
    assert merger.forget("key") is False
    os.unlink(path)


def stand_in_the_way(name, partition):
    path = path_of(segment_name(name, "PerTenant", partition))
    os.mkdir(path)
    return path


def test_calls_run_alone_where_a_partitions_table_cannot_be_opened(table_name):
    merger = Merger(table_name, scope=PerTenant())
    path = stand_in_the_way(table_name, "one")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outcomes = [as_tenant("one", merger.flight, "key", give, n) for n in range(5)]
    assert [(o.value, o.role) for o in outcomes] == [(n, Role.SOLO) for n in range(5)]
    assert ["calls in partition 'one' run alone" in str(warning.message) for warning in said] == [
        True
    ]

    async def coroutine(value):
        return value

    async def main():
        tenant.set("one")
        return await AsyncMerger(table_name, scope=PerTenant()).flight("key", coroutine, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        home = Merger(table_name, scope=PerTenant())
    assert home.stats().solo["unavailable"] == 5
    with pytest.raises(TypeError, match="which no key can have"):
        as_tenant("one", merger.execute, ["key"], never)
    with pytest.raises(TableUnavailable, match="cannot be opened"):
        as_tenant("one", merger.with_options(strict=True).execute, "key", never)
    with pytest.raises(TableUnavailable):
        asyncio.run(main())  # at construction, which is an error at once
    os.rmdir(path)
    merger = Merger(table_name, scope=PerTenant())
    assert as_tenant("one", merger.flight, "key", give, 1).role is Role.LEADER


def test_a_partition_is_tried_again_a_little_later(table_name, until):
    merger = Merger(table_name, scope=PerTenant())
    path = stand_in_the_way(table_name, "one")
    with pytest.warns(RuntimeWarning, match="run alone"):
        assert as_tenant("one", merger.flight, "key", give, 1).role is Role.SOLO
    os.rmdir(path)
    until(lambda: as_tenant("one", merger.flight, "key", give, 1).role is Role.LEADER, 5)


# ---- bad scopes -------------------------------------------------------------------------


class OnlyPartition:
    def partition(self):
        return ""


class Says:
    """A scope whose partition is what it was told."""

    shared = True

    def __init__(self, partition):
        self._partition = partition

    def partition(self):
        return self._partition


@pytest.mark.parametrize(
    ("scope", "text"),
    [
        ({}, "it has no partition and no shared"),
        (PerHost, "PerHost() instead of the class"),
        (OnlyPartition(), "it has no shared"),
        (5, "is no scope"),
    ],
)
def test_what_is_no_scope_is_an_error_that_says_what_it_lacks(table_name, scope, text):
    with pytest.raises(TypeError, match=re.escape(text)):
        Merger(table_name, scope=scope)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "partition", ["a/b", "../b", "a~lock", "a@b", "x" * 65, "\0", "é", 5, None]
)
def test_a_partition_that_cannot_be_part_of_a_name_is_an_error(table_name, partition, shared):
    scope = Says(partition)
    scope.shared = shared
    with pytest.raises((ValueError, TypeError), match=r"partition\(\) must return"):
        Merger(table_name, scope=scope)
    assert files(table_name) == []


def test_such_a_partition_later_on_is_an_error_in_the_call(table_name):
    scope = Says("good")
    merger = Merger(table_name, scope=scope)
    assert merger.execute("key", give, 1) == 1
    scope._partition = "not/good"
    with pytest.raises(ValueError, match=r"partition\(\) must return"):
        merger.execute("key", never)


@pytest.mark.parametrize("name", ["PerTénant", "x" * 25, "a@b"])
def test_the_name_of_a_scopes_class_has_to_fit_into_a_name(table_name, name):
    scope = type(name, (Says,), {})("p")
    with pytest.raises(ValueError, match="the name of a scope's class is part of its tables'"):
        Merger(table_name, scope=scope)
