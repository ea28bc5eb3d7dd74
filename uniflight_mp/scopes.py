"""Who coalesces with whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["PerHost", "Scope"]


@runtime_checkable
class Scope(Protocol):
    """Divides callers into partitions; each partition has a table of its own."""

    def partition(self) -> str:
        """Name the caller's partition, as part of a segment's name; ``""`` for the only one."""
        ...


@dataclass(frozen=True)
class PerHost:
    """One table for all processes of the user on this host."""

    def partition(self) -> str:
        """Return ``""``: there is one partition."""
        return ""
