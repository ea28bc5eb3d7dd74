"""A table's segment: its name, its file, and when to replace it.

A table is one POSIX shared-memory segment. Everything that makes, finds or removes one happens
under one file lock per table, so that processes cannot make two, and a lock dies with its holder.
A segment gets its name by a rename, when it is complete: whoever dies on the way leaves a draft
that the next one throws away.

Beside the segment ``NAME`` there may be ``NAME~lock``, ``NAME~draft`` and ``NAME~r…``
(extra segments, see ``results``); ``~`` cannot be part of a table's name.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar, Final, NamedTuple

from .core import Table, is_built, shm
from .errors import TableCorrupt, TableMismatch, TableUnavailable
from .keys import encode_key
from .limits import Limits
from .scopes import Scope

__all__ = [
    "SHM_DIR",
    "Reaped",
    "Segment",
    "SegmentName",
    "attach_read_only",
    "check_name",
    "destroy",
    "find_segments",
    "reap",
    "segment_name",
]

SHM_DIR: Final = "/dev/shm"
PREFIX: Final = "uniflight"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOCK_SECONDS: Final = 10.0  # creating a table takes milliseconds; a holder may be stopped
_CARE_LOCK_SECONDS: Final = 0.5  # inside somebody's call, which must not hang for our sake


def check_name(name: object) -> str:
    """Return ``name`` if it can name a table.

    Raises:
        TypeError: it is not a ``str``.
        ValueError: it is empty, too long, or has a character that is not allowed.
    """
    if not isinstance(name, str):
        raise TypeError(f"a table's name must be a str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"a table's name is 1 to 64 characters out of A-Z, a-z, 0-9, '.', '_' and '-', "
            f"not {name[:80]!r}"
        )
    return name


def segment_name(name: str, partition: str = "") -> str:
    """Build the segment's name: user, layout and ABI, PID namespace, table, partition.

    Processes that could not understand each other get different names. PIDs mean nothing, and
    robust mutexes prove nothing, across PID namespaces: containers that share ``/dev/shm`` have
    a table each.

    Raises:
        TableUnavailable: ``/proc`` is not mounted, so the PID namespace is unknown.
    """
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        raise TableUnavailable(
            "unsupported", f"/proc/self/ns/pid cannot be read ({error}); mount /proc", name
        ) from error
    parts = [PREFIX, str(os.geteuid()), f"{shm.format():08x}", f"{namespace:x}", name]
    return "-".join(parts) + (f"@{partition}" if partition else "")


class SegmentName(NamedTuple):
    """What ``segment_name`` puts into a name."""

    segment: str
    layout: int
    namespace: int
    name: str
    partition: str


_SEGMENT = re.compile(rf"{PREFIX}-(\d+)-([0-9a-f]{{8}})-([0-9a-f]+)-({_NAME.pattern})(?:@([^~]+))?")


def find_segments(name: str | None = None) -> list[SegmentName]:
    """List this user's tables, or those of one name, of any layout, PID namespace and partition.

    By their names only: what is behind one may be somebody else's, damaged, or gone by now.
    """
    matches = filter(None, map(_SEGMENT.fullmatch, sorted(os.listdir(SHM_DIR))))
    return [
        SegmentName(match[0], int(match[2], 16), int(match[3], 16), match[4], match[5] or "")
        for match in matches
        if int(match[1]) == os.geteuid() and name in (None, match[4])
    ]


def path_of(segment: str) -> str:
    """Return the path of a segment's file."""
    return f"{SHM_DIR}/{segment}"


def unlink(segment: str) -> bool:
    """Remove a segment's name; who has it mapped keeps it. Return whether there was one."""
    import posix_ipc

    try:
        posix_ipc.unlink_shared_memory("/" + segment)
    except posix_ipc.ExistentialError:
        return False
    except posix_ipc.PermissionsError as error:
        raise PermissionError(errno.EACCES, "somebody else's", path_of(segment)) from error
    return True


@contextmanager
def locked(segment: str, name: str, seconds: float = _LOCK_SECONDS) -> Iterator[None]:
    """Hold the table's file lock, against threads and processes; it is freed by any death.

    Raises:
        TableUnavailable: the lock is held for longer than ``seconds``, or is not ours to take.
    """
    import filelock

    path = path_of(segment) + "~lock"
    if not os.path.isdir(SHM_DIR):  # filelock would make it, on disk
        raise TableUnavailable(
            "unsupported", f"{SHM_DIR} does not exist; mount a tmpfs there", name
        )
    lock = filelock.FileLock(path, timeout=seconds, mode=0o600, poll_interval=0.002)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise TableUnavailable(
            "locked",
            f"another process has been creating or removing the table for {seconds:g} s; "
            f"is it stopped? See who has {path} open",
            name,
        ) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.EISDIR):
            raise _refusal(path, name, f"cannot be used as a lock ({error.strerror})") from error
        raise
    try:
        _check_file(os.stat(path, follow_symlinks=False), path, name)
        yield
    finally:
        lock.release()


