"""The synchronous Merger, for threads and processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from .base import BaseMerger, Begun, Solo
from .coalesce import Coalesced, KeyMaker, wrap
from .core import Follow, Lead, give_back, shm
from .errors import show
from .outcome import Outcome, Role

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from types import TracebackType

__all__ = ["Merger"]

P = ParamSpec("P")
T = TypeVar("T")

_GEVENT: Final = "gevent.monkey"
_modules: Final = sys.modules


def _plain(func: object, value: T) -> T:
    """Return what a function returned, unless it was a coroutine function."""
    if type(value) is CoroutineType:
        value.close()  # type: ignore[attr-defined]  # or Python would warn that it was never awaited
        raise TypeError(
            f"Merger runs plain functions, and {show(func)} returned a coroutine. Use AsyncMerger: "
            "await merger.execute(key, func)"
        )
    return value


def _run_submitted(merger: Merger, here: Merger, /, *args: Any, **kwargs: Any) -> Any:
    merger._segment.table  # noqa: B018  # a closed Merger says so; ``here`` is not closed with it
    return here.execute(*args, **kwargs)


def _is_patched() -> bool:
    """Whether blocking this thread would block greenlets: asked at each call, because gunicorn's
    gevent worker patches after the fork, when a preloaded application has its Mergers."""
    # Another thread may be importing it at this moment.
    ask = getattr(_modules.get(_GEVENT), "is_module_patched", None)
    return ask is not None and bool(ask("socket"))


class Merger(BaseMerger):
    """Runs overlapping calls of one key once, across all processes that open the same name.

    The first caller of a key leads: its function runs. Callers that come before it is finished
    follow: they sleep and receive its value (in the leader's process the very object, elsewhere
    an equal copy with the same types) or its exception. If the leader's thread or process dies,
    a follower leads. Nothing is remembered after the last one has its value.

    A Merger may be shared by threads, pickled (it reopens by name) and used in forked children.

    Args:
        name: of the table, ``[A-Za-z0-9._-]{1,64}``. Processes of one user that give the same
            name share a table.
        scope: who coalesces with whom.
        codec: turns results into bytes and back; ``MsgpackCodec()`` by default.
        timeout: seconds a follower waits; None: as long as it takes; 0: not at all.
        on_timeout: ``"raise"`` FlightTimeout, or ``"run"`` the function alone.
        lease: seconds after which a leader that lives but does not finish is replaced; its late
            result goes to its own caller only. None: never.
        max_takeovers: how many dead leaders of one flight are replaced before LeaderDied.
        strict: raise where a call would otherwise run alone because of the table or of a result
            that cannot be shared, in the leader too: for tests.
        limits: capacity of the table, if this process creates it.

    Raises:
        ValueError, TypeError: an argument is out of range or of the wrong type.
        TableUnavailable, TableMismatch, TableCorrupt, OSError: the table cannot be opened; the
            text says why and what to do.
    """

    def execute(self, key: object, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return ``func(*args, **kwargs)``, run here or by a call of ``key`` that is under way.

        The value's execution ends after this call began. Whether the arguments are the same in
        all calls of a key is not checked.

        Raises:
            Exception: what the function raised, here or in the leader (then of the same class
                with ``__cause__`` LeaderPanicked, or LeaderPanicked itself).
            FlightTimeout: no result within ``timeout``; the flight goes on without this caller.
            LeaderDied: ``max_takeovers`` was used up.
            TypeError: ``key`` cannot be a key; the text says which types can.
            RuntimeError: this thread already leads the same flight, or the Merger is closed.
            ResultNotShareable (ResultTooLarge and ResultNotDecodable too), TableUnavailable: only
                with ``strict``.
        """
        here = self if self._views is None else self._here()
        if _GEVENT in _modules and _is_patched():
            return here._cooperate(key, func, args, kwargs).value
        # The way of almost every call, spelled out: it is to cost no more than it must.
        options = here._options
        step = here._segment.table.begin(key, options.lease_ns, options.max_takeovers)
        # Deallocation gives a flight back too, but who keeps the exception keeps this frame.
        try:
            if step.__class__ is Lead:
                return here._lead(step, func, args, kwargs)
            return here._resume(key, step, func, args, kwargs).value
        except BaseException:
            give_back(step)
            raise

    def flight(
        self, key: object, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Outcome[T]:
        """Do as ``execute``, and tell how the value was come by. Raises what it raises."""
        here = self if self._views is None else self._here()
        if _GEVENT in _modules and _is_patched():
            return here._cooperate(key, func, args, kwargs)
        step = here._begin(key)
        try:
            return here._resume(key, step, func, args, kwargs)
        except BaseException:
            give_back(step)
            raise

    def submit(
        self,
        key: object,
        func: Callable[..., T],
        /,
        *args: Any,
        executor: Executor | None = None,
        **kwargs: Any,
    ) -> Future[T]:
        """Run ``execute`` in a thread and return its Future; raises what the executor raises.

        Without ``executor`` a small thread pool of this Merger is used, made at the first call.
        A keyword argument named ``executor`` cannot be passed to ``func``.
        """
        if executor is None:
            executor = self._own_executor()
        here = self if self._views is None else self._here()  # where the caller is, not the pool
        return executor.submit(_run_submitted, self, here, key, func, *args, **kwargs)

    def coalesce(
        self, key: str | Callable[..., object] | None = None
    ) -> Callable[[Callable[P, T]], Coalesced[P, T]]:
        """Decorate a function so that each call of it is an ``execute``.

        Args:
            key: a format string over the bound arguments (``"sku:{sku}"``), a callable that
                gets the call's arguments and returns the key, or None: the function's module
                and name and its bound arguments, defaults included.

        The wrapper keeps the function's signature and has ``.merger`` and ``.uncoalesced``.

        Raises:
            ValueError: the format string names what is no argument of the function.
            TypeError: ``key`` or the decorated object is of the wrong type.
        """

        def decorate(func: Callable[P, T]) -> Coalesced[P, T]:
            make_key = KeyMaker(func, key).make

            def call(*args: P.args, **kwargs: P.kwargs) -> T:
                return self.execute(make_key(*args, **kwargs), func, *args, **kwargs)

            return wrap(func, call, self)

        return decorate

    def close(self) -> None:
        """Let go of the table and of the thread pool. Idempotent.

        Calls under way finish; submitted ones that have not begun raise RuntimeError.
        """
        executor, self._executor = self._executor, None
        if executor and executor[0] == os.getpid():
            executor[1].shutdown(wait=False)
        super().close()

    def __enter__(self) -> Merger:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _own_executor(self) -> Executor:
        """Return this process's pool: a forked child has the object, but not the threads."""
        pid, executor = self._executor or (0, None)
        if executor is None or pid != os.getpid():
            from concurrent.futures import ThreadPoolExecutor

            self._segment.table  # noqa: B018  # a closed Merger says so here
            executor = ThreadPoolExecutor(thread_name_prefix=f"uniflight-{self._name}")
            self._executor = (os.getpid(), executor)
        return executor

    def _lead(
        self, lead: Lead, func: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T:
        try:
            value = func(*args, **kwargs)
        except BaseException as error:
            self._fail(lead, error)
            raise
        if type(value) is CoroutineType:  # not its __class__: a lazy proxy would be evaluated
            lead.abandon()
            _plain(func, value)
        self._complete(lead, value)
        return value

    def _cooperate(
        self, key: object, func: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outcome[T]:
        """Make the call as one of many greenlets that share this thread."""
        from .cooperative import drive, resume
        from .desk import RETRY
        from .green import hub_desk

        async def run(*args: Any, **kwargs: Any) -> T:
            return _plain(func, func(*args, **kwargs))

        desk = hub_desk(self._segment)
        return drive(resume(self, desk, key, None, RETRY, run, args, kwargs))

    def _resume(
        self,
        key: object,
        begun: Begun,
        func: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Outcome[T]:
        """Carry a call on from what ``_begin`` answered, to its outcome."""
        waited = 0.0
        entered = self._enter(key, begun)
        try:
            step: Lead | Solo | Outcome[T] = entered  # type: ignore[assignment]
            if isinstance(entered, Follow):
                started_ns = time.monotonic_ns()
                step = self._follow(key, entered, started_ns)
                waited = (time.monotonic_ns() - started_ns) / 1e9
            if isinstance(step, Outcome):
                return step
            pid = os.getpid()
            if isinstance(step, Solo):
                return Outcome(_plain(func, func(*args, **kwargs)), Role.SOLO, 0, waited, 0, pid)
            value = self._lead(step, func, args, kwargs)
            return Outcome(value, Role.LEADER, step.followers, waited, step.takeovers, pid)
        except BaseException:
            give_back(entered)
            raise

    def _follow(self, key: object, follow: Follow, started_ns: int) -> Lead | Solo | Outcome[Any]:
        """Sleep until the flight has landed, or this caller is to lead or has waited enough."""
        timeout_ns, table = self._options.timeout_ns, follow.table
        deadline_ns = None if timeout_ns is None else started_ns + timeout_ns
        while True:
            status = follow.wait(deadline_ns)
            if status == shm.TIMED_OUT:
                follow.leave(shm.LEAVING_TIMED_OUT)
                return self._timed_out(key, (time.monotonic_ns() - started_ns) / 1e9, table)
            step = self._advance(follow, status)
            if isinstance(step, Lead):
                return step
            if step is not None:
                waited = (time.monotonic_ns() - started_ns) / 1e9
                return self._deliver(step, key, waited, table)
