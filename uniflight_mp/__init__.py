"""All processes of a host run an expensive call once: single-flight through shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .coalesce import Coalesced
from .codec import Codec, MsgpackCodec, RawCodec
from .errors import (
    FlightTimeout,
    LeaderDied,
    LeaderPanicked,
    ResultNotDecodable,
    ResultNotShareable,
    ResultTooLarge,
    TableCorrupt,
    TableMismatch,
    TableUnavailable,
    UniflightError,
)
from .limits import Limits
from .merger import Merger
from .outcome import Outcome, Role
from .scopes import PerCore, PerHost, PerNuma, PerProcess, Scope
from .stats import FlightInfo, Stats

if TYPE_CHECKING:
    from .aio import AsyncMerger

__all__ = [
    "AsyncMerger",
    "Coalesced",
    "Codec",
    "FlightInfo",
    "FlightTimeout",
    "LeaderDied",
    "LeaderPanicked",
    "Limits",
    "Merger",
    "MsgpackCodec",
    "Outcome",
    "PerCore",
    "PerHost",
    "PerNuma",
    "PerProcess",
    "RawCodec",
    "ResultNotDecodable",
    "ResultNotShareable",
    "ResultTooLarge",
    "Role",
    "Scope",
    "Stats",
    "TableCorrupt",
    "TableMismatch",
    "TableUnavailable",
    "UniflightError",
]


def __getattr__(name: str) -> object:
    # asyncio takes longer to import than all of this package; who has no loop does without.
    if name == "AsyncMerger":
        from .aio import AsyncMerger

        return AsyncMerger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
