"""The files of tables in ``/dev/shm``: their names, their lock, and whether they are ours to use.

Beside the segment ``NAME`` there may be ``NAME~lock``, ``NAME~draft`` and ``NAME~r…`` (extra
segments, see ``results``); ``~`` cannot be part of a table's name, so no two tables ever share a
file.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Final, NamedTuple

from .core import shm
from .errors import TableUnavailable

__all__ = [
    "LOCK_SECONDS",
    "SHM_DIR",
    "SegmentName",
    "check_name",
    "find_segments",
    "locked",
    "open_file",
    "partition_suffix",
    "path_of",
    "segment_name",
    "unlink",
]

SHM_DIR: Final = "/dev/shm"
PREFIX: Final = "uniflight"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCOPE = re.compile(r"[A-Za-z0-9_]{1,24}")
_POLL_SECONDS: Final = 0.002
LOCK_SECONDS: Final = 10.0  # creating a table takes milliseconds; a holder may be stopped


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


def segment_name(name: str, scope: str = "", partition: str = "") -> str:
    """Build the segment's name: user, layout and ABI, PID namespace, table, scope, partition.

    Processes that could not understand each other get different names. PIDs mean nothing, and
    robust mutexes prove nothing, across PID namespaces: containers that share ``/dev/shm`` have
    a table each. ``scope`` is ``""`` for PerHost.

    Raises:
        TypeError, ValueError: ``scope`` or ``partition`` cannot be part of a name.
        TableUnavailable: ``/proc`` is not mounted, so the PID namespace is unknown.
    """
    suffix = partition_suffix(scope, partition)
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError as error:
        raise TableUnavailable(
            "unsupported", f"/proc/self/ns/pid cannot be read ({error}); mount /proc", name
        ) from error
    parts = [PREFIX, str(os.geteuid()), f"{shm.format():08x}", f"{namespace:x}", name]
    return "-".join(parts) + suffix


def partition_suffix(scope: str, partition: str) -> str:
    """Return what tells a partition's table from others of the same name.

    Raises:
        TypeError, ValueError: ``scope`` or ``partition`` cannot be part of a name.
    """
    if not isinstance(partition, str):
        raise TypeError(f"a scope's partition() must return a str, not {partition!r:.80}")
    if partition and not _NAME.fullmatch(partition):
        raise ValueError(
            "a scope's partition() must return at most 64 characters out of A-Z, a-z, 0-9, '.', "
            f"'_' and '-', not {partition[:80]!r}"
        )
    if scope and not _SCOPE.fullmatch(scope):
        raise ValueError(
            "the name of a scope's class is part of its tables' names, and must be at most 24 "
            f"characters out of A-Z, a-z, 0-9 and '_', not {scope[:80]!r}"
        )
    return f"@{scope}@{partition}" if scope or partition else ""


class SegmentName(NamedTuple):
    """What ``segment_name`` puts into a name."""

    segment: str
    layout: int
    namespace: int
    name: str
    scope: str
    partition: str


_SEGMENT = re.compile(
    rf"{PREFIX}-(\d+)-([0-9a-f]{{8}})-([0-9a-f]+)-({_NAME.pattern})(?:@({_SCOPE.pattern})@([^~@]*))?"
)


def find_segments(name: str | None = None) -> list[SegmentName]:
    """List this user's tables, or those of one name, of any layout, PID namespace and partition.

    By their names only: what is behind one may be somebody else's, damaged, or gone by now.
    """
    matches = filter(None, map(_SEGMENT.fullmatch, sorted(os.listdir(SHM_DIR))))
    return [
        SegmentName(
            match[0], int(match[2], 16), int(match[3], 16), match[4], match[5] or "", match[6] or ""
        )
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
def locked(segment: str, name: str, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the table's file lock, against threads and processes; it is freed by any death.

    Of a holder that has forked meanwhile, and is killed: by its child's as well. The lock's file
    goes with it if there is no table then.

    Raises:
        TableUnavailable: the lock is held for longer than ``seconds``, or is not ours to take.
    """
    import filelock

    path = path_of(segment) + "~lock"
    if not os.path.isdir(SHM_DIR):
        raise TableUnavailable(
            "unsupported", f"{SHM_DIR} does not exist; mount a tmpfs there", name
        )
    is_ours = False
    while not is_ours:
        # An object, which closes it wherever an exception strikes, and so lets go of the lock.
        with FileIO(_open_lock(path, name), "r+") as file:
            try:
                _lock(file, path, name, seconds)
                # The path led to this file before it was locked and does now, so it is this file
                # that is locked: one that was removed, as ``destroy`` does, never gets its name
                # back.
                is_ours = _is_at(path, file)
                if is_ours:
                    yield
            finally:
                # Nothing was made, or all was removed. Who waits for the lock sees that its file
                # has no name, and starts over.
                if is_ours and not os.path.lexists(path_of(segment)):
                    unlink(segment + "~lock")
                # Closing is not enough: a child that was forked meanwhile has it open, too.
                filelock.unlock_descriptor(file.fileno())


