"""Peers between processes that keep values in files: all in one directory, for which RAM is best.

Each ``make`` function returns an ``execute(key, func, *args)`` for one process. They keep a value
once it is there, as their documentation shows them; hence every key here is used for one call or
one burst only. Options that only make waiting faster are set to what is fastest.
"""

from __future__ import annotations

import dbm
import hashlib
import os
import pickle
from collections.abc import Callable
from typing import Any

__all__ = ["POLL", "TTL", "dbm_kind", "diskcache_lock", "dogpile_dbm", "filelock_file"]

Execute = Callable[..., Any]
TTL = 10.0  # seconds, for locks that expire; cashews' documentation has the same
POLL = 0.001  # seconds, where the pause between two looks can be chosen


def dogpile_dbm(directory: str) -> Execute:
    """Use the file backend with its default file locks.

    https://dogpilecache.sqlalchemy.org/en/latest/api.html#file-backends: the basic usage. The lock
    that elects a creator is one for the whole file, as is said there.
    """
    from dogpile.cache import make_region

    region = make_region().configure(
        "dogpile.cache.dbm",
        expiration_time=3600,
        arguments={"filename": f"{directory}/cache.dbm"},
    )
    return lambda key, func, *args: region.get_or_create(key, func, creator_args=(args, {}))


def dbm_kind(directory: str) -> str:
    """Say which of the standard library's dbm modules this interpreter has for dogpile."""
    path = f"{directory}/kind"
    dbm.open(path, "c").close()
    return dbm.whichdb(path) or "dbm"


def diskcache_lock(directory: str) -> Execute:
    """Look into the cache under the lock.

    https://grantjenks.com/docs/diskcache/api.html#diskcache.Lock: a lock per key, which polls
    every millisecond, in a cache without eviction. By default it would never expire.
    """
    from diskcache import Cache, Lock

    cache = Cache(directory, eviction_policy="none")

    def execute(key: str, func: Execute, *args: object) -> Any:
        with Lock(cache, f"lock:{key}", expire=TTL):
            value = cache.get(key)
            if value is None:
                value = func(*args)
                cache.set(key, value)
            return value

    return execute


def filelock_file(directory: str) -> Execute:
    """Write a file unless it exists, under a lock file of its own.

    https://py-filelock.readthedocs.io/en/latest/: a lock beside the file that it protects. It is
    polled for, by default every 50 ms.
    """
    from filelock import FileLock

    def execute(key: str, func: Execute, *args: object) -> Any:
        path = f"{directory}/{hashlib.sha256(key.encode()).hexdigest()}"
        with FileLock(f"{path}.lock", poll_interval=POLL):
            if os.path.exists(path):
                with open(path, "rb") as file:
                    return pickle.load(file)
            value = func(*args)
            # A leader that dies while it writes must leave no half of a file to the next.
            with open(f"{path}.new", "wb") as file:
                pickle.dump(value, file)
            os.rename(f"{path}.new", path)
            return value

    return execute