def _refusal(path: str, name: str, what: str) -> TableUnavailable:
    return TableUnavailable(
        "refused",
        f"{path} {what}. Somebody else put it there: remove it, or choose another table name",
        name,
    )


def _check_file(status: os.stat_result, path: str, name: str) -> None:
    """Refuse what this user's own process would not have made."""
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(path, name, "is not a regular file")
    if status.st_uid != os.geteuid():
        raise _refusal(path, name, f"belongs to {_user(status.st_uid)}, not to {_user()}")
    if stat.S_IMODE(status.st_mode) != 0o600:
        raise _refusal(path, name, f"has mode {stat.S_IMODE(status.st_mode):04o} instead of 0600")
    if status.st_nlink > 1:
        raise _refusal(path, name, f"has {status.st_nlink} hard links instead of 1")


def _user(uid: int | None = None) -> str:
    import pwd

    uid = os.geteuid() if uid is None else uid
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _open_file(segment: str, name: str) -> int | None:
    """Open an existing segment and check that it is ours to use; None if there is none."""
    import posix_ipc

    path = path_of(segment)
    try:
        # glibc opens with O_NOFOLLOW and O_CLOEXEC.
        fd: int = posix_ipc.SharedMemory("/" + segment).fd
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError as error:
        raise _refusal(path, name, f"cannot be opened ({error})") from error
    except (OSError, ValueError, posix_ipc.Error) as error:  # ValueError: it is a directory
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        raise _refusal(path, name, f"cannot be opened ({error})") from error
    try:
        _check_file(os.fstat(fd), path, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _attach(fd: int, segment: str, name: str, read_only: bool) -> Table:
    table = shm.attach(fd, path_of(segment), encode_key, read_only)
    if not isinstance(table, int):
        return table
    if table == shm.NO_MEMORY:
        raise OSError(errno.ENOMEM, "no memory to map the table", path_of(segment))
    if table == shm.OTHER_VERSION:
        raise TableMismatch(name, "another layout version or libc", f"format {shm.format():08x}")
    what = "is not a table" if table == shm.NOT_A_TABLE else "has numbers that contradict its size"
    raise TableCorrupt(name, f"{path_of(segment)} {what}")


def _no_room(name: str, size: int, error: OSError) -> TableUnavailable:
    usage = os.statvfs(SHM_DIR)
    return TableUnavailable(
        "no_space",
        f"the table needs {size:,} bytes of {SHM_DIR}, of which {usage.f_bavail * usage.f_frsize:,}"
        f" are free ({error.strerror}). Pass smaller Limits, remove what fills it, or enlarge it "
        "(docker run --shm-size, mount -o remount,size=)",
        name,
    )


def _create(segment: str, name: str, limits: Limits) -> int:
    """Make a complete table and give it its name; under the table's lock."""
    import posix_ipc

    numbers = (
        limits.flights,
        limits.waiters,
        limits.threads,
        limits.inline_bytes,
        limits.result_bytes,
    )
    size = shm.segment_bytes(*numbers)
    if size == 0:
        raise ValueError(f"no table can be made with {limits}: too large in all")
    draft = segment + "~draft"
    unlink(draft)  # of a creator that died
    fd: int = posix_ipc.SharedMemory("/" + draft, posix_ipc.O_CREX, mode=0o600).fd
    try:
        os.fchmod(fd, 0o600)  # whatever the umask took away
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


def _open_table(segment: str, name: str, limits: Limits, seconds: float = _LOCK_SECONDS) -> Table:
    """Attach to the table, made now if there is none or if it was given up as damaged."""
    with locked(segment, name, seconds):
        fd = _open_file(segment, name)
        created = fd is None
        if fd is None:
            fd = _create(segment, name, limits)
        try:
            table = _attach(fd, segment, name, read_only=False)
        finally:
            os.close(fd)
        if table.damaged:
            unlink(segment)
            fd, created = _create(segment, name, limits), True
            try:
                table = _attach(fd, segment, name, read_only=False)
            finally:
                os.close(fd)
        from .results import reap_results

        table.reap()
        reap_results(table, segment)
    if not created:
        _warn_of_other_limits(table, name, limits)
    return table


def _warn_of_other_limits(table: Table, name: str, limits: Limits) -> None:
    found = table.geometry()
    have = Limits(
        found["asked_flights"],
        found["asked_waiters"],
        found["threads"],
        found["inline_bytes"],
        found["result_bytes"],
    )
    inline_bytes = (limits.inline_bytes + 63) // 64 * 64
    if have != Limits(**{**limits.__dict__, "inline_bytes": inline_bytes}):
        warnings.warn(
            f"table {name!r} exists with {have}, not with {limits}: the limits of the process "
            "that created it hold. To change them, stop its users and run "
            f"'uniflight-mp destroy {name}'",
            RuntimeWarning,
            stacklevel=5,
        )


class Segment:
    """This process's hold on one table; replaces the mapping when the segment is replaced.

    All Mergers of one name in a process share one, which is what lets their followers receive
    the very object. Survives fork: the child inherits the mapping.
    """

    _opened: ClassVar[weakref.WeakValueDictionary[str, Segment]] = weakref.WeakValueDictionary()
    _lock = threading.RLock()  # a signal handler may open a table while its thread does

    def __init__(self, segment: str, name: str, limits: Limits) -> None:
        self.segment = segment
        self.name = name
        self.limits = limits
        self.table = _open_table(segment, name, limits)

    @classmethod
    def open(cls, name: str, scope: Scope, limits: Limits) -> Segment:
        """Open the caller's table, or create it.

        Raises:
            TableUnavailable: unsupported platform, no room in ``/dev/shm``, or a file in the way
                that belongs to somebody else or is no plain file of mode 0600.
            TableMismatch: a segment of that name was made by an incompatible build.
            TableCorrupt: a segment of that name is no table.
            OSError: no file descriptor or no memory is to be had.
        """
        if not is_built():
            raise TableUnavailable(
                "unsupported",
                "shared tables need Linux with glibc, and the compiled core, which is missing "
                "in this installation: install a C compiler and reinstall uniflight-mp there",
                name,
            )
        segment = segment_name(name, scope.partition())
        with cls._lock:
            opened = cls._opened.get(segment)
            if opened is None:
                opened = cls._opened[segment] = cls(segment, name, limits)
            else:
                _warn_of_other_limits(opened.table, name, limits)
        return opened

    def care(self) -> bool:
        """Do what a table asks for when ``begin`` answers None: replace it, or clean up.

        Returns whether the table was replaced. Never raises: a table that cannot be replaced now
        is used on as it is, alone or damaged, and looked after again a little later.
        """
        # One thread at a time: two would map the new segment twice, and their followers would
        # receive copies where they could have the very object.
        with self._lock, suppress(TableUnavailable, TableCorrupt, TableMismatch, OSError):
            if self._is_replaced() or self.table.damaged:
                self.table = _open_table(self.segment, self.name, self.limits, _CARE_LOCK_SECONDS)
                return True
            if self.table.take_leaked():
                from .results import reap_results

                with locked(self.segment, self.name, _CARE_LOCK_SECONDS):
                    reap_results(self.table, self.segment)
        return False

    def _is_replaced(self) -> bool:
        try:
            status = os.stat(path_of(self.segment), follow_symlinks=False)
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self.table.identity


def _forget_lock_after_fork() -> None:
    Segment._lock = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock_after_fork)


