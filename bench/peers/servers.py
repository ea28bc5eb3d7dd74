"""Peers between processes that ask a server: a ``multiprocessing.Manager``, or Redis.

What is said in ``stores`` about makers, keys and options holds here too.
"""

from __future__ import annotations

import pickle
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..stage import FORK, until
from .stores import POLL, TTL, Execute

__all__ = [
    "ManagerRecipe",
    "Server",
    "cashews_early",
    "cashews_lock",
    "dogpile_redis",
    "redis_lock",
    "redis_server",
]

AsyncExecute = Callable[..., Coroutine[Any, Any, Any]]


class ManagerRecipe:
    """A dict of results and some locks in a manager's process, made before the fork.

    https://docs.python.org/3/library/multiprocessing.html#managers: ``dict`` and ``Lock`` proxies.
    A lock cannot be made for a key without another lock; so keys share 64 of them.
    """

    def __init__(self) -> None:
        self.manager = FORK.Manager()
        self._results = self.manager.dict()
        self._locks = [self.manager.Lock() for _ in range(64)]

    @property
    def pid(self) -> int:
        """The server's process."""
        return self.manager._process.pid

    def execute(self, key: str, func: Execute, *args: object) -> Any:
        """Look into the dict under the key's lock."""
        with self._locks[zlib.crc32(key.encode()) % len(self._locks)]:
            value = self._results.get(key)
            if value is None:
                value = self._results[key] = func(*args)
            return value


class Server(NamedTuple):
    """A running redis-server."""

    port: int
    pid: int


@contextmanager
def redis_server() -> Iterator[Server]:
    """Run a server on a free port of the loopback.

    Nothing is saved. It is stopped by its pid, and its directory removed.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="uniflight-bench-redis-") as directory:
        options = f"--port {port} --bind 127.0.0.1 --appendonly no --dir {directory}".split()
        command = ["redis-server", *options, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            until(lambda: _answers(process, port), pause=0.01)
            yield Server(port, process.pid)
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"redis-server ended with status {process.returncode}")
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(5) == b"+PONG"
    except OSError:
        return False


def redis_lock(port: int) -> Execute:
    """Get, or set under a lock.

    https://redis.readthedocs.io/en/stable/lock.html: ``timeout`` is the lock's life, by default
    endless; ``sleep`` the pause between two tries, by default 100 ms.
    """
    import redis

    client = redis.Redis(port=port)

    def execute(key: str, func: Execute, *args: object) -> Any:
        with client.lock(f"lock:{key}", timeout=TTL, sleep=POLL):
            data = client.get(key)
            if data is not None:
                return pickle.loads(data)
            value = func(*args)
            client.set(key, pickle.dumps(value))
            return value

    return execute


def dogpile_redis(port: int) -> Execute:
    """Use the Redis backend with its distributed lock, one a key.

    https://dogpilecache.sqlalchemy.org/en/latest/api.html#redis-backends: the example, and the
    options of the lock that are described below it.
    """
    from dogpile.cache import make_region

    region = make_region().configure(
        "dogpile.cache.redis",
        arguments={
            "port": port,
            "redis_expiration_time": 7200,
            "distributed_lock": True,
            "thread_local_lock": False,
            "lock_timeout": int(TTL),
            "lock_sleep": POLL,
        },
    )
    return lambda key, func, *args: region.get_or_create(key, func, creator_args=(args, {}))


def cashews_lock(port: int) -> AsyncExecute:
    """Cache with ``lock=True``.

    https://github.com/Krukov/cashews#locked: what is to be used for a cached result. The time to
    live, 10 s as there, is the lock's too; the lock is asked for without a pause.
    """
    return _cashews(port, lambda cache: cache(ttl=f"{TTL:g}s", key="{key}", lock=True))


def cashews_early(port: int) -> AsyncExecute:
    """Cache with early recomputation, for which a cold key is no stampede.

    https://github.com/Krukov/cashews#early: the example.
    """
    return _cashews(port, lambda cache: cache.early(ttl="10m", early_ttl="7m", key="{key}"))


def _cashews(port: int, decorator: Callable[[Any], Callable[[Any], Any]]) -> AsyncExecute:
    from cashews import Cache

    cache = Cache()
    cache.setup(f"redis://127.0.0.1:{port}")

    @decorator(cache)
    async def get(key: str, func: AsyncExecute, args: tuple[Any, ...]) -> Any:
        return await func(*args)

    return lambda key, func, *args: get(key, func, args)
