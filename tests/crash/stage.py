"""Where the deadly plays are staged: actors in processes of their own, and what became of them.

Every wait here is for an event and bounded by ``PATIENCE``; whoever waits longer has found a hang.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from history import judge

HERE = Path(__file__).parent
PATIENCE = 20.0
SHM = Path("/dev/shm")
PR_SET_CHILD_SUBREAPER = 36

_lives = itertools.count()


class Hang(AssertionError):
    """Something did not happen within ``PATIENCE``."""


def until(condition: Callable[[], Any], what: str, seconds: float | None = None) -> Any:
    """Wait for a condition that cannot announce itself; return what it returned."""
    seconds = PATIENCE if seconds is None else seconds
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise Hang(f"not within {seconds:g} s: {what}")
        time.sleep(0.002)
    return result


def adopt_orphans(adopt: bool) -> None:
    """Have the workers of a nursery reparented to us, so that we can wait for them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(adopt))


class Nursery:
    """Starts workers of one build, without the time that importing takes."""

    def __init__(self, path: Path | None) -> None:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        if path is not None:
            environment["PYTHONPATH"] = str(path)
        adopt_orphans(True)
        self.door, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with inside:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "crash_worker.py")], stdin=inside, env=environment
            )

    def breed(self, life: str) -> tuple[int, int]:
        """Start a worker; return the ends of its pipes: for orders, and its report."""
        orders_in, orders = os.pipe()
        report, report_out = os.pipe()
        socket.send_fds(self.door, [life.encode()], [orders_in, report_out])
        os.close(orders_in)
        os.close(report_out)
        return orders, report

    def close(self) -> None:
        self.door.close()
        assert self.process.wait(PATIENCE) == 0
        adopt_orphans(False)


class Actor:
    """A worker process, seen from the test."""

    def __init__(self, nursery: Nursery, label: str, history: list[dict[str, Any]]) -> None:
        self.life = f"{label}#{next(_lives)}"
        self.history = history
        self.events: list[dict[str, Any]] = []
        self.seen = 0
        self.expected: set[int] = {0}
        self.status: int | None = None
        self._pid = 0
        self._rest = b""
        self.orders, self.report = nursery.breed(self.life)
        os.set_blocking(self.report, False)

    @property
    def pid(self) -> int:
        """Known as soon as it is born, which is the first thing it tells."""
        while not self._pid:
            self._pid = self.events[0]["pid"] if self.events else 0
            if not self._pid:
                self._read(time.monotonic() + PATIENCE, "birth")
        return self._pid

    # ---- commands and events --------------------------------------------------------------

    def send(self, do: str, **arguments: Any) -> None:
        line = json.dumps({"do": do, **arguments}) + "\n"
        os.write(self.orders, line.encode())

    def ask(self, do: str, **arguments: Any) -> Any:
        self.send(do, **arguments)
        return self.reply()

    def reply(self) -> Any:
        return self.expect("done")["reply"]

    def expect(self, *what: str) -> dict[str, Any]:
        """Return the next event of these kinds; those before it are passed over."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while self.seen < len(self.events):
                event = self.events[self.seen]
                self.seen += 1
                if event["what"] in what:
                    return event
            self._read(deadline, what)

    def _read(self, deadline: float, what: Any) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Hang(f"{self.life}: no {what} within {PATIENCE:g} s; so far {self.events[-4:]}")
        select.select([self.report], [], [], left)
        known = len(self.events)
        if not self.drain() and len(self.events) == known:
            raise AssertionError(f"{self.life} ended ({self.poll()}) before {what}")

    def drain(self) -> bool:
        """Take in what was written so far; False at the end of the stream."""
        while True:
            try:
                chunk = os.read(self.report, 65536)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            events = [json.loads(line) for line in lines]
            self.events += events
            self.history += [event for event in events if event["what"] not in ("done", "forked")]

    # ---- calls ----------------------------------------------------------------------------

    def call(self, key: str, **arguments: Any) -> None:
        self.send("call", key=key, **arguments)

    def leads(self, key: str, **arguments: Any) -> dict[str, Any]:
        """Call, and wait until the function runs."""
        self.call(key, **arguments)
        return self.expect("execute")

    def outcome(self) -> dict[str, Any]:
        """Wait for the end of a call; return its ``return`` or ``raise``."""
        event = self.expect("return", "raise")
        self.expect("done")
        return event

    def is_asleep(self) -> bool:
        """Whether it sleeps on a futex, as it does in a call only: for another's result."""
        return "futex" in Path(f"/proc/{self.pid}/wchan").read_text()

    def has_replied(self) -> bool:
        self.drain()
        return any(event["what"] == "done" for event in self.events[self.seen :])

    def falls_asleep(self) -> None:
        """Wait until it sleeps in its call, or has ended it already."""
        until(lambda: self.is_asleep() or self.has_replied(), f"{self.life} sleeps in its call")

    # ---- life and death -------------------------------------------------------------------

    def note(self, what: str, **fields: Any) -> None:
        at = time.monotonic_ns()
        self.history.append({"at": at, "life": self.life, "what": what, **fields})

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal, or None."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def ends(self) -> int:
        """Wait for the end; return the status."""
        until(lambda: self.poll() is not None, f"the end of {self.life}; {self.events[-4:]}")
        self.drain()
        assert self.status is not None
        return self.status

    def get_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.note("kill")
        self.get_signal(signal.SIGKILL)
        self.dies()

    def dies(self, by: int = signal.SIGKILL) -> None:
        """Wait for the death by a signal."""
        self.expected = {-by}
        status = self.ends()
        self.note("died", status=status)
        assert status == -by, f"{self.life}: status {status}"

    def is_stopped(self) -> bool:
        assert self.poll() is None, f"{self.life} ended ({self.status}), it did not stop"
        return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def stops(self) -> None:
        until(self.is_stopped, f"{self.life} stops; {self.events[-4:]}")
        self.note("stop")

    def stop(self) -> None:
        self.get_signal(signal.SIGSTOP)
        self.stops()

    def go_on(self) -> None:
        self.note("continue")
        self.get_signal(signal.SIGCONT)

    def dismiss(self) -> None:
        """Let the process end by itself, if it lives."""
        if self.orders >= 0:
            os.close(self.orders)
            self.orders = -1
        status = self.ends()
        assert status in self.expected, f"{self.life}: status {status}, not {self.expected}"

    def bury(self) -> None:
        """Make sure that nothing is left of it, nor of its children, whatever happened."""
        if self.poll() is None:
            self.get_signal(signal.SIGKILL)
            self.ends()
        for fd in (self.orders, self.report):
            with suppress(OSError):
                os.close(fd)
        for event in self.events:
            if event["what"] == "forked" and Path(f"/proc/{event['child']}").exists():
                with suppress(OSError):
                    os.kill(event["child"], signal.SIGKILL)
                    os.waitpid(event["child"], 0)