def _lock(file: FileIO, path: str, name: str, seconds: float) -> None:
    import filelock

    end = time.monotonic() + seconds
    while not filelock.lock_descriptor(file.fileno(), blocking=False):
        if time.monotonic() >= end:
            raise TableUnavailable(
                "locked",
                f"another process has been creating or removing the table for {seconds:g} s; "
                f"is it stopped? See who has {path} open",
                name,
            )
        time.sleep(_POLL_SECONDS)


def _open_lock(path: str, name: str) -> int:
    """Open the lock's file, made now if there is none, and check that it is ours to use."""
    fd = None
    while fd is None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            with suppress(FileExistsError):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
                os.fchmod(fd, 0o600)  # whatever the umask took away
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EACCES, errno.EPERM, errno.EISDIR):
                raise
            raise refusal(path, name, f"cannot be used as a lock ({error.strerror})") from error
    try:
        _check_file(os.fstat(fd), path, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_at(path: str, file: FileIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def refusal(path: str, name: str, what: str) -> TableUnavailable:
    return TableUnavailable(
        "refused",
        f"{path} {what}. Somebody else put it there: remove it, or choose another table name",
        name,
    )


def _check_file(status: os.stat_result, path: str, name: str) -> None:
    """Refuse what this user's own process would not have made."""
    if not stat.S_ISREG(status.st_mode):
        raise refusal(path, name, "is not a regular file")
    if status.st_uid != os.geteuid():
        raise refusal(path, name, f"belongs to {_user(status.st_uid)}, not to {_user()}")
    if stat.S_IMODE(status.st_mode) != 0o600:
        raise refusal(path, name, f"has mode {stat.S_IMODE(status.st_mode):04o} instead of 0600")
    if status.st_nlink > 1:
        raise refusal(path, name, f"has {status.st_nlink} hard links instead of 1")


def _user(uid: int | None = None) -> str:
    import pwd

    uid = os.geteuid() if uid is None else uid
    try:
        return f"user {pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def open_file(segment: str, name: str) -> int | None:
    """Open an existing segment and check that it is ours to use; None if there is none."""
    import posix_ipc

    path = path_of(segment)
    try:
        # glibc opens with O_NOFOLLOW and O_CLOEXEC.
        fd: int = posix_ipc.SharedMemory("/" + segment).fd
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError as error:
        raise refusal(path, name, f"cannot be opened ({error})") from error
    except (OSError, ValueError, posix_ipc.Error) as error:  # ValueError: it is a directory
        # posix_ipc raises a plain OSError, without a number, for a want of descriptors.
        if isinstance(error, OSError) and error.errno in (None, errno.ENFILE, errno.ENOMEM):
            raise
        raise refusal(path, name, f"cannot be opened ({error})") from error
    try:
        _check_file(os.fstat(fd), path, name)
    except BaseException:
        os.close(fd)
        raise
    return fd
