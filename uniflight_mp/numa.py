"""The NUMA nodes of this machine, as sysfs shows them, and memory that is bound to one.

A CPU belongs to one node. A node may have no CPUs (memory only), or no memory; node numbers may
have gaps, and CPUs may be offline: sysfs leaves them out until they come online.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from .core import shm
from .errors import warn

__all__ = ["SYSFS", "Topology"]

SYSFS: Final = "/sys"
_MOST: Final = 65_536  # CPUs or nodes; far above what a kernel can be built for


class Topology(NamedTuple):
    """Which node each CPU is on, and which nodes have memory; both empty if nobody says."""

    path: str
    node_of: dict[int, int]
    with_memory: frozenset[int]

    @classmethod
    def read(cls, sysfs: str = SYSFS) -> Topology:
        """Read ``devices/system/node`` below ``sysfs``.

        Raises:
            ValueError: it contradicts itself.
        """
        path = os.path.join(sysfs, "devices/system/node")
        online = _read_list(path, "online")
        if online is None and sysfs == SYSFS:  # a kernel without NUMA, or a container without it
            return cls(path, {}, frozenset())
        if not online:
            raise ValueError(f"{path}/online names no NUMA node")
        node_of: dict[int, int] = {}
        for node in online:
            cpus = _read_list(path, f"node{node}/cpulist")
            if cpus is None:
                raise ValueError(f"{path}/online names node {node}, but has no node{node}/cpulist")
            for cpu in cpus:
                if cpu in node_of:
                    raise ValueError(f"{path}: CPU {cpu} is on nodes {node_of[cpu]} and {node}")
                node_of[cpu] = node
        if not node_of:
            raise ValueError(f"{path}: no NUMA node has a CPU")
        with_memory = _read_list(path, "has_memory")
        with_memory = online if with_memory is None else with_memory
        if not set(with_memory) <= set(online):
            raise ValueError(f"{path}/has_memory names nodes that {path}/online does not")
        return cls(path, node_of, frozenset(with_memory))

    def node_of_unlisted_cpu(self) -> int:
        """Return the node of a caller that is on a CPU which no node has."""
        if self.path.startswith(SYSFS + "/"):
            return shm.node()
        return min(self.node_of.values())

    def bind(self, fd: int, size: int, node: int) -> None:
        """Have pages of the file allocated on the node from here on; warn once if that fails.

        Does nothing where it would make no difference: one node, or one without memory.
        """
        if len(self.with_memory) < 2 or node not in self.with_memory:
            return
        try:
            shm.bind(fd, size, node)
        except OSError as error:
            if _warned:
                return
            _warned.append(node)
            warn(
                f"tables cannot be bound to the memory of their NUMA node ({error.strerror}): they "
                "work, and are where the kernel puts them. A container needs a seccomp profile "
                "that allows mbind (or CAP_SYS_NICE), and the node in its cpuset.mems"
            )


_warned: list[int] = []


def _read_list(path: str, name: str) -> list[int] | None:
    """Return the numbers in a file such as ``0-3,8``; None if it cannot be read."""
    try:
        with open(os.path.join(path, name), encoding="ascii", errors="replace") as file:
            text = file.read().strip()
    except OSError:
        return None
    numbers: list[int] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise ValueError(f"{path}/{name}: {text[:80]!r} is no list such as 0-3,8")
        begin, end = int(first), int(last or first)
        if not begin <= end < _MOST:
            raise ValueError(f"{path}/{name}: {part!r} is no range of CPUs or nodes")
        numbers.extend(range(begin, end + 1))
    return numbers