def attach_read_only(segment: str, name: str) -> Table | None:
    """Map a table for reading only, without its lock; None if there is none.

    Raises:
        TableUnavailable, TableMismatch, TableCorrupt: as ``Segment.open``.
    """
    fd = _open_file(segment, name)
    if fd is None:
        return None
    try:
        return _attach(fd, segment, name, read_only=True)
    finally:
        os.close(fd)


def destroy(segment: str, name: str) -> bool:
    """Remove a table and all that belongs to it; return whether there was one.

    Processes that use it finish their calls on the old segment and find the new one, if somebody
    makes one, within a tenth of a second.
    """
    from .results import extra_segments

    with locked(segment, name):
        existed = unlink(segment)
        unlink(segment + "~draft")
        for extra in extra_segments(segment):
            unlink(extra)
        # Safe under the lock: who waits for it sees that the file has no name and starts over.
        unlink(segment + "~lock")
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
    from .results import reap_results

    with locked(segment, name):
        fd = _open_file(segment, name)
        if fd is None:
            unlink(segment + "~lock")
            return None
        try:
            table = _attach(fd, segment, name, read_only=False)
        finally:
            os.close(fd)
        unlink(segment + "~draft")
        leaderless = {row[11:13] for row in table.flights() if row[10]}
        waiters = table.usage()[1]
        complete = table.reap()
        kept = {row[11:13] for row in table.flights()}
        freed = max(0, waiters - table.usage()[1])
        return Reaped(complete, len(leaderless - kept), freed, reap_results(table, segment))
