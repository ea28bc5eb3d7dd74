"""Results that do not fit into the table: one extra segment each.

The leader makes it before it publishes; the last follower out removes it. Its name tells which
leadership it belongs to (no other will ever have the same slot and epoch in the same table), so
what a crash leaves behind can be told from what is still in use.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from typing import Final, NamedTuple, TypeVar

from .core import Follow, Lead, Table, shm
from .shmfile import SHM_DIR, path_of, unlink

__all__ = [
    "MOST_BYTES",
    "Extra",
    "extra_segments",
    "read_extra",
    "read_extra_bytes",
    "reap_results",
    "write_extra",
]

T = TypeVar("T")

MOST_BYTES: Final = 0x7FFFF000
"""So many the kernel reads at once."""

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
    with _opened(extra, "made", os.O_CREAT | os.O_EXCL) as file:
        # write, not mmap: a full tmpfs is an error here, and would be a SIGBUS there.
        done = 0
        while done < len(payload):
            done += os.write(file.fileno(), payload[done:])
    return len(payload), shm.checksum(payload)


def read_extra(extra: Extra, expected: tuple[int, int], decode: Callable[[memoryview], T]) -> T:
    """Decode the payload in an extra segment, in place.

    Raises:
        ValueError: it is not the payload that was published, or ``decode`` says so.
        OSError: it cannot be opened or mapped.
    """
    size, checksum = expected
    with _opened(extra, "opened") as file:
        _check_size(file, size)
        mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    # Not closed by hand: a codec may have kept a view, and the mapping goes with the last one.
    payload = memoryview(mapped)
    _check(payload, checksum)
    return decode(payload)


def read_extra_bytes(extra: Extra, expected: tuple[int, int]) -> bytes:
    """Return the content of an extra segment: read, as pages are copied faster than mapped.

    Raises:
        ValueError: it is not what was published.
        OSError: it cannot be opened or read.
    """
    size, checksum = expected
    with _opened(extra, "opened") as file:
        _check_size(file, size)
        content = os.pread(file.fileno(), size, 0)
    _check(content, checksum)
    return content


def _opened(extra: Extra, what: str, flags: int = 0) -> FileIO:
    """Return the segment's descriptor as an object, which closes it when nobody has it any more.

    A signal handler can raise where a bare descriptor has been returned and nobody has it yet. It
    cannot between the steps of ``map``; in Python 3.12 and later some are lost all the same.
    """
    flags |= os.O_RDWR | os.O_NOFOLLOW
    try:
        return next(map(FileIO, map(os.open, [path_of(extra.name)], [flags], [0o600])))
    except OSError as error:
        raise OSError(f"the result's segment cannot be {what}: {error}") from error


def _check_size(file: FileIO, size: int) -> None:
    if os.fstat(file.fileno()).st_size != size:
        raise ValueError("the result's segment has another size than was published")


def _check(content: bytes | memoryview, checksum: int) -> None:
    if shm.checksum(content) != checksum:
        raise ValueError("the result's segment fails its checksum")


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
