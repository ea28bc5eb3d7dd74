"""Ourselves and the others for coroutines: each is an ``execute(key, func, *args)`` to await."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from .contenders import installed

__all__ = ["AsyncRecipe", "Execute", "async_peers", "async_rivals"]

Execute = Callable[..., Coroutine[Any, Any, Any]]


class AsyncRecipe:
    """What one writes after a search for "single flight asyncio": a dict of tasks."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def execute(self, key: str, func: Callable[..., Awaitable[Any]], *args: object) -> Any:
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(self._run(key, func, args))
        return await asyncio.shield(task)

    async def _run(self, key: str, func: Callable[..., Awaitable[Any]], args: Any) -> Any:
        try:
            return await func(*args)
        finally:
            del self._tasks[key]


def _coalescer() -> Execute:
    from coalescer import Coalescer

    return Coalescer().do


def _aiocoalesce() -> Execute:
    """Return what takes a coroutine, and closes it unless it runs it."""
    from aiocoalesce import Coalescer

    run = Coalescer().run
    return lambda key, func, *args: run(key, func(*args))


def _singleflight() -> Execute:
    from singleflight.asynchronous import SingleFlightAsync

    call = SingleFlightAsync().call
    return lambda key, func, *args: call(func, key, *args)


_PEERS = {"coalescer": _coalescer, "aiocoalesce": _aiocoalesce, "singleflight": _singleflight}


def async_peers() -> list[tuple[str, Callable[[], Execute]]]:
    """Return the in-process peers that are installed, by name and version."""
    return installed(_PEERS)


def async_rivals() -> dict[str, Execute]:
    """Return the recipe, and the in-process peers that are installed; each for one loop."""
    rivals = {"rival: in-process recipe (dict, Task)": AsyncRecipe().execute}
    peers = {f"rival: in-process {name}": make() for name, make in async_peers()}
    return rivals | peers
