"""Who is behind a pid, for people and for ``destroy``.

A process is known by its pid and its start time, so that a pid that was given away again is not
taken for its former holder. A process is dead only on proof: nobody has the pid, or the holder
started at another time, or it is a zombie. Whatever cannot be read counts as alive.

The table itself does not ask here: a thread's life lock tells what a pid cannot. But who only
reads must not touch a lock, and this is what is left.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import psutil

from ..errors import clip

__all__ = [
    "COMMAND_LENGTH",
    "INITIAL_PID_NAMESPACE",
    "Process",
    "look_up",
    "pid_namespace",
    "pids_that_map",
    "printable",
    "thread_is_gone",
]

COMMAND_LENGTH: Final = 200
INITIAL_PID_NAMESPACE: Final = 0xEFFFFFFC  # PROC_PID_INIT_INO of the kernel: no container


@dataclass(frozen=True)
class Process:
    """A process as it was when it was looked at.

    ``state``: ``"alive"``, ``"stopped"`` (by a signal or a debugger: alive, but it will not move
    on), ``"zombie"`` or ``"dead"`` (both dead for a table's purposes), ``"unknown"`` (cannot be
    looked at, which counts as alive).
    ``command``: its command line, printable and bounded; ``""`` if it is dead or unknown.
    """

    pid: int
    state: str
    command: str = ""

    @property
    def is_dead(self) -> bool:
        """Whether it is proven that this process will never do anything again."""
        return self.state in ("dead", "zombie")


class _Stat(NamedTuple):
    state: str
    threads: int
    start_time: int


def look_up(pid: int, started: int = 0) -> Process:
    """Tell what became of the process that had ``pid`` and started at ``started``.

    Args:
        pid: in the PID namespace of the caller.
        started: clock ticks since boot, field 22 of ``/proc/PID/stat``; 0 if that is not known:
            then whoever has the pid now is taken for the one that was meant.
    """
    stat = _read_stat(pid)
    if stat is None:
        # With hidepid= a process of somebody else has no entry in /proc. It can still be asked
        # for by a signal, which is what this does.
        return Process(pid, "unknown" if psutil.pid_exists(pid) else "dead")
    if started and stat.start_time and started != stat.start_time:
        return Process(pid, "dead")
    if stat.state == "X" or (stat.state == "Z" and stat.threads <= 1):
        # A zombie that still counts threads is a main thread that ended before the others.
        return Process(pid, "zombie" if stat.state == "Z" else "dead")
    return Process(pid, "stopped" if stat.state in "Tt" else "alive", _command(pid))


def thread_is_gone(pid: int, tid: int) -> bool:
    """Tell whether it is proven that a living process no longer has that thread."""
    return (
        tid != 0
        and os.path.isdir(f"/proc/{pid}/task")
        and not os.path.isdir(f"/proc/{pid}/task/{tid}")
    )


def pid_namespace() -> int:
    """Return the inode that names the caller's PID namespace; 0 if ``/proc`` does not tell."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def pids_that_map(files: Iterable[tuple[int, int]], marker: str) -> dict[tuple[int, int], set[int]]:
    """Find the processes that have files mapped for writing.

    This finds who has opened a table and not called anything yet, and who uses one whose layout
    we cannot read. Processes that may not be looked at are left out.

    Args:
        files: ``(st_dev, st_ino)`` of each.
        marker: part of the path of each; lines without it are skipped quickly.
    """
    found: dict[tuple[int, int], set[int]] = {file: set() for file in files}
    if not found:
        return found
    for pid in psutil.pids():
        for file in _mapped_files(pid, marker.encode()):
            if file in found:
                found[file].add(pid)
    return found


def _mapped_files(pid: int, marker: bytes) -> set[tuple[int, int]]:
    files = set()
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            for line in maps:
                if marker in line:
                    _, access, _, device, inode, _ = line.split(None, 5)
                    if b"w" in access:
                        major, minor = device.split(b":")
                        files.add((os.makedev(int(major, 16), int(minor, 16)), int(inode)))
    except OSError:
        pass  # gone by now, or not ours to look at
    return files


def printable(text: str, limit: int) -> str:
    """Return ``text`` on one line, cut to ``limit`` characters, with what a terminal could take
    for a command written as an escape."""
    text = clip(text, limit)
    if not text.isprintable():
        shown = (c if c.isprintable() else repr(c)[1:-1] for c in text)
        text = clip("".join(shown), limit)
    return text


def _read_stat(pid: int) -> _Stat | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command, in parentheses, may itself contain spaces and parentheses.
            fields = file.read().rpartition(b")")[2].split()
        return _Stat(fields[0].decode("ascii"), int(fields[17]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None


def _command(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        line = " ".join(process.cmdline())
        return printable(line or f"[{process.name()}]", COMMAND_LENGTH)
    except psutil.Error:
        return ""
