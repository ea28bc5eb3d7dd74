"""What runs inside the machine: uses tables on its nodes, and reports what it saw as JSON.

Nothing is judged here; that is done by the tests outside, which can show what they judge.
"""

import ctypes
import glob
import json
import mmap
import multiprocessing
import os
import sys
import threading
import time
import traceback

from uniflight_mp import Merger, PerNuma

PATIENCE = 30.0  # seconds; this machine is slow
CPUS = sorted(os.sched_getaffinity(0))
FORK = multiprocessing.get_context("fork")

NR_SET_MEMPOLICY, MPOL_BIND = 238, 2  # x86-64
LIBC = ctypes.CDLL(None, use_errno=True)


def pin(*cpus, task=0):
    """Have a thread run on these CPUs, which it does once this returns."""
    os.sched_setaffinity(task, cpus)


def wait_until(condition):
    """Return whether the condition came true in time."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Child:
    """A process on a CPU of its own choice, which runs a function and sends what it returns."""

    def __init__(self, cpu, function, *args):
        self._receiver, sender = FORK.Pipe(duplex=False)
        self._process = FORK.Process(target=self._run, args=(sender, cpu, function, args))
        self._process.start()
        sender.close()
        self.pid = self._process.pid

    @staticmethod
    def _run(sender, cpu, function, args):
        pin(cpu)
        try:
            sender.send((function(*args), None))
        except BaseException:
            sender.send((None, traceback.format_exc()))

    def result(self):
        if not self._receiver.poll(2 * PATIENCE):
            raise TimeoutError(f"process {self.pid} is still at work")
        value, error = self._receiver.recv()
        self._process.join()
        if error:
            raise RuntimeError(f"in process {self.pid}: {error}")
        return value


def in_thread(function):
    """Run a function in a thread of its own."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


# ---- where memory is --------------------------------------------------------------------


def segments(name):
    """List the paths of a name's tables, by what their names end with."""
    paths = sorted(glob.glob(f"/dev/shm/uniflight-*-{name}*"))
    return {path.partition(f"-{name}")[2]: path for path in paths if "~" not in path}


def numa_maps(path):
    """List what the kernel says about this process's mappings of a file."""
    with open("/proc/self/numa_maps") as file:
        return [line.rstrip() for line in file if f"file={path}" in line]


def where_is(path):
    """Tell where those pages of a table are that its Merger has touched, and where all are."""
    touched = numa_maps(path)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for offset in range(0, len(mapped), mmap.PAGESIZE):
            mapped[offset]
        lines = numa_maps(path)
        pages = -(-len(mapped) // mmap.PAGESIZE)
    return {"pages": pages, "touched": touched, "all": lines}


# ---- scenes -----------------------------------------------------------------------------


def nodes_with_memory():
    with open("/sys/devices/system/node/has_memory") as file:
        return file.read().strip()


def partitions():
    """Ask on each CPU for the partition, and sysfs for the node."""
    found = []
    for cpu in CPUS:
        pin(cpu)
        (node,) = glob.glob(f"/sys/devices/system/cpu/cpu{cpu}/node[0-9]*")
        found.append([cpu, PerNuma().partition(), os.path.basename(node)])
    return found


def tables_of_two_threads(name):
    """One Merger, used by a thread on each node."""
    merger = Merger.per_numa(name)

    def call(cpu):
        pin(cpu)
        merger.execute("key", os.getpid)

    in_thread(lambda: call(0))
    first = list(segments(name))
    in_thread(lambda: call(1))
    places = {suffix: where_is(path) for suffix, path in segments(name).items()}
    return {"first": first, "both": places}


def tables_of_a_process_bound_elsewhere(name):
    """The same, in a process whose own memory is to be on node 2."""
    mask = ctypes.c_ulong(1 << 2)
    if LIBC.syscall(NR_SET_MEMPOLICY, MPOL_BIND, ctypes.byref(mask), 64):
        raise OSError(ctypes.get_errno(), "set_mempolicy")
    return tables_of_two_threads(name)


def outcome_of(merger, key, function):
    outcome = merger.flight(key, function)
    return {
        "pid": os.getpid(),
        "role": outcome.role.value,
        "value": outcome.value,
        "followers": outcome.followers,
    }


def one_key_on_all_cpus(name):
    """A process on each CPU wants one key, and functions end when there are two followers."""
    end = FORK.Event()

    def call():
        def function():
            end.wait(PATIENCE)
            return os.getpid()

        return outcome_of(Merger.per_numa(name), "key", function)

    children = {cpu: Child(cpu, call) for cpu in CPUS}
    merger = Merger.per_numa(name)
    wait_until(lambda: sum(flight.followers for flight in merger.flights()) == 2)
    flights = [[flight.leader_pid, flight.followers] for flight in merger.flights()]
    end.set()
    calls = {cpu: child.result() for cpu, child in children.items()}
    stats = merger.stats()
    return {"flights": flights, "calls": calls, "executions": stats.leaders, "solo": stats.solo}


def migration(name):
    """A leader and a follower on node 0 are moved to node 1 in the middle of their flight."""
    moved, end = FORK.Event(), FORK.Event()

    def lead():
        merger, inner = Merger.per_numa(name), {}

        def function():
            pin(1)
            inner["partition"] = PerNuma().partition()
            # On node 1's table nobody leads this key, not even this thread.
            inner["call"] = outcome_of(merger, "key", os.getpid)
            moved.set()
            end.wait(PATIENCE)
            return os.getpid()

        return {**outcome_of(merger, "key", function), "inside": inner}

    def follow():
        return outcome_of(Merger.per_numa(name), "key", os.getpid)

    merger = Merger.per_numa(name)
    leader = Child(0, lead)
    moved.wait(PATIENCE)
    elsewhere = Child(3, follow).result()
    follower = Child(2, follow)
    wait_until(lambda: [flight.followers for flight in merger.flights()] == [1])
    pin(3, task=follower.pid)
    late = Child(2, follow)
    wait_until(lambda: [flight.followers for flight in merger.flights()] == [2])
    end.set()
    return {
        "leader": leader.result(),
        "on_its_new_node": elsewhere,
        "follower_moved_too": follower.result(),
        "follower_that_came_later": late.result(),
        "left": len(merger.flights()),
    }


def main():
    """Each scene begins on CPU 0, and has a table of its own; the failure of one ends no other."""
    scenes = (
        (nodes_with_memory,),
        (partitions,),
        (tables_of_two_threads, "two"),
        (tables_of_a_process_bound_elsewhere, "bound"),
        (one_key_on_all_cpus, "key"),
        (migration, "moving"),
    )
    report = {}
    for scene, *arguments in scenes:
        child = Child(0, scene, *arguments)
        try:
            report[scene.__name__] = {"saw": child.result()}
        except Exception as error:
            report[scene.__name__] = {"error": str(error)}
    json.dump(report, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # processes that are still at work end with the machine


main()
