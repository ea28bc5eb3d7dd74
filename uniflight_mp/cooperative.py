"""A call's way among tasks that share a thread, written once for asyncio, uvloop and gevent.

These are coroutines that await nothing but tickets and the caller's function. An event loop runs
them as they are; for greenlets, ``drive`` runs them and sleeps where they await a ticket.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import CoroutineType
from typing import Any, Final, TypeVar

from .base import BaseMerger, Landed, Solo
from .core import Lead
from .desk import RETRY, Desk, LocalFlight, Ticket
from .errors import show, type_name
from .outcome import Outcome, Role

__all__ = ["awaitable", "drive", "resume"]

T = TypeVar("T")
_EXPIRED: Final = object()  # what a ticket is told whose holder has waited long enough


async def resume(
    merger: BaseMerger,
    desk: Desk,
    key: object,
    flight: LocalFlight | None,
    step: Any,
    func: Callable[..., Awaitable[T]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Outcome[T]:
    """Carry a call on from whatever its last step was, to its outcome.

    ``step`` is what ``desk.enter`` returned, along with ``flight``, or what a ticket gave; RETRY,
    and no flight, for a call that has not entered yet.
    """
    started_ns, waited, entered = time.monotonic_ns(), 0.0, None
    try:
        while not isinstance(step, (Lead, Solo)):
            if flight is None or step is RETRY:
                flight = entered = None
                flight, step = desk.enter(merger, key)
                entered = step
            elif isinstance(step, Landed):
                step = merger._deliver(step, key, waited, flight.segment.table)
                if isinstance(step, Outcome):
                    return step
            elif step is _EXPIRED:
                step = merger._timed_out(key, waited, flight.segment.table)
            else:
                entered = step
                step = await _wait(merger, desk, flight, step, waited)
                waited = (time.monotonic_ns() - started_ns) / 1e9
        pid = os.getpid()
        if flight is None or isinstance(step, Solo):
            value = await awaitable(func(*args, **kwargs), func)
            return Outcome(value, Role.SOLO, 0, waited, 0, pid)
        flight.caller = desk.reactor.caller()
        try:
            value = await awaitable(func(*args, **kwargs), func)
        except BaseException as error:
            desk.fail(flight, merger, step, error)
            raise
        followers = desk.finish(flight, merger, step, value)
        return Outcome(value, Role.LEADER, followers, waited, step.takeovers, pid)
    except BaseException:
        desk.disown(key, flight, entered)
        raise


async def _wait(
    merger: BaseMerger, desk: Desk, flight: LocalFlight, ticket: Any, waited: float
) -> Any:
    """Sleep until the ticket has a result, or its holder has waited long enough."""
    timeout_ns, timer = merger._options.timeout_ns, None
    try:
        if timeout_ns is not None:
            rest = max(timeout_ns / 1e9 - waited, 0.0)
            timer = desk.reactor.call_later(rest, partial(_expire, ticket))
        try:
            result = await ticket
        finally:
            if timer is not None:
                timer.cancel()
    except BaseException:
        desk.leave(flight, ticket)
        raise
    if result is _EXPIRED:
        desk.leave(flight, ticket, True)
    return result


def _expire(ticket: Ticket) -> None:
    if not ticket.done():
        ticket.set_result(_EXPIRED)


def awaitable(result: Awaitable[T], func: object) -> Awaitable[T]:
    """Return what a function returned, or say which Merger is for functions like it."""
    kind = type(result)  # as `await` does; its __class__ and attributes may be those of a proxy
    if kind is CoroutineType or hasattr(kind, "__await__"):
        return result
    raise TypeError(
        f"AsyncMerger needs a function that returns an awaitable, and {show(func)} returned "
        f"{type_name(kind)}. Use Merger for plain functions, or pass asyncio.to_thread "
        "with the function as its first argument"
    )


def drive(coroutine: Coroutine[Any, None, T]) -> T:
    """Run one of these coroutines to its end in a greenlet, and return what it returns.

    What it awaits has a ``wait()`` that lets other greenlets run, and may raise.
    """
    try:
        ticket = coroutine.send(None)
        while True:
            try:
                ticket.wait()
            except BaseException as error:
                ticket = coroutine.throw(error)
            else:
                ticket = coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
