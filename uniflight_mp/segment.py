"""A table's life: made, attached, replaced, removed.

A shared table is one POSIX shared-memory segment. Everything that makes or removes one happens
under one file lock per table, so that processes cannot make two, and a lock dies with its holder.
A segment gets its name by a rename, when it is complete: whoever dies on the way leaves a draft
that the next one throws away. A private table has no file, and nothing of all this.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import ClassVar, Final, NamedTuple

from .core import Table, is_built, missing, shm, why_missing
from .errors import TableCorrupt, TableMismatch, TableUnavailable, warn
from .keys import encode_key
from .limits import Limits
from .results import extra_segments, reap_results
from .scopes import PerNuma, Scope, scope_name
from .shmfile import (
    LOCK_SECONDS,
    SHM_DIR,
    find_segments,
    locked,
    open_file,
    partition_suffix,
    path_of,
    refusal,
    segment_name,
    unlink,
)

__all__ = [
    "CARE_LOCK_SECONDS",
    "UNAVAILABLE",
    "PrivateSegment",
    "Reaped",
    "Segment",
    "attach_read_only",
    "destroy",
    "existing_tables",
    "open_segment",
    "reap",
]

CARE_LOCK_SECONDS: Final = 0.2  # inside somebody's call, which must not hang for our sake
# Why a table cannot be opened at the moment, through no fault of the call that needs it.
UNAVAILABLE: Final = (TableUnavailable, TableMismatch, TableCorrupt, OSError, MemoryError)


def _attach(fd: int, segment: str, name: str, read_only: bool = False) -> Table:
    """Map the table behind a descriptor, and close that."""
    try:
        table = shm.attach(fd, path_of(segment), encode_key, read_only)
    finally:
        os.close(fd)
    if not isinstance(table, int):
        return table
    if table == shm.NO_MEMORY:
        raise OSError(errno.ENOMEM, "no memory to map the table", path_of(segment))
    if table == shm.OTHER_VERSION:
        raise TableMismatch(name, "another layout version or libc", f"format {shm.format():08x}")
    what = "is not a table" if table == shm.NOT_A_TABLE else "has numbers that contradict its size"
    raise TableCorrupt(name, f"{path_of(segment)} {what}")


def _attach_existing(segment: str, name: str, read_only: bool = False) -> Table | None:
    fd = open_file(segment, name)
    return None if fd is None else _attach(fd, segment, name, read_only)


def _no_room(name: str, size: int, error: OSError) -> TableUnavailable:
    usage = os.statvfs(SHM_DIR)
    return TableUnavailable(
        "no_space",
        f"the table needs {size:,} bytes of {SHM_DIR}, of which {usage.f_bavail * usage.f_frsize:,}"
        f" are free ({error.strerror}). Pass smaller Limits, remove what fills it, or enlarge it "
        "(docker run --shm-size, mount -o remount,size=)",
        name,
    )


def _numbers(limits: Limits) -> tuple[int, int, int, int, int]:
    """Return what the core wants to know.

    Raises:
        ValueError: each limit is in range, but no table can be made with all of them.
    """
    numbers = (
        limits.flights,
        limits.waiters,
        limits.threads,
        limits.rounded().inline_bytes,
        limits.result_bytes,
    )
    if shm.segment_bytes(*numbers) == 0:
        raise ValueError(f"no table can be made with {limits}: too large in all")
    return numbers


Bind = Callable[[int, int], None]  # a descriptor, and the size that its file will have


def _create(segment: str, name: str, limits: Limits, bind: Bind | None) -> int:
    """Make a complete table and give it its name; under the table's lock."""
    import posix_ipc

    numbers = _numbers(limits)
    size = shm.segment_bytes(*numbers)
    draft = segment + "~draft"
    try:
        unlink(draft)  # of a creator that died
    except OSError as error:
        raise refusal(path_of(draft), name, f"is in the way ({error.strerror})") from error
    fd: int = posix_ipc.SharedMemory("/" + draft, posix_ipc.O_CREX, mode=0o600).fd
    try:
        os.fchmod(fd, 0o600)  # whatever the umask took away
        if bind is not None:
            os.ftruncate(fd, size)
            bind(fd, size)
        os.posix_fallocate(fd, 0, size)  # a page that cannot be had later would be a SIGBUS
        shm.create(fd, numbers, os.urandom(16))
        os.rename(path_of(draft), path_of(segment))
    except BaseException as error:
        os.close(fd)
        unlink(draft)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise _no_room(name, size, error) from error
        raise
    return fd