class Stage:
    """One table and its actors."""

    def __init__(self, nursery: Nursery, table: str, directory: Path, observer: Actor) -> None:
        self.nursery = nursery
        self.table = table
        self.directory = directory
        self.observer = observer
        self.history: list[dict[str, Any]] = []
        self.cast: list[Actor] = []
        self.options: dict[str, Any] = {"limits": {"flights": 64, "waiters": 64, "threads": 64}}
        self._gates = itertools.count()

    def enter(self, *labels: str) -> list[Actor]:
        """Start processes, all at once, and have each open the table."""
        actors = self.start(*labels)
        for actor in actors:
            actor.send("open", table=self.table, **self.options)
        for actor in actors:
            assert actor.reply() is None
        return actors

    def start(self, *labels: str) -> list[Actor]:
        actors = []
        for label in labels:
            actors.append(Actor(self.nursery, label, self.history))
            self.cast.append(actors[-1])
        return actors

    def gate(self) -> Gate:
        return Gate(self.directory / f"gate{next(self._gates)}")

    def peek(self) -> list[list[Any]]:
        """[state, followers, takeovers] of every flight, by one who holds nothing."""
        return self.observer.ask("peek", table=self.table)

    def followers(self, count: int) -> None:
        """Wait until that many wait, in all flights together."""
        until(
            lambda: sum(row[1] for row in self.peek()) == count,
            f"{count} followers in {self.peek()}",
        )

    def executions(self, key: str) -> list[dict[str, Any]]:
        for actor in self.cast:
            actor.drain()
        return [e for e in self.history if e["what"] == "execute" and e["key"] == key]

    def is_empty(self, inspector: Actor) -> None:
        """Nothing is in use, and nothing is left over."""
        found = inspector.ask("inspect")
        assert found == {
            "slots": 0,
            "cells": 0,
            "check": None,
            "flights": [],
            "extras": [],
            "drafts": [],
        }

    def curtain(self, *may_raise: str) -> None:
        """After one open and one call nothing is in use; all ended well; the judge agrees."""
        (newcomer,) = self.enter("newcomer")
        newcomer.call("afterwards", size=10)
        assert newcomer.outcome()["role"] == "leader"
        self.is_empty(newcomer)
        for actor in self.cast:
            actor.dismiss()
        verdict = judge(self.history, may_raise={"FlightTimeout", *may_raise})
        assert verdict.violations == []

    def strike_the_set(self) -> None:
        for actor in self.cast:
            actor.bury()
        for file in SHM.iterdir():
            if f"-{self.table}" in file.name:
                file.unlink(missing_ok=True)


class Gate:
    """Keeps a function from returning until it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> None:
        self.path.touch()
