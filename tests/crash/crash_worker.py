"""A process to be killed: opens tables, calls, and writes down what it does (see history.py).

As a program it is a nursery: it imports everything once, and forks a worker whenever somebody sends
a name and two pipes through the socket that is its standard input. A worker obeys the JSON commands
of its pipe, one a line, one at a time, and answers with events. Workers are left to the nursery's
parent, who has to be a subreaper.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import filelock  # noqa: F401  # here, rather than in every worker
import posix_ipc

from uniflight_mp import (
    AsyncMerger,
    Limits,
    Merger,
    MsgpackCodec,
    Outcome,
    _shm,
)
from uniflight_mp import results as results_module
from uniflight_mp import segment as segment_module
from uniflight_mp.base import BaseMerger

PR_SET_PDEATHSIG = 1
CLONE_NEWPID = 0x20000000
SYS_EXIT = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
GATE_SECONDS = 60
LIBC = ctypes.CDLL(None)

SMALL = 200
EXTRA = 50_000  # over the default Limits.inline_bytes


def die_with_parent() -> None:
    """Have the kernel kill this process when the one who watches over it is gone."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Recorder:
    """Writes events, each in one piece."""

    def __init__(self, fd: int, life: str) -> None:
        self.fd = fd
        self.life = life

    def __call__(self, what: str, **fields: Any) -> None:
        at = time.monotonic_ns()
        line = json.dumps({"at": at, "life": self.life, "what": what, **fields}) + "\n"
        os.write(self.fd, line.encode())


# Of the call that runs in this thread or task.
ALONE: ContextVar[bool] = ContextVar("ALONE", default=False)


class _Telling(BaseMerger):
    """A Merger whose functions can tell whether they run as leader or alone."""

    def _solo(self, reason, table):
        ALONE.set(True)
        return super()._solo(reason, table)


class Watched(_Telling, Merger):
    pass


class WatchedAsync(_Telling, AsyncMerger):
    pass


class ArmingCodec(MsgpackCodec):
    """Arms a crash point when it has encoded, between the two halves of a publication."""

    strike: tuple[str, str] | None = None

    def encode(self, value):
        encoded = super().encode(value)
        if self.strike:
            _shm.arm(*self.strike)
        return encoded


