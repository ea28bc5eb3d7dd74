"""Ourselves and the others: each has ``execute(key, func, *args)``, as a Merger has.

The recipes are what one writes after a search for "single flight Python" and for "flock file
cache stampede Python", in their leanest correct form.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import mmap
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from typing import Any, TypeVar

import msgpack

from uniflight_mp import Merger, Scope

from .stage import FORK

__all__ = ["BareSemaphore", "FlockFile", "Ours", "Recipe", "installed", "installed_peers"]


class Ours:
    """A Merger."""

    def __init__(self, table: str, scope: Scope | None = None) -> None:
        self.merger = Merger(table, scope=scope)
        self.execute = self.follow = self.merger.execute

    def has_followers(self, key: str, count: int) -> bool:
        """Tell whether that many callers of ``key`` wait."""
        flights = self.merger.flights()
        return sum(flight.followers for flight in flights if flight.key == key) == count


class _Other:
    """Cannot be asked who waits; a follower calls what a leader calls."""

    def has_followers(self, key: str, count: int) -> bool:
        return True

    def follow(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        return self.execute(key, func, *args)

    def execute(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        raise NotImplementedError


class Recipe(_Other):
    """In-process: a lock, a dict and a Future."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls: dict[str, Future[Any]] = {}

    def execute(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        with self._lock:
            future = self._calls.get(key)
            leads = future is None
            if leads:
                future = self._calls[key] = Future()
        if not leads:
            return future.result()
        try:
            value = func(*args)
        except BaseException as error:
            future.set_exception(error)
            raise
        else:
            future.set_result(value)
            return value
        finally:
            with self._lock:
                del self._calls[key]


class FlockFile(_Other):
    """Cross-process: a locked file per key, which also holds the last result and its time."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def execute(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        called = time.monotonic_ns()
        name = hashlib.sha256(key.encode()).hexdigest()
        fd = os.open(f"{self._directory}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            record = os.pread(fd, 1 << 20, 0)
            if int.from_bytes(record[:8], "little") > called:
                return msgpack.unpackb(record[8:])
            value = func(*args)
            data = msgpack.packb(value)
            os.ftruncate(fd, 8)
            os.pwrite(fd, data, 8)
            os.pwrite(fd, time.monotonic_ns().to_bytes(8, "little"), 0)  # it counts from here on
            return value
        finally:
            os.close(fd)  # unlocks


class BareSemaphore(_Other):
    """No single-flight at all: what two Python processes can do with one semaphore.

    For one leader and one follower, known beforehand, and a value of a known size. To be made
    before the fork.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory = mmap.mmap(-1, size)
        self._semaphore = FORK.Semaphore(0)

    def execute(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        value = func(*args)
        self._memory[:] = value
        self._semaphore.release()
        return value

    def follow(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        self._semaphore.acquire()
        return self._memory[:]


class _Flightlock(_Other):
    def __init__(self) -> None:
        from flightlock.core import SingleFlightGroup

        self._group = SingleFlightGroup()

    def execute(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        return self._group.execute(key, functools.partial(func, *args))


class _Coalescer(_Other):
    def __init__(self) -> None:
        from coalescer.sync import Coalescer

        self.execute = Coalescer().do


class _Singleflight(_Other):
    def __init__(self) -> None:
        from singleflight.basic import SingleFlight

        self._call = SingleFlight().call

    def execute(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        return self._call(func, key, *args)


class _Moka(_Other):
    """A cache; what it keeps is removed, as a single-flight keeps nothing."""

    def __init__(self) -> None:
        import moka_py

        self._cache = moka_py.Moka(1000)

    def execute(self, key: str, func: Callable[..., Any], *args: object) -> Any:
        value = self._cache.get_with(key, functools.partial(func, *args))
        self._cache.remove(key)
        return value


_PEERS = {
    "coalescer": _Coalescer,
    "flightlock": _Flightlock,
    "moka-py": _Moka,
    "singleflight": _Singleflight,
}
_Make = TypeVar("_Make")


def installed(makers: Mapping[str, _Make]) -> list[tuple[str, _Make]]:
    """Return those whose package is installed, by name and version."""
    found = []
    for package, make in makers.items():
        try:
            found.append((f"{package} {version(package)}", make))
        except PackageNotFoundError:
            continue
    return found


def installed_peers() -> list[tuple[str, Callable[[], _Other]]]:
    """Return the in-process peers for threads that are installed, by name and version."""
    return installed(_PEERS)
