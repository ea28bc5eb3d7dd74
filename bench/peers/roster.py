"""Who takes part: what is installed, each with an empty store."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import count
from shutil import which
from typing import Any

import psutil

from uniflight_mp import AsyncMerger
from uniflight_mp.shmfile import path_of, segment_name

from ..async_contenders import async_peers
from ..contenders import FlockFile, Recipe, installed, installed_peers
from ..stage import table_name
from . import servers, stores
from .shells import Coroutines, OurThreads, Shell, Threads

__all__ = ["Contender", "roster"]


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    make: Callable[[], Shell]
    shared: bool = False  # between processes
    ttl: float | None = None  # seconds after which a dead leader's lock expires
    used: Callable[[], int] | None = None  # bytes outside of the callers' processes


# Two rosters of one process have different tables: a Merger that is still about keeps its own.
_numbers = count()


@contextmanager
def roster() -> Iterator[list[Contender]]:
    """Give those that are installed; their stores and servers go afterwards."""
    with ExitStack() as stack:
        contenders = [
            *_ours(stack.enter_context(table_name(f"peers-{next(_numbers)}"))),
            *_in_files(stack),
            _with_manager(stack),
            *_with_redis(stack),
            *_in_coroutines(),
            *_in_threads(),
        ]
        yield contenders


def _ours(table: str) -> list[Contender]:
    name = f"uniflight-mp {version('uniflight-mp')}"
    path = path_of(segment_name(table))
    return [
        Contender(
            name, lambda: OurThreads(table), shared=True, used=lambda: os.stat(path).st_blocks * 512
        ),
        Contender(f"{name}, threads", lambda: OurThreads(table)),
        Contender(f"{name}, tasks", lambda: Coroutines(lambda: AsyncMerger(table).execute)),
    ]


def _in_files(stack: ExitStack) -> list[Contender]:
    def directory() -> str:
        return stack.enter_context(
            tempfile.TemporaryDirectory(prefix="uniflight-bench-", dir="/dev/shm")
        )

    peers = [("flock + file", lambda path: FlockFile(path).execute, None)]
    for name, make in installed({"dogpile.cache": stores.dogpile_dbm}):
        kind = stores.dbm_kind(directory())
        peers.append((f"{name}, {kind} and file lock", make, None))
    for name, make in installed({"diskcache": stores.diskcache_lock}):
        peers.append((f"{name}, Lock", make, stores.TTL))
    for name, make in installed({"filelock": stores.filelock_file}):
        peers.append((f"{name} and a file", make, None))
    return [_in_file(name, make, directory(), ttl) for name, make, ttl in peers]


def _in_file(name: str, make: Callable[[str], Any], directory: str, ttl: float | None) -> Contender:
    return Contender(
        name,
        lambda: Threads(partial(make, directory)),
        shared=True,
        ttl=ttl,
        used=partial(_size, directory),
    )


def _size(directory: str) -> int:
    """Return what the files of a directory occupy."""
    paths = (os.path.join(top, name) for top, _, names in os.walk(directory) for name in names)
    return sum(os.stat(path).st_blocks * 512 for path in paths)


def _with_manager(stack: ExitStack) -> Contender:
    recipe = servers.ManagerRecipe()
    stack.enter_context(recipe.manager)
    return Contender(
        "multiprocessing.Manager",
        lambda: Threads(lambda: recipe.execute),
        shared=True,
        used=partial(_private, recipe.pid),
    )


def _private(pid: int) -> int:
    return psutil.Process(pid).memory_full_info().uss


def _with_redis(stack: ExitStack) -> list[Contender]:
    """Return those that need Redis; each has a server of its own."""
    blocking = {"redis": servers.redis_lock, "dogpile.cache": servers.dogpile_redis}
    awaited = [
        ("lock=True", servers.cashews_lock, stores.TTL),
        ("early", servers.cashews_early, None),
    ]
    if not (installed({"redis": None}) and which("redis-server")):
        return []
    found = [
        (f"{name}, Redis lock", Threads, make, stores.TTL) for name, make in installed(blocking)
    ] + [
        (f"{name}, Redis, {option}", Coroutines, make, ttl)
        for name, _ in installed({"cashews": None})
        for option, make, ttl in awaited
    ]
    return [_on_server(stack.enter_context(servers.redis_server()), *one) for one in found]


def _on_server(
    server: servers.Server,
    name: str,
    shell: Callable[..., Shell],
    make: Callable[[int], Any],
    ttl: float | None,
) -> Contender:
    return Contender(
        name,
        lambda: shell(partial(make, server.port)),
        shared=True,
        ttl=ttl,
        used=partial(_private, server.pid),
    )


def _in_threads() -> list[Contender]:
    peers = [("lock, dict and Future", lambda: Recipe().execute)]
    peers += [(name, lambda make=make: make().execute) for name, make in installed_peers()]
    peers += installed({"cachetools": _cachetools})
    direct = Contender("the function, called directly", lambda: Threads(lambda: _directly))
    return [
        *(Contender(f"{name}, threads", partial(Threads, make)) for name, make in peers),
        direct,
    ]


def _directly(key: str, func: Callable[..., Any], *args: object) -> Any:
    return func(*args)


def _cachetools() -> Callable[..., Any]:
    """Cache with a condition.

    https://cachetools.readthedocs.io/en/stable/#memoizing-decorators: ``condition`` is what
    prevents a stampede. It keeps values, so each key is used once, as everywhere here.
    """
    from cachetools import LRUCache, cached

    @cached(LRUCache(maxsize=1024), key=lambda key, *_: key, condition=threading.Condition())
    def get(key: str, func: Callable[..., Any], *args: object) -> Any:
        return func(*args)

    return get


def _in_coroutines() -> list[Contender]:
    return [Contender(f"{name}, tasks", partial(Coroutines, make)) for name, make in async_peers()]
