"""Per-call options, checked once, when a Merger or a view of one is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

__all__ = ["UNSET", "Options"]


class Unset:
    """Type of ``UNSET``, for options whose None means something."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset()


def _nanoseconds(name: str, seconds: object) -> int | None:
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(seconds).__name__}")
    if seconds != seconds or seconds < 0:  # NaN; not math.isnan, which fails for huge ints
        raise ValueError(f"{name} must be 0 or more seconds, not {seconds!r}")
    # A century is for ever, and still far from what 64 bits of nanoseconds can hold.
    return None if seconds > 3_000_000_000 else round(seconds * 1e9)


@dataclass(frozen=True)
class Options:
    """How long to wait and to lead, and what to insist on. See ``Merger`` for each."""

    timeout: float | None = None
    on_timeout: str = "raise"
    lease: float | None = None
    max_takeovers: int = 3
    strict: bool = False

    def __post_init__(self) -> None:
        # Derived once, for calls that have no time to convert seconds.
        object.__setattr__(self, "timeout_ns", _nanoseconds("timeout", self.timeout))
        object.__setattr__(self, "lease_ns", _nanoseconds("lease", self.lease))
        if self.on_timeout not in ("raise", "run"):
            raise ValueError(f"on_timeout must be 'raise' or 'run', not {self.on_timeout!r}")
        if type(self.max_takeovers) is not int:
            raise TypeError(
                f"max_takeovers must be an int, not {type(self.max_takeovers).__name__}"
            )
        if not 0 <= self.max_takeovers < 1 << 32:
            raise ValueError(f"max_takeovers must be 0 or more, not {self.max_takeovers}")
        if type(self.strict) is not bool:
            raise TypeError(f"strict must be a bool, not {type(self.strict).__name__}")

    timeout_ns: int | None = None
    lease_ns: int | None = None

    def updated(self, changes: dict[str, Any]) -> Options:
        """Return a copy with those ``changes`` that are not ``UNSET``."""
        kept = {name: value for name, value in changes.items() if value is not UNSET}
        return replace(self, **kept)
