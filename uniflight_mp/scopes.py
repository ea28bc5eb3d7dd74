"""Who coalesces with whom.

A scope divides callers into partitions, and each partition has a table of its own: in shared
memory, for all processes of the user on the host, or in private memory of the process.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from .core import shm
from .errors import show
from .numa import SYSFS, Topology

__all__ = [
    "PerCore",
    "PerHost",
    "PerNuma",
    "PerProcess",
    "Scope",
    "check_scope",
    "is_divided",
    "scope_name",
]


@runtime_checkable
class Scope(Protocol):
    """What ``scope=`` takes: an object with these two members, and a class with a name of its own.

    The name of the class is part of the identity of a scope's tables, so the same table name
    under two scopes is two tables. An instance is pickled along with its Merger.
    """

    @property
    def shared(self) -> bool:
        """Whether the partitions are shared with other processes; must never change."""
        ...

    def partition(self) -> str:
        """Name the partition that the caller is in now.

        Asked at each call, so it should be fast, and may answer otherwise each time. At most 64
        characters out of ``A-Z a-z 0-9 . _ -``.
        """
        ...


@dataclass(frozen=True)
class PerHost:
    """One table for all processes of the user on this host: the default."""

    shared: ClassVar[bool] = True

    def partition(self) -> str:
        """Return ``""``: there is one partition."""
        return ""


@dataclass(frozen=True)
class PerProcess:
    """One table for all threads and tasks of a process, in its private memory."""

    shared: ClassVar[bool] = False

    def partition(self) -> str:
        """Return ``""``: there is one partition."""
        return ""


@dataclass(frozen=True)
class PerCore:
    """One table per CPU on which the process runs, in its private memory.

    For work that is already divided among cores, by pinned threads for example. A thread that the
    kernel moves to another core does not coalesce with those it left behind, except in a call
    that it began before.
    """

    shared: ClassVar[bool] = False

    def partition(self) -> str:
        """Return the number of the CPU that the caller is on."""
        try:
            return _NUMBERS[shm.cpu()]
        except IndexError:
            return str(shm.cpu())


@dataclass(frozen=True)
class PerNuma:
    """One table per NUMA node for all processes of the user, its memory bound to the node.

    Bound as long as the node has room; results too large for the table are where their leader
    wrote them. The node is that of the CPU on which the caller is when its call begins; the call
    ends on that node's table, wherever its thread is moved to meanwhile. Where the kernel shows
    no nodes, all callers are on the one it says they are on; where it does not allow to bind
    memory, tables are not bound, and a warning says so once.

    Args:
        sysfs: where sysfs is mounted, or a copy of its ``devices/system/node``.

    Raises:
        ValueError: what is written there contradicts itself; the text says how.
    """

    sysfs: str = SYSFS
    _topology: Topology = field(init=False, repr=False, compare=False)
    _by_cpu: dict[int, str] = field(init=False, repr=False, compare=False)
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        topology = Topology.read(self.sysfs)
        object.__setattr__(self, "_topology", topology)
        by_cpu = {cpu: _number(node) for cpu, node in topology.node_of.items()}
        object.__setattr__(self, "_by_cpu", by_cpu)

    def partition(self) -> str:
        """Return the number of the node that the caller is on."""
        try:
            return self._by_cpu[shm.cpu()]
        except KeyError:
            pass
        return self._look_up(shm.cpu())

    def _look_up(self, cpu: int) -> str:
        """Name the node of a CPU that has come online since, or that nobody lists."""
        topology = self._topology
        if not topology.node_of:  # the kernel shows no nodes
            return _number(topology.node_of_unlisted_cpu())
        with suppress(ValueError):
            topology = Topology.read(self.sysfs)
        node = topology.node_of.get(cpu)
        if node is None:
            node = self._topology.node_of_unlisted_cpu()
        name = self._by_cpu[cpu] = _number(node)  # looked up once
        return name

    def bind(self, fd: int, size: int, partition: str) -> None:
        """Have a new segment's pages allocated on the partition's node, if it has memory."""
        self._topology.bind(fd, size, int(partition))

    def __reduce__(self) -> tuple[type[PerNuma], tuple[str]]:
        return PerNuma, (self.sysfs,)


_NUMBERS = tuple(map(str, range(1024)))


def _number(number: int) -> str:
    return _NUMBERS[number] if number < len(_NUMBERS) else str(number)


def check_scope(scope: object) -> Scope:
    """Return ``scope`` if it is one.

    Raises:
        TypeError: it is not; the text says what it lacks.
    """
    if isinstance(scope, Scope) and not isinstance(scope, type):
        return scope
    missing = [name for name in ("partition", "shared") if not hasattr(scope, name)]
    what = f"{scope.__name__}() instead of the class" if isinstance(scope, type) else ""
    raise TypeError(
        "scope must have a partition() method and an attribute shared, as PerHost() has; "
        f"{show(scope)} is no scope: " + (what or f"it has no {' and no '.join(missing)}")
    )


def scope_name(scope: Scope) -> str:
    """Return what the scope is called in the names of its tables; ``""`` for PerHost."""
    return "" if type(scope) is PerHost else type(scope).__name__


def is_divided(scope: Scope) -> bool:
    """Tell whether callers have to ask for their partition at each call."""
    return type(scope) not in (PerHost, PerProcess)