def _open_table(
    segment: str, name: str, limits: Limits, bind: Bind | None, seconds: float
) -> Table:
    """Attach to the table, made now if there is none or if it was given up as damaged."""
    with locked(segment, name, seconds):
        table = _attach_existing(segment, name)
        created = table is None or table.damaged
        if table is None or created:
            unlink(segment)
            table = _attach(_create(segment, name, limits, bind), segment, name)
        table.reap()
        reap_results(table, segment)
    if not created:
        _warn_of_other_limits(table, name, limits)
    return table


def _warn_of_other_limits(table: Table, name: str, limits: Limits) -> None:
    found = table.geometry()
    try:
        have = Limits(
            found["asked_flights"],
            found["asked_waiters"],
            found["threads"],
            found["inline_bytes"],
            found["result_bytes"],
        )
    except ValueError as error:
        raise TableCorrupt(name, f"{table.path} says that it was made with {error}") from error
    if have == limits.rounded():
        return
    remedy = f"stop its users and run 'uniflight-mp destroy {name}'"
    if table.path is None:
        remedy = "close all Mergers of that name first"
    warn(
        f"table {name!r} exists with {have}, not with {limits}: the limits of the one that "
        f"created it hold. To change them, {remedy}"
    )


class Segment:
    """This process's hold on one table; replaces the mapping when the segment is replaced.

    All Mergers of one name in a process share one, which is what lets their followers receive
    the very object. Survives fork: the child inherits the mapping.
    """

    _opened: ClassVar[weakref.WeakValueDictionary[str, Segment]] = weakref.WeakValueDictionary()
    _lock = threading.RLock()  # of _opened: a signal handler may open a table while its thread does

    def __init__(
        self, segment: str, name: str, limits: Limits, bind: Bind | None, seconds: float
    ) -> None:
        self.segment = segment
        self.name = name
        self.limits = limits
        self.bind = bind
        self._caring = threading.RLock()
        self.table = _open_table(segment, name, limits, bind, seconds)

    @classmethod
    def open(
        cls, name: str, scope: Scope, partition: str, limits: Limits, seconds: float = LOCK_SECONDS
    ) -> Segment:
        """Open the partition's table, or create it; wait so long for others who do.

        Raises:
            TableUnavailable: no room in ``/dev/shm``, or a file in the way that belongs to
                somebody else or is no plain file of mode 0600.
            TableMismatch: a segment of that name was made by an incompatible build.
            TableCorrupt: a segment of that name is no table.
            TypeError, ValueError: ``partition`` cannot be part of a name.
            OSError: no file descriptor or no memory is to be had.
        """
        segment = segment_name(name, scope_name(scope), partition)
        bind: Bind | None = None
        if isinstance(scope, PerNuma):
            bind = partial(scope.bind, partition=partition)
        opened = cls._opened.get(segment)
        if opened is None:
            # Not under the lock: who holds the file lock of this table may be stopped, which is no
            # reason for other threads to wait for other tables.
            made = cls(segment, name, limits, bind, seconds)
            with cls._lock:  # another thread or a signal handler may have been faster
                return cls._opened.setdefault(segment, made)
        opened.care()  # it may have been removed, and made anew by others
        _warn_of_other_limits(opened.table, name, limits)
        return opened

    def care(self) -> bool:
        """Do what a table asks for when ``begin`` answers None: replace it, or clean up.

        Returns whether the table was replaced. Never raises: a table that cannot be replaced now
        is used on as it is, alone or damaged, and looked after again a little later.
        """
        try:
            # One thread of a process is enough; the others go on with what there is.
            return self._caring.acquire(blocking=False) and self._replace_or_clean()
        except (TableUnavailable, TableCorrupt, TableMismatch, OSError):
            return False
        finally:
            # Without asking whether it was acquired: a signal handler may have raised before that
            # was known, or have forked, and the child's lock is another one.
            with suppress(RuntimeError):  # "cannot release un-acquired lock"
                self._caring.release()

    def _replace_or_clean(self) -> bool:
        if self._is_replaced() or self.table.damaged:
            self.table = _open_table(
                self.segment, self.name, self.limits, self.bind, CARE_LOCK_SECONDS
            )
            return True
        if self.table.leaked:
            with locked(self.segment, self.name, 0):  # if it is held, a later call comes here again
                if self.table.take_leaked():
                    reap_results(self.table, self.segment)
        return False

    def _is_replaced(self) -> bool:
        try:
            status = os.stat(path_of(self.segment), follow_symlinks=False)
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self.table.identity


