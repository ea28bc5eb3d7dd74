"""One way to call them all: threads and coroutines behind the same four methods.

A shell is made before the fork and makes its contender at the first call, so that every process
opens connections, files and loops of its own, as their documentation asks for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any

from ..contenders import Ours
from ..stage import PATIENCE

__all__ = ["Coroutines", "OurThreads", "Shell", "Threads"]

Function = Callable[..., Any]
Finish = Callable[[int], Any]
Timed = tuple[Any, int]  # the value, and CLOCK_MONOTONIC as soon as the caller had it


class Shell:
    """What the measures call."""

    def execute(self, key: str, func: Function, *args: object) -> Any:
        """Return what ``func(*args)`` returned, here or elsewhere."""
        raise NotImplementedError

    def timed(self, key: str, func: Function, *args: object) -> Timed:
        """Execute; say also when the value was there."""
        raise NotImplementedError

    def each(self, keys: Iterable[str], func: Function) -> int:
        """Execute for one key after the other; return the nanoseconds in all."""
        raise NotImplementedError

    def together(self, key: str, finish: Finish, hold: float, callers: int) -> list[Timed]:
        """Let ``callers`` of this process call at once; return what each got.

        A function that runs waits for ``hold`` seconds and returns ``finish(seat)``.
        """
        raise NotImplementedError

    def has_followers(self, key: str, count: int) -> bool:
        """Tell whether that many wait; of most that cannot be asked."""
        return True


class Threads(Shell):
    """Around a blocking ``execute(key, func, *args)``, which ``make`` returns."""

    def __init__(self, make: Callable[[], Function]) -> None:
        self._make = make

    @cached_property
    def execute(self) -> Function:  # type: ignore[override]
        return self._make()

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(8)

    def timed(self, key: str, func: Function, *args: object) -> Timed:
        value = self.execute(key, func, *args)
        return value, time.monotonic_ns()

    def each(self, keys: Iterable[str], func: Function) -> int:
        execute = self.execute
        started = time.monotonic_ns()
        for key in keys:
            execute(key, func)
        return time.monotonic_ns() - started

    def together(self, key: str, finish: Finish, hold: float, callers: int) -> list[Timed]:
        def function(seat: int) -> Any:
            time.sleep(hold)
            return finish(seat)

        calls = [self._pool.submit(self.timed, key, function, seat) for seat in range(callers)]
        _, hung = wait(calls, PATIENCE)  # for all: who waits for one competes with the rest
        if hung:
            raise TimeoutError(f"{len(hung)} threads got nothing for {PATIENCE:g} s")
        return [call.result() for call in calls]


class OurThreads(Threads):
    """Around a Merger, which knows who waits."""

    def __init__(self, table: str) -> None:
        super().__init__(lambda: self._ours.execute)
        self._table = table

    @cached_property
    def _ours(self) -> Ours:
        return Ours(self._table)

    def has_followers(self, key: str, count: int) -> bool:
        return self._ours.has_followers(key, count)


class Coroutines(Shell):
    """Around an ``execute(key, func, *args)`` to await, which ``make`` returns.

    All is timed inside the loop: entering it is no part of anybody's figure.
    """

    def __init__(self, make: Callable[[], Callable[..., Coroutine[Any, Any, Any]]]) -> None:
        self._make = make

    @cached_property
    def _execute(self) -> Callable[..., Coroutine[Any, Any, Any]]:
        return self._make()

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()

    def execute(self, key: str, func: Function, *args: object) -> Any:
        return self.timed(key, func, *args)[0]

    def timed(self, key: str, func: Function, *args: object) -> Timed:
        async def function() -> Any:
            return func(*args)

        return self._loop.run_until_complete(self._timed(key, function))

    async def _timed(self, key: str, function: Function, *args: object) -> Timed:
        value = await self._execute(key, function, *args)
        return value, time.monotonic_ns()

    def each(self, keys: Iterable[str], func: Function) -> int:
        execute = self._execute

        async def function() -> Any:
            return func()

        async def calls() -> int:
            started = time.monotonic_ns()
            for key in keys:
                await execute(key, function)
            return time.monotonic_ns() - started

        return self._loop.run_until_complete(calls())

    def together(self, key: str, finish: Finish, hold: float, callers: int) -> list[Timed]:
        async def function(seat: int) -> Any:
            await asyncio.sleep(hold)
            return finish(seat)

        async def calls() -> list[Timed]:
            tasks = (self._timed(key, function, seat) for seat in range(callers))
            return await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

        return self._loop.run_until_complete(calls())
