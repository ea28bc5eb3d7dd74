"""The asyncio Merger."""

from __future__ import annotations

import asyncio
import sys
import weakref
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable
from functools import partial
from types import CoroutineType, TracebackType
from typing import Any, ParamSpec, TypeVar

from .base import BaseMerger, Landed, Solo
from .coalesce import Coalesced, KeyMaker, wrap
from .cooperative import awaitable, resume
from .core import Lead
from .desk import RETRY, Desk, desk_of
from .outcome import Outcome

__all__ = ["AsyncMerger"]

P = ParamSpec("P")
T = TypeVar("T")


_task_of: Callable[[asyncio.AbstractEventLoop], object] = asyncio.current_task
if sys.version_info < (3, 12):
    # There it is this look-up in Python, and takes 0.07 us longer. 3.10 and 3.11 get security
    # fixes only, so that it will stay where it is.
    _task_of = asyncio.tasks._current_tasks.get  # type: ignore[attr-defined]


class _AsyncioReactor:
    """What a desk needs of a loop of asyncio, or of uvloop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ticket: Callable[[], asyncio.Future[Any]] = loop.create_future
        self.call_later = loop.call_later
        self.call_soon = loop.call_soon
        self.add_reader = loop.add_reader
        self.remove_reader = loop.remove_reader
        self.is_closed = loop.is_closed
        self.caller: Callable[[], object] = partial(_task_of, loop)


def _no_desk() -> None:
    """Stand for a weak reference to a desk that is gone."""


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
        here = self if self._views is None else self._here()
        desk, flight, entered = here._desk(), None, None
        try:
            flight, entered = desk.enter(here, key)
            step: Any = entered
            # The ways of almost every call, spelled out: they are to cost no more than they must.
            if isinstance(step, Lead):
                try:
                    promise = func(*args, **kwargs)
                    if type(promise) is not CoroutineType:
                        promise = awaitable(promise, func)
                    value = await promise
                except BaseException as error:
                    desk.fail(flight, here, step, error)
                    raise
                desk.finish(flight, here, step, value)
                return value
            if not isinstance(step, Solo) and here._options.timeout_ns is None:
                step = await step
                if isinstance(step, Landed) and step.has_value():
                    return step.value  # type: ignore[return-value]
            return (await resume(here, desk, key, flight, step, func, args, kwargs)).value
        except BaseException:
            desk.disown(key, flight, entered)
            raise

    async def flight(
        self, key: object, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Outcome[T]:
        """Do as ``execute``, and tell how the value was come by. Raises what it raises."""
        here = self if self._views is None else self._here()
        return await resume(here, here._desk(), key, None, RETRY, func, args, kwargs)

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

    def close(self) -> None:
        """Let go of the table; it stays for others, and calls under way finish. Idempotent.

        Any other use afterwards raises RuntimeError.
        """
        self._last = _no_desk
        super().close()

    # The desk of the last call. Weakly: a Merger shall not keep a closed loop.
    _last: Callable[[], Desk | None] = staticmethod(_no_desk)

    def _desk(self) -> Desk:
        loop, desk = get_running_loop(), self._last()
        if desk is None or desk.loop is not loop:
            desk = desk_of(self._segment, loop, _AsyncioReactor)
            self._last = weakref.ref(desk)
        return desk