class PrivateSegment:
    """A table in memory of this process alone, in the place of a ``Segment``.

    The same core, without a file: nobody else can find it. A forked child has an empty one.
    """

    segment = ""
    _opened: ClassVar[weakref.WeakValueDictionary[str, PrivateSegment]] = (
        weakref.WeakValueDictionary()
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.table = shm.make_private(_numbers(limits), encode_key)

    @classmethod
    def open(cls, name: str, scope: Scope, partition: str, limits: Limits) -> PrivateSegment:
        """Return the process's table of that partition, made now if there is none.

        Raises:
            TypeError, ValueError: ``partition`` cannot be part of a name.
            MemoryError: there is no memory.
        """
        what = name + partition_suffix(scope_name(scope), partition)
        with Segment._lock:
            opened = cls._opened.get(what)
            if opened is None:
                opened = cls._opened.setdefault(what, cls(limits))
            else:
                _warn_of_other_limits(opened.table, name, limits)
        return opened

    def care(self) -> bool:
        """Replace the table if something has damaged it; return whether it was."""
        if not self.table.damaged:
            return False
        self.table = shm.make_private(_numbers(self.limits), encode_key)
        return True


def open_segment(
    name: str, scope: Scope, partition: str, limits: Limits, seconds: float = LOCK_SECONDS
) -> Segment | PrivateSegment:
    """Open a partition's table, shared or private, or make it.

    Raises:
        TableUnavailable: the platform is not supported.
        Exception: what ``Segment.open`` and ``PrivateSegment.open`` raise.
    """
    if not is_built():
        raise TableUnavailable("unsupported", why_missing(), name) from missing
    if scope.shared:
        return Segment.open(name, scope, partition, limits, seconds)
    return PrivateSegment.open(name, scope, partition, limits)


def existing_tables(name: str, scope: Scope) -> Iterator[Table]:
    """Open the tables of a scope's partitions, on the host or in this process; make none.

    Those that cannot be opened are left out: somebody else's, or removed at this moment.
    """
    if not scope.shared:
        prefix = name + partition_suffix(scope_name(scope), "")
        for known in PrivateSegment._opened.valuerefs():  # a copy: other threads open tables
            opened = known() if known.key.startswith(prefix) else None
            if opened is not None:
                yield opened.table
        return
    prefix = segment_name(name, scope_name(scope), "")
    for found in find_segments(name):
        if found.segment == prefix + found.partition:
            with suppress(*UNAVAILABLE):
                table = _attach_existing(found.segment, name)
                if table is not None:
                    yield table


def _forget_locks_after_fork() -> None:
    Segment._lock = threading.RLock()  # another thread of the parent may have held it
    for opened in Segment._opened.values():
        opened._caring = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks_after_fork)


def attach_read_only(segment: str, name: str) -> Table | None:
    """Map a table for reading only, without its lock; None if there is none.

    Raises:
        TableUnavailable, TableMismatch, TableCorrupt: as ``Segment.open``.
    """
    return _attach_existing(segment, name, read_only=True)


def destroy(segment: str, name: str) -> bool:
    """Remove a table and all that belongs to it; return whether there was one.

    Processes that use it finish their calls on the old segment and find the new one, if somebody
    makes one, within a tenth of a second.
    """

    with locked(segment, name):
        existed = unlink(segment)
        unlink(segment + "~draft")
        for extra in extra_segments(segment):
            unlink(extra)
    return existed


class Reaped(NamedTuple):
    """What ``reap`` freed; not ``complete`` if a lock of the table could not be had."""

    complete: bool
    flights: int
    waiters: int
    results: int


def reap(segment: str, name: str) -> Reaped | None:
    """Free what the dead left in a table, made by nobody here; None if there is none.

    ``waiters`` is the difference in use, so it is approximate while the table is busy.

    Raises:
        TableUnavailable, TableMismatch, TableCorrupt: as ``Segment.open``.
    """

    with locked(segment, name):
        table = _attach_existing(segment, name)
        if table is None:
            return None
        unlink(segment + "~draft")
        leaderless = {row[11:13] for row in table.flights() if row[10]}
        waiters = table.usage()[1]
        complete = table.reap()
        kept = {row[11:13] for row in table.flights()}
        freed = max(0, waiters - table.usage()[1])
        return Reaped(complete, len(leaderless - kept), freed, reap_results(table, segment))
