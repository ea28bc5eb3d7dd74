"""What a Merger sleeps on in a process that gevent has patched.

Imported only there. Greenlets of a hub share a thread, as tasks of a loop do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import gevent
from gevent.event import AsyncResult

from .desk import Desk, Desks

__all__ = ["desk_of"]


class _GreenTicket:
    """A ticket to which a greenlet switches back."""

    def __init__(self) -> None:
        self._result = AsyncResult()

    def set_result(self, result: Any, /) -> None:
        self._result.set(result)

    def done(self) -> bool:
        return bool(self._result.ready())

    def cancelled(self) -> bool:
        return False

    def result(self) -> Any:
        return self._result.get_nowait()

    def wait(self) -> None:
        """Let other greenlets run until there is a result."""
        self._result.wait()

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done():
            yield self
        return self.result()


class _GreenTimer:
    def __init__(self, seconds: float, callback: Callable[[], None]) -> None:
        self._timer = gevent.get_hub().loop.timer(seconds)
        self._timer.start(callback)

    def cancel(self) -> None:
        self._timer.stop()
        self._timer.close()


class _GreenReactor:
    """What a desk needs of the hub of the calling thread."""

    def __init__(self) -> None:
        self._readers: dict[int, Any] = {}

    def ticket(self) -> _GreenTicket:
        return _GreenTicket()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> _GreenTimer:
        return _GreenTimer(seconds, callback)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        watcher = self._readers[fd] = gevent.get_hub().loop.io(fd, 1)
        watcher.start(callback)

    def remove_reader(self, fd: int) -> None:
        watcher = self._readers.pop(fd)
        watcher.stop()
        watcher.close()

    def caller(self) -> object:
        return gevent.getcurrent()


_desks = Desks(_GreenReactor())


def desk_of(segment: object) -> Desk:
    """Return the desk of the calling thread's hub on that segment."""
    return _desks.of(segment, gevent.get_hub())
