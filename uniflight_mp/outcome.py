"""What a single call has to tell beside its value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

__all__ = ["Outcome", "Role"]

T_co = TypeVar("T_co", covariant=True)


class Role(Enum):
    """How a call came by its value."""

    LEADER = "leader"
    """It ran the function, for itself and for everybody who joined."""

    FOLLOWER = "follower"
    """It received the leader's value."""

    SOLO = "solo"
    """It ran the function for itself alone; ``Merger.stats().solo`` counts the reasons."""


@dataclass(frozen=True)
class Outcome(Generic[T_co]):
    """The value of a call, and how it came about.

    ``followers``: who was waiting when the flight ended (0 for a call that ran alone). An event
    loop or a gevent hub counts once, but the leader's own: there each task counts.
    ``waited``: seconds this call spent waiting for a leader, whatever its role was in the end.
    ``takeovers``: how often the flight changed its leader.
    ``leader_pid``: the process whose function gave the value.
    """

    value: T_co
    role: Role
    followers: int
    waited: float
    takeovers: int
    leader_pid: int
