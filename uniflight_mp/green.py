"""What a Merger sleeps on in a process that gevent has patched.

Imported only there. Greenlets of a hub share a thread, as tasks of a loop do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import gevent
from gevent.event import AsyncResult

from .desk import Desk, desk_of

__all__ = ["hub_desk"]


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
    def __init__(self, hub: Any, seconds: float, callback: Callable[[], None]) -> None:
        self._timer = hub.loop.timer(seconds)
        self._timer.start(callback)

    def cancel(self) -> None:
        self._timer.stop()
        self._timer.close()


class _GreenReactor:
    """What a desk needs of a hub."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub
        self._readers: dict[int, Any] = {}

    def ticket(self) -> _GreenTicket:
        return _GreenTicket()

    def call_later(self, seconds: float, callback: Callable[[], None], /) -> _GreenTimer:
        return _GreenTimer(self._hub, seconds, callback)

    def call_soon(self, callback: Callable[[], None], /) -> object:
        return self._hub.loop.run_callback(callback)

    def add_reader(self, fd: int, callback: Callable[[], None], /) -> None:
        watcher = self._readers[fd] = self._hub.loop.io(fd, 1)
        watcher.start(callback)

    def remove_reader(self, fd: int, /) -> None:
        watcher = self._readers.pop(fd, None)
        if watcher is not None:
            watcher.stop()
            watcher.close()

    def is_closed(self) -> bool:
        return self._hub.loop is None or self._hub.loop.ptr is None

    def caller(self) -> object:
        return gevent.getcurrent()


def hub_desk(segment: object) -> Desk:
    """Return the desk of the calling thread's hub on that segment."""
    return desk_of(segment, gevent.get_hub(), _GreenReactor)
