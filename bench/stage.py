"""Processes that meet, sleep and die on cue; nothing of them stays.

Everything is bounded: a wait that lasts ``PATIENCE`` seconds raises, and what was started is
killed and reaped on the way out.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from uniflight_mp.segment import destroy
from uniflight_mp.shmfile import find_segments

__all__ = [
    "FORK",
    "PATIENCE",
    "Board",
    "Cast",
    "alternate",
    "apart",
    "asleep",
    "receive",
    "table_name",
    "until",
]

FORK = multiprocessing.get_context("fork")
PATIENCE = 30.0


class Board:
    """Numbers that all processes forked after it see."""

    def __init__(self, seats: int) -> None:
        self.numbers = memoryview(mmap.mmap(-1, 8 * seats)).cast("q")

    def show(self, seat: int, number: int) -> None:
        """Let everybody see that ``seat`` has come to ``number``."""
        self.numbers[seat] = number

    def all_show(self, number: int) -> bool:
        """Tell whether every seat has come to ``number``."""
        return all(seen == number for seen in self.numbers)


class Cast:
    """The processes of one figure; leaving the context kills and reaps the rest."""

    def __init__(self) -> None:
        self._processes: list[Any] = []

    def start(self, target: Callable[..., None], *args: object) -> tuple[Any, Connection]:
        """Fork a process that runs ``target(connection, *args)``; return it and our end."""
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=target, args=(theirs, *args), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        return process, ours

    def __enter__(self) -> Cast:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def table_name(figure: str) -> Iterator[str]:
    """Give a name for a table of this run; it is destroyed afterwards, in all its partitions."""
    name = f"bench-{os.getpid()}-{figure}"
    try:
        yield name
    finally:
        for found in find_segments(name):
            destroy(found.segment, name)


def receive(connection: Connection) -> Any:
    """Return what the other end sends."""
    if not connection.poll(PATIENCE):
        raise TimeoutError(f"nothing was sent for {PATIENCE:g} s")
    return connection.recv()


def until(condition: Callable[[], bool], pause: float = 0.0) -> None:
    """Return as soon as ``condition()`` holds; the core is kept busy, unless there is a pause."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if pause:
            time.sleep(pause)
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {PATIENCE:g} s: {condition}")


def apart(function: Callable[..., Any], *args: object) -> Any:
    """Return ``function(*args)``, run in a forked process.

    What has run before a fork is warm in all children: the same code on shared pages. A rival
    whose leader and followers are one function would gain by our running its leader here.
    """
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: theirs.send(function(*args)))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except BaseException:
        process.terminate()  # it reaps its own children on the way out
        raise
    finally:
        process.join()
        ours.close()


def alternate(
    measures: Mapping[str, Callable[[int], list[float]]], rounds: int, blocks: int
) -> dict[str, list[float]]:
    """Run each measure for ``rounds`` rounds, in turns: what else the machine does hits all.

    Each turn runs in a process of its own.
    """
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(blocks):
        for name, measure in measures.items():
            samples[name] += apart(measure, rounds // blocks)
    return samples


def asleep(pid: int) -> bool:
    """Tell whether the kernel has put a process of one thread to sleep."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b") ")[2].startswith(b"S")
