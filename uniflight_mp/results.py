"""Results that do not fit into the table: one extra segment each.

The leader makes it before it publishes; the last follower out removes it. Its name tells which
leadership it belongs to (no other will ever have the same slot and epoch in the same table), so
what a crash leaves behind can be told from what is still in use.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from .core import Follow, Lead, Table, shm
from .shmfile import SHM_DIR, path_of, unlink

__all__ = [
    "Extra",
    "extra_segments",
    "map_extra",
    "read_extra",
    "reap_results",
    "write_extra",
]

T = TypeVar("T")

_LEADERSHIP = re.compile(r"~r([0-9a-f]+)\.(\d+)\.(\d+)$")


class Extra(NamedTuple):
    """Names the extra segment of one leadership.

    ``inode`` is that of the table's segment: it may have been replaced under the same name.
    """

    segment: str
    inode: int
    slot: int
    epoch: int

    @classmethod
    def of(cls, handle: Lead | Follow, epoch: int) -> Extra:
        """Name that of a handle's flight under the leadership ``epoch``."""
        table = handle.table
        segment = (table.path or "").rpartition("/")[2]
        return cls(segment, table.identity[1], handle.slot, epoch)

    @property
    def name(self) -> str:
        """The extra segment's own name."""
        return f"{self.segment}~r{self.inode:x}.{self.slot}.{self.epoch}"

    def remove(self) -> None:
        """Remove it, if it is still there and ours; who has it mapped keeps it."""
        with suppress(OSError):  # somebody has put something else there
            unlink(self.name)


def write_extra(extra: Extra, payload: memoryview) -> tuple[int, int]:
    """Put a payload into an extra segment; return its size in bytes and its checksum.

    The segment is the caller's to remove, after an exception as well.

    Raises:
        OSError: there is no room, or no descriptor.
    """
    try:
        return len(payload), shm.write_extra(path_of(extra.name), payload)
    except OSError as error:
        raise OSError(f"the result's segment cannot be made: {error}") from error


def read_extra(extra: Extra, expected: tuple[int, int]) -> bytes:
    """Return the content of an extra segment.

    Raises:
        ValueError: it is not what was published.
        OSError: it cannot be opened or read.
    """
    return _whole(shm.read_extra, extra, expected)


def map_extra(extra: Extra, expected: tuple[int, int]) -> memoryview:
    """Return the same in place, for a codec, which makes its own copy of what it needs.

    The mapping goes with the last view of it: a codec may have kept one.

    Raises:
        ValueError, OSError: see ``read_extra``.
    """
    return memoryview(_whole(shm.map_extra, extra, expected))


def _whole(how: Callable[[str, int, int], T], extra: Extra, expected: tuple[int, int]) -> T:
    try:
        return how(path_of(extra.name), *expected)
    except (OSError, ValueError) as error:
        raise type(error)(f"the result's segment cannot be read: {error}") from error


def extra_segments(segment: str) -> list[str]:
    """List the extra segments of a table, in use or not."""
    prefix = f"{segment}~r"
    return [name for name in os.listdir(SHM_DIR) if name.startswith(prefix)]


def reap_results(table: Table, segment: str) -> int:
    """Remove the extra segments that no flight of the table owns any more; return how many.

    Those of a table that was replaced go as well: followers that still want one run alone.
    """
    inode = table.identity[1]
    orphans = [name for name in extra_segments(segment) if not _is_used(table, inode, name)]
    return sum(map(unlink, orphans))


def _is_used(table: Table, inode: int, name: str) -> bool:
    match = _LEADERSHIP.search(name)
    if match is None or int(match[1], 16) != inode:
        return False
    return table.is_current(int(match[2]), int(match[3]))
