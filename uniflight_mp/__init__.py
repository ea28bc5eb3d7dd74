"""All processes of a host run an expensive call once: single-flight through shared memory."""

from .aio import AsyncMerger
from .codec import Codec, MsgpackCodec, RawCodec
from .errors import (
    FlightTimeout,
    LeaderDied,
    LeaderPanicked,
    ResultNotShareable,
    TableCorrupt,
    TableMismatch,
    TableUnavailable,
    UniflightError,
)
from .limits import Limits
from .merger import Merger
from .outcome import Outcome, Role
from .scopes import PerHost, Scope
from .stats import FlightInfo, Stats

__all__ = [
    "AsyncMerger",
    "Codec",
    "FlightInfo",
    "FlightTimeout",
    "LeaderDied",
    "LeaderPanicked",
    "Limits",
    "Merger",
    "MsgpackCodec",
    "Outcome",
    "PerHost",
    "RawCodec",
    "ResultNotShareable",
    "Role",
    "Scope",
    "Stats",
    "TableCorrupt",
    "TableMismatch",
    "TableUnavailable",
    "UniflightError",
]
