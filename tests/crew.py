"""Calls that run somewhere else: in threads, forked children and spawned children.

``Crew`` starts them and reaps them, ``Leader`` is one whose function ends when the test says so.
Every wait is bounded.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time

BOUND = 30.0  # seconds; far above what anything here takes, so that only a hang reaches it


def wait_until(condition, seconds=BOUND, what=None):
    """Return the first true value of ``condition()``; fail after ``seconds`` and say ``what``."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or condition}")
        time.sleep(0.001)


def wait_for_followers(merger, followers=1, key=None):
    """Wait until some flight, or that of ``key``, has so many followers; return its info."""

    def look():
        for flight in merger.flights():
            if flight.followers == followers and key in (None, flight.key):
                return flight
        return None

    return wait_until(look, what=f"{followers} followers of {key or 'some flight'}")


def _run(function, args, kwargs):
    """Run a job in a child; return what ``Call`` makes a result or an exception of."""
    pid = os.getpid()
    faulthandler.dump_traceback_later(2 * BOUND, exit=True)  # a child outlives no failed test
    try:
        message = (True, function(*args, **kwargs), None)
    except BaseException as error:
        error.__traceback__ = None
        message = (False, error, error.__cause__)
    if os.getpid() != pid:
        os._exit(1)  # a child of the job's that came back
    faulthandler.cancel_dump_traceback_later()
    try:
        return pickle.dumps(message)
    except Exception as error:
        text = f"{message[1]!r} cannot be sent back: {error!r}"
        return pickle.dumps((False, AssertionError(text), None))


def _run_once(sender, function, args, kwargs):
    sender.send_bytes(_run(function, args, kwargs))


_STOP = b"stop"


def _serve(connection):
    """Run job after job, in a child that was spawned; its imports are paid for once."""
    while True:
        try:
            job = connection.recv_bytes()
        except EOFError:
            return
        if job == _STOP:  # other children may have inherited the connection and keep it open
            return
        connection.send_bytes(_run(*pickle.loads(job)))
        del job
        gc.collect()


class Call:
    """A function under way in another thread or process; see ``Crew``."""

    def __init__(self, process=None, connection=None, thread=None):
        self.process, self._connection, self._thread = process, connection, thread
        self._message = None
        self._killed = False

    @property
    def pid(self):
        return self.process.pid if self.process else os.getpid()

    def result(self, seconds=BOUND):
        """Return what the function returned, or raise what it raised, its cause included."""
        if self._message is None:
            self._message = self._receive(seconds)
        fine, value, cause = self._message
        if fine:
            return value
        if cause is not None:
            value.__cause__ = cause
        raise value

    def error(self, seconds=BOUND):
        """Return what the function raised."""
        try:
            value = self.result(seconds)
        except BaseException as error:
            return error
        raise AssertionError(f"returned {value!r} instead of raising")

    def finished(self):
        if self._thread:
            return not self._thread.is_alive()
        return self._killed or self._message is not None or self._connection.poll(0)

    def _receive(self, seconds):
        if self._thread:
            self._thread.join(seconds)
            assert not self._thread.is_alive(), "the thread is still at work"
            return self._thread.message
        assert self._connection.poll(seconds), f"process {self.pid} is still at work"
        try:
            return pickle.loads(self._connection.recv_bytes())
        except EOFError:
            return False, EOFError(f"process {self.pid} died"), None

    def kill(self, number=signal.SIGKILL):
        self._killed |= number == signal.SIGKILL
        os.kill(self.pid, number)

    def join(self, seconds=BOUND):
        """Wait for the end of the process or thread itself."""
        (self.process or self._thread).join(seconds)


class _Job(threading.Thread):
    def __init__(self, function, args, kwargs):
        super().__init__(daemon=True)
        self.job, self.message = (function, args, kwargs), None

    def run(self):
        function, args, kwargs = self.job
        del self.job
        try:
            self.message = (True, function(*args, **kwargs), None)
        except BaseException as error:
            self.message = (False, error, error.__cause__)


class Crew:
    """Starts functions in threads, forked or spawned children; ends and reaps what it started.

    What is given to spawned children is pickled: functions from the top level of a test module,
    and Mergers, whose bound methods will do as functions.
    """

    def __init__(self, where, servers):
        self.where = where
        self._servers = servers
        self._calls = []

    def start(self, function, *args, where=None, **kwargs):
        """Start ``function(*args, **kwargs)`` and return its ``Call``."""
        call = getattr(self, "_start_" + (where or self.where))(function, args, kwargs)
        self._calls.append(call)
        return call

    def _start_threads(self, function, args, kwargs):
        thread = _Job(function, args, kwargs)
        thread.start()
        return Call(thread=thread)

    def _start_forked(self, function, args, kwargs):
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_run_once, args=(sender, function, args, kwargs))
        process.start()
        sender.close()
        return Call(process, receiver)

    def _start_spawned(self, function, args, kwargs):
        job = pickle.dumps((function, args, kwargs))
        process, connection = self._servers.take()
        connection.send_bytes(job)
        return Call(process, connection)

    def end(self):
        """Reap everything; return descriptions of what was still at work."""
        busy = []
        for call in self._calls:
            deadline = time.monotonic() + 5
            while not call.finished() and time.monotonic() < deadline:
                time.sleep(0.001)
            if not call.finished():
                busy.append(f"{call.process or call._thread}")
                if call.process:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(call.pid, signal.SIGCONT)
                    call.process.kill()
            if call.process is None:
                call.join(5)
            elif self._servers.is_server(call.process):
                with contextlib.suppress(EOFError, AssertionError, OSError):
                    call._message or call._receive(5)
                if call._killed:
                    call.process.join(BOUND)  # it looks alive for a moment yet
                self._servers.give_back(call.process)
            else:
                call.process.join(BOUND)
                call.process.close()
                call._connection.close()
        self._calls.clear()
        return busy


class Servers:
    """Spawned children, used again and again: each costs a third of a second to start."""

    def __init__(self):
        self._idle, self._connections = [], {}

    def take(self):
        process = self._idle.pop() if self._idle else self._start()
        return process, self._connections[process]

    def _start(self):
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._connections[process] = ours
        return process

    def is_server(self, process):
        return process in self._connections

    def give_back(self, process):
        if process.is_alive():
            if process not in self._idle:
                self._idle.append(process)
        else:
            self._connections.pop(process).close()
            process.join(BOUND)

    def end(self):
        for process, connection in self._connections.items():
            with contextlib.suppress(OSError):
                connection.send_bytes(_STOP)
            connection.close()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join(BOUND)


class Leader:
    """A call in a thread whose function waits for the test to say how it ends."""

    def __init__(self, crew, merger, key):
        self._running, self._go, self._answer = threading.Event(), threading.Event(), None
        self._call = crew.start(merger.flight, key, self._function, where="threads")
        wait_until(lambda: self._running.is_set() or self._call.finished())
        assert self._running.is_set(), f"does not lead: {self._call.result()}"

    def _function(self):
        self._running.set()
        assert self._go.wait(2 * BOUND)
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    def finish(self, answer=None):
        """Let the function return ``answer``, or raise it; return the call's ``Call``."""
        self._answer = answer
        self._go.set()
        self._call.join()
        return self._call

    def outcome(self, answer=None):
        """Let the function return ``answer``, and return the leader's ``Outcome``."""
        return self.finish(answer).result()
