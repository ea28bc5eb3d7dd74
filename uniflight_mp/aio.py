"""The asyncio Merger."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from .base import BaseMerger
from .coalesce import Coalesced, KeyMaker, wrap
from .cooperative import lead, resume
from .core import Lead
from .desk import Desk, Desks, Ticket, Timer
from .outcome import Outcome

__all__ = ["AsyncMerger"]

P = ParamSpec("P")
T = TypeVar("T")


class _AsyncioReactor:
    """What a desk needs of asyncio, or of uvloop."""

    def ticket(self) -> Ticket:
        return asyncio.get_running_loop().create_future()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)

    def caller(self) -> object:
        return asyncio.current_task()


_desks = Desks(_AsyncioReactor())


class AsyncMerger(BaseMerger):
    """``Merger`` for coroutines: the same tables, the same guarantees, and no thread is blocked.

    Tasks of one event loop coalesce in the process first, so a loop takes part in a flight once,
    however many of its tasks wait (``FlightInfo.followers`` counts it once, too). Followers in
    the leader's loop receive the very object. A cancelled leader is replaced by a task of its
    own loop, else by another process.

    Arguments and errors are those of ``Merger``.
    """

    async def execute(
        self, key: object, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return ``await func(*args, **kwargs)``, run here or by a call of ``key`` under way.

        Cancelling the caller cancels its function if it leads, and a follower leads instead;
        a follower that is cancelled leaves the flight undisturbed.

        Raises what ``Merger.execute`` raises, and TypeError if ``func`` returns no awaitable.
        """
        desk = self._desk()
        flight, step = desk.enter(self, key)
        if step.__class__ is Lead:
            return await lead(self, desk, flight, step, func, args, kwargs)
        return (await resume(self, desk, key, flight, step, func, args, kwargs)).value

    async def flight(
        self, key: object, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Outcome[T]:
        """Do as ``execute``, and tell how the value was come by. Raises what it raises."""
        desk = self._desk()
        flight, step = desk.enter(self, key)
        return await resume(self, desk, key, flight, step, func, args, kwargs)

    def coalesce(
        self, key: str | Callable[..., object] | None = None
    ) -> Callable[[Callable[P, Awaitable[T]]], Coalesced[P, Awaitable[T]]]:
        """Decorate an ``async def`` so that each call of it is an ``execute``; see ``Merger``."""

        def decorate(func: Callable[P, Awaitable[T]]) -> Coalesced[P, Awaitable[T]]:
            make_key = KeyMaker(func, key).make

            async def call(*args: P.args, **kwargs: P.kwargs) -> T:
                return await self.execute(make_key(*args, **kwargs), func, *args, **kwargs)

            return wrap(func, call, self)

        return decorate

    def __enter__(self) -> AsyncMerger:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> AsyncMerger:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    _cached: tuple[Any, Any, Desk] | None = None  # the last loop, weakly, segment, and desk

    def _desk(self) -> Desk:
        loop, segment, cached = asyncio.get_running_loop(), self._segment, self._cached
        if cached is not None and cached[0]() is loop and cached[1] is segment:
            return cached[2]
        desk = _desks.of(segment, loop)
        self._cached = (weakref.ref(loop), segment, desk)
        return desk