def body(execution: str, size: int) -> bytes:
    """Bytes that only that execution makes."""
    mark = execution.encode() + b" "
    return (mark * (size // len(mark) + 1))[:size]


def is_intact(value: Any) -> bool:
    """Whether every part of a value is of one and the same execution."""
    return value["body"] == body(value["execution"], value["size"])


class Caller:
    """Calls, and writes down what history.py wants to know."""

    def __init__(self, merger: Merger | AsyncMerger, record: Recorder, name: str) -> None:
        self.merger = merger
        self.record = record
        self.name = name
        self.numbers = itertools.count()

    def call(self, key: Any, work: Any, size: int = SMALL, **options: Any) -> None:
        merger, call = self._begin(key, options)
        try:
            outcome = merger.flight(key, self._execute, call, key, work, size)
        except BaseException as error:
            self._raised(call, error)
        else:
            self._returned(call, outcome)

    async def call_async(self, key: Any, work: Any, size: int = SMALL, **options: Any) -> None:
        merger, call = self._begin(key, options)
        try:
            outcome = await merger.flight(key, self._execute_async, call, key, work, size)
        except BaseException as error:
            self._raised(call, error)
        else:
            self._returned(call, outcome)

    def forget(self, key: Any) -> bool:
        forget = f"{self.name}.{next(self.numbers)}"
        self.record("forget", key=key, forget=forget)
        found = self.merger.forget(key)
        self.record("forgot", forget=forget)
        return found

    def _begin(self, key: Any, options: dict[str, Any]) -> tuple[Any, str]:
        merger = self.merger.with_options(**options) if options else self.merger
        terms = merger._options
        ALONE.set(False)
        call = f"{self.name}.{next(self.numbers)}"
        self.record("call", call=call, key=key, timeout=terms.timeout, lease=terms.lease)
        return merger, call

    def _returned(self, call: str, outcome: Outcome[dict[str, Any]]) -> None:
        value = outcome.value
        # A damaged table may bring anything; the judge wants to hear of it.
        ours = isinstance(value, dict) and value.keys() == {"key", "execution", "size", "body"}
        self.record(
            "return",
            call=call,
            role=outcome.role.value,
            key=value["key"] if ours else None,
            execution=value["execution"] if ours else None,
            intact=ours and is_intact(value),
            takeovers=outcome.takeovers,
        )

    def _raised(self, call: str, error: BaseException) -> None:
        self.record("raise", call=call, error=type(error).__name__, text=str(error)[:300])

    def _execute(self, call: str, key: Any, work: Any, size: int) -> dict[str, Any]:
        with self._execution(call, key) as about:
            work(about)
        return self._value(key, about, size)

    async def _execute_async(self, call: str, key: Any, work: Any, size: int) -> dict[str, Any]:
        with self._execution(call, key) as about:
            await work(about)
        return self._value(key, about, size)

    @contextmanager
    def _execution(self, call: str, key: Any) -> Iterator[dict[str, Any]]:
        about = {"call": call, "execution": f"{call}x{next(self.numbers)}"}
        self.record("execute", key=key, leads=not ALONE.get(), **about)
        try:
            yield about
        except BaseException:
            self.record("executed", failed=True, **about)
            raise
        self.record("executed", failed=False, **about)

    def _value(self, key: Any, about: dict[str, Any], size: int) -> dict[str, Any]:
        execution = about["execution"]
        return {"key": key, "execution": execution, "size": size, "body": body(execution, size)}


class Worker:
    """Obeys commands; every method whose name begins with ``do_`` is one."""

    def __init__(self, life: str, orders: int, report: int) -> None:
        self.record = Recorder(report, life)
        self.orders = os.fdopen(orders, "rb")
        self.life = life
        self.codec = ArmingCodec()
        self.forked: list[int] = []
        self.left_alone: list[threading.Thread] = []

    def run(self) -> None:
        for line in self.orders:
            command = json.loads(line)
            reply = getattr(self, "do_" + command.pop("do"))(**command)
            self.record("done", reply=reply)

    # ---- the table ----------------------------------------------------------------------

    def do_open(self, table, limits=None, **options):
        self.table = table
        try:
            self.merger = Watched(
                table,
                codec=self.codec,
                limits=Limits(**limits) if limits else None,
                **options,
            )
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        self.caller = Caller(self.merger, self.record, self.life)
        return None

    def do_build(self):
        return {
            "points": list(getattr(_shm, "CRASH_POINTS", ())),
            "file": _shm.__file__,
            "arms": hasattr(_shm, "arm"),
        }

    def do_inspect(self):
        """Everything that has to be nothing when nobody calls, and what it may say."""
        segment = self.merger._segment
        slots, cells, _ = segment.table.usage()
        return {
            "slots": slots,
            "cells": cells,
            "check": segment.table.check(),
            "flights": [repr(flight) for flight in self.merger.flights()],
            "extras": results_module.extra_segments(segment.segment),
            "drafts": [
                name
                for name in os.listdir(segment_module.SHM_DIR)
                if name.startswith(segment.segment) and "draft" in name
            ],
        }

    def do_stats(self):
        stats = self.merger.stats()
        return {**stats.__dict__, "solo": dict(stats.solo)}

    def do_identity(self):
        segment = self.merger._segment
        return [segment.segment, *segment.table.identity, segment.table.damaged]

    def do_geometry(self):
        return self.merger._segment.table.geometry()

    def do_damage(self):
        self.merger._segment.table.damage()

    def do_reap(self):
        return len(self.merger.flights())

    def do_forget(self, key):
        return self.caller.forget(key)

    def do_peek(self, table):
        """Look at a table as ``inspect`` does: read-only, without a lock, holding nothing."""
        name = segment_module.segment_name(table)
        seen = segment_module.attach_read_only(name, table)
        return [] if seen is None else [[row[1], row[6], row[7]] for row in seen.flights()]

    def do_name(self, table):
        return segment_module.segment_name(table)

    def do_survey(self, table):
        name = segment_module.segment_name(table)
        return [name, segment_module.attach_read_only(name, table).geometry()]

    def do_hold_lock(self):
        """Be stopped while holding the lock under which tables are made."""
        with segment_module.locked(self.merger._segment.segment, self.table):
            os.kill(os.getpid(), signal.SIGSTOP)

    # ---- striking -----------------------------------------------------------------------

    def do_arm(self, point, action):
        _shm.arm(point, action)

    def do_confine(self, tasks):
        """Say where to go before eating: the list of tasks of a memory cgroup."""
        self.prison = tasks

    def do_die_in_creation(self, step, after):
        """Be killed before or after a step, given as ``module.function``, when it comes."""
        module, name = step.split(".")
        owner = {"os": os, "shm": _shm, "posix_ipc": posix_ipc}[module]
        real = getattr(owner, name)

        def deadly(*args, **kwargs):
            if after:
                real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, deadly)

    # ---- calling ------------------------------------------------------------------------

    def do_call(self, key, size=SMALL, thread=False, arm=None, options=None, **behaviour):
        """Call; ``arm`` is [point, action, "before" | "function" | "encode"]."""
        if arm and arm[2] == "before":
            _shm.arm(*arm[:2])
        self.codec.strike = arm[:2] if arm and arm[2] == "encode" else None

        def work(about):
            self.behave(about, **behaviour)
            if arm and arm[2] == "function":
                _shm.arm(*arm[:2])

        if not thread:
            self.caller.call(key, work, size, **(options or {}))
            return
        own = threading.Thread(
            target=self.caller.call, args=(key, work, size), kwargs=options or {}, daemon=True
        )
        own.start()
        self.left_alone.append(own)

    def do_storm(self, seed, seconds):
        """Call at random for a while, never without a timeout."""
        dice = random.Random(f"{seed}/{self.life}")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.caller.call(
                dice.choice(("red", "green")),
                lambda about: time.sleep(dice.choice((0, 0.002, 0.01))),
                dice.choice((20, 200, EXTRA)),
                timeout=dice.choice((0.05, 0.5)),
                on_timeout=dice.choice(("raise", "run")),
            )

    def behave(self, about, gate=None, then="return"):
        """What the function does: wait for a file, then return, raise, or worse."""
        until = time.monotonic() + GATE_SECONDS
        while gate and not os.path.exists(gate):
            if time.monotonic() > until:
                raise TimeoutError("the gate stayed closed")
            time.sleep(0.002)
        getattr(self, "then_" + then)(about)

    def then_return(self, about):
        pass

    def then_raise(self, about):
        raise LookupError("on purpose")

    def then_abandon(self, about):
        raise SystemExit("on purpose")

    def then_die(self, about):
        os.kill(os.getpid(), signal.SIGKILL)

    def then_exec(self, about):
        self.record("gone", **about)
        os.execvp("sleep", ["sleep", "60"])

    def then_end_thread(self, about):
        """End the thread as the kernel sees it, with no Python and no libc clean-up."""
        self.record("gone", **about)
        LIBC.syscall(SYS_EXIT, 0)

    def then_end_thread_orderly(self, about):
        """End the thread with its destructors, which give its records back."""
        self.record("gone", **about)
        LIBC.pthread_exit(None)

    def then_eat(self, about):
        """Ask for memory until the kernel has had enough."""
        eaten = []
        with open(self.prison, "w") as tasks:
            tasks.write(str(os.getpid()))
        while True:
            eaten.append(b"x" * (1 << 20))

    def then_fork(self, about):
        """Leave a child behind that returns from the leader's function, as a prefork server's
        double would, and obeys the commands that come once its parent is dead."""
        pid = os.fork()
        if pid:
            self.record("forked", child=pid)
            signal.pause()  # until it is killed
        self.record.life = self.caller.name = f"{self.life}-child"

    # ---- families -----------------------------------------------------------------------

    def do_fork_caller(self, life, key, gate=None, namespace=False, reopen=False):
        """Call in a forked child, which nobody waits for until ``do_reap_children``.

        ``namespace``: the child is the first process of a PID namespace. ``reopen``: it opens the
        table by name there, instead of using what it inherited.
        """
        if namespace and LIBC.unshare(CLONE_NEWPID) != 0:
            return None
        pid = os.fork()
        if pid == 0:
            die_with_parent()
            self.record.life = life
            if reopen:
                self.do_open(self.table)
            self.caller.name = life
            self.caller.call(key, lambda about: self.behave(about, gate))
            os._exit(0)
        self.forked.append(pid)
        self.record("forked", child=pid)
        return pid

    def do_reap_children(self):
        statuses = []
        while self.forked:
            _, status = os.waitpid(self.forked.pop(), 0)
            statuses.append(os.waitstatus_to_exitcode(status))
        return statuses


def breed(life: str, orders: int, report: int) -> None:
    """Start a worker that is not our child."""
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    between = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.0005)
    die_with_parent()
    status = 1
    try:
        worker = Worker(life, orders, report)
        worker.record("born", pid=os.getpid())
        worker.run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    die_with_parent()
    warnings.simplefilter("ignore")
    with socket.socket(fileno=0) as door:
        while True:
            life, fds, _, _ = socket.recv_fds(door, 200, 2)
            if not life:
                break
            breed(life.decode(), *fds)
            for fd in fds:
                os.close(fd)


if __name__ == "__main__":
    main()
