"""How large a table is."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from .failure import FAILURE_BYTES

__all__ = ["Limits"]

_MOST = {
    "flights": 65_536,
    "waiters": 1_048_576,
    "threads": 32_768,
    "inline_bytes": 1 << 20,
    "result_bytes": 1 << 40,
}


@dataclass(frozen=True)
class Limits:
    """Capacity of a table; fixed by the process that creates it, possibly rounded up.

    A call that finds no room runs alone; it never fails and never waits for room. The defaults
    reserve 5.4 MiB of ``/dev/shm``.

    Args:
        flights: keys that can be in flight at once; a multiple of 64 that is a power of two
            is used. Keys are spread over groups of 64 by a hash, so a group can fill up a
            little earlier than the table.
        waiters: callers that can wait at once. All ``threads`` can wait for one key.
        threads: threads, of all processes, that use the table.
        inline_bytes: largest encoded result that is kept in the table itself; at least 3,072,
            which is room for any exception, and a multiple of 64 are used.
        result_bytes: largest encoded result that is shared; followers of a larger one run the
            function themselves.

    Raises:
        TypeError: a limit is not an ``int``.
        ValueError: a limit is out of range.
    """

    flights: int = 1024
    waiters: int = 4096
    threads: int = 1024
    inline_bytes: int = 4096
    result_bytes: int = 64 << 20

    def rounded(self) -> Limits:
        """Return the limits that a table made for these has, as far as they can be compared."""
        inline_bytes = (max(self.inline_bytes, FAILURE_BYTES) + 63) // 64 * 64
        return replace(self, inline_bytes=inline_bytes)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int:
                raise TypeError(f"Limits.{field.name} must be an int, not {type(value).__name__}")
            if not 1 <= value <= _MOST[field.name]:
                raise ValueError(
                    f"Limits.{field.name} must be from 1 to {_MOST[field.name]:,}, not {value:,}"
                )
