"""Calls too short to be timed one by one: timed in batches, those of all rows in turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["Timer", "alternate_batches"]

_BATCH_SECONDS = 0.0005


class Timer(Protocol):
    """``timeit.Timer`` is one."""

    def timeit(self, number: int, /) -> float:
        """Return how many seconds so many calls take."""
        ...


def _batch_size(timer: Timer) -> int:
    calls = 1
    # The best of three: after one hiccup here all batches would be of a few calls, and look slow.
    while min(timer.timeit(calls) for _ in range(3)) < _BATCH_SECONDS:
        calls *= 2
    return calls


def alternate_batches(timers: Mapping[str, Timer], batches: int) -> dict[str, list[float]]:
    """Return each timer's samples, in nanoseconds a call."""
    sizes = {name: _batch_size(timer) for name, timer in timers.items()}
    samples: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(batches):
        for name, timer in timers.items():
            samples[name].append(timer.timeit(sizes[name]) * 1e9 / sizes[name])
    return samples
