"""What uniflight-mp needs of a machine: each check yields what it found, and what to do."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import re
import resource
import secrets
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from .. import segment, shmfile
from ..core import is_built, shm, why_missing
from ..errors import UniflightError
from ..limits import Limits
from ..merger import Merger
from ..outcome import Role
from ..shmfile import SHM_DIR
from . import identity
from .identity import printable
from .rendering import MARKS, size_of, title_of
from .reports import find, report_on


class Finding(NamedTuple):
    """One line of the doctor's table; ``status`` is OK, WARN or PROBLEM."""

    status: str
    check: str
    found: str
    advice: str = ""


def examine(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    try:
        return list(check())
    except (UniflightError, OSError) as error:
        name = check.__name__.removeprefix("_check_").replace("_", " ")
        return [Finding("PROBLEM", name, f"cannot be checked: {error}")]


def _check_versions() -> Iterator[Finding]:
    python = f"{platform.python_implementation()} {platform.python_version()}, {sys.platform}"
    versions, missing = [], []
    for name in ("uniflight-mp", "posix_ipc", "msgpack", "psutil", "filelock", "rich", "click"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        advice = "pip install --force-reinstall uniflight-mp"
        yield Finding("WARN", "packages", f"not installed: {', '.join(missing)}", advice)
    yield Finding("OK", "versions", "; ".join([python, *versions]))


def _check_core() -> Iterator[Finding]:
    libc = " ".join(platform.libc_ver()).strip()
    if not is_built():
        yield Finding("PROBLEM", "core", f"missing on {platform.platform()}", why_missing())
        return
    yield Finding("OK", "core", f"layout {shm.LAYOUT_VERSION}, format {shm.format():08x}, {libc}")


def _check_kernel() -> Iterator[Finding]:
    if not is_built():
        return
    if shm.can_watch():
        yield Finding("OK", "kernel", f"{platform.release()}: it tells of dead leaders")
        return
    text = f"{platform.release()}: dead leaders are looked for, which takes up to 10 ms"
    advice = "Linux 5.16 or later; in a sandbox, allow the system call futex_waitv"
    yield Finding("WARN", "kernel", text, advice)


def _check_shm() -> Iterator[Finding]:
    if not os.path.isdir(SHM_DIR):
        yield Finding("PROBLEM", SHM_DIR, "does not exist", f"mount a tmpfs at {SHM_DIR}")
        return
    kind, options = _mount_of(SHM_DIR)
    mode = os.stat(SHM_DIR).st_mode
    if kind != "tmpfs":
        yield Finding("WARN", SHM_DIR, f"is {kind}: slower, and survives a reboot", "use a tmpfs")
    if "ro" in options.split(",") or not os.access(SHM_DIR, os.W_OK | os.X_OK):
        advice = f"mount it read-write, and chmod 1777 {SHM_DIR}"
        yield Finding("PROBLEM", SHM_DIR, "this user cannot write there", advice)
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        text = f"mode {stat.S_IMODE(mode):04o}: any user can remove or replace tables"
        yield Finding("PROBLEM", SHM_DIR, text, f"chmod 1777 {SHM_DIR}")
    usage = os.statvfs(SHM_DIR)
    yield _judge_space(usage.f_bavail * usage.f_frsize, f"{kind}, mode {stat.S_IMODE(mode):04o}")


def _judge_space(free: int, what: str) -> Finding:
    limits, advice = Limits(), "docker run --shm-size=256m; mount -o remount,size=256m /dev/shm"
    table, text = _table_bytes(limits), f"{what}, {size_of(free)} free"
    if free < table:
        advice = f"remove what fills it, enlarge it ({advice}), or pass smaller Limits"
        text += f": the default table needs {size_of(table)}"
        return Finding("PROBLEM", SHM_DIR, text, advice)
    if free < table + limits.result_bytes:
        text += f": one result may take {size_of(limits.result_bytes)} more"
        return Finding("WARN", SHM_DIR, text, f"enlarge it if results are big ({advice})")
    return Finding("OK", SHM_DIR, text)


def _table_bytes(limits: Limits) -> int:
    if not is_built():
        return 8 << 20
    numbers = (limits.flights, limits.waiters, limits.threads)
    return shm.segment_bytes(*numbers, limits.inline_bytes, limits.result_bytes)


def _mount_of(path: str) -> tuple[str, str]:
    """Return the type and the options of the file system at a path; of the last one mounted."""
    kind, options = "not a mount of its own", ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            mount, _, source = line.partition(" - ")
            fields = mount.split()
            if len(fields) > 5 and fields[4] == path:
                kind, options = source.split()[0], fields[5]
    return kind, options


def _check_pid_namespace() -> Iterator[Finding]:
    own = identity.pid_namespace()
    if own == 0:
        advice = "mount /proc: without it no table can be opened"
        yield Finding("PROBLEM", "PID namespace", "/proc does not tell", advice)
        return
    where = "the host's" if own == identity.INITIAL_PID_NAMESPACE else "of a container"
    foreign = {found.name for found in shmfile.find_segments() if found.namespace != own}
    if not foreign:
        yield Finding("OK", "PID namespace", f"{where} ({own:x}); no tables of others here")
        return
    names = ", ".join(sorted(foreign)[:5])
    yield Finding(
        "WARN",
        "PID namespace",
        f"{where} ({own:x}); {SHM_DIR} holds this user's tables of other namespaces: {names}",
        "containers coalesce with each other only in one PID namespace (docker run --pid, "
        "Kubernetes shareProcessNamespace); remove what ended containers left with "
        "'uniflight-mp destroy NAME --foreign --force'",
    )


def _check_limits() -> Iterator[Finding]:
    limits = Limits()
    table = _table_bytes(limits)
    needs = [
        ("open files", resource.RLIMIT_NOFILE, 32, 256, "ulimit -n, LimitNOFILE="),
        ("address space", resource.RLIMIT_AS, 16 * table, 1 << 30, "ulimit -v, LimitAS="),
        (
            "file size",
            resource.RLIMIT_FSIZE,
            table,
            table + limits.result_bytes,
            "ulimit -f, LimitFSIZE=",
        ),
    ]
    for name, which, least, ample, how in needs:
        yield _judge_limit(name, resource.getrlimit(which)[0], least, ample, how)


def _judge_limit(name: str, limit: int, least: int, ample: int, how: str) -> Finding:
    if limit == resource.RLIM_INFINITY or limit >= ample:
        text = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
        return Finding("OK", f"limit of {name}", text)
    status = "PROBLEM" if limit < least else "WARN"
    return Finding(status, f"limit of {name}", f"{limit:,}", f"raise it to {ample:,} ({how})")


def _check_remove_ipc() -> Iterator[Finding]:
    yield _judge_remove_ipc(Path("/"), os.geteuid(), _user_name())


def _judge_remove_ipc(root: Path, uid: int, user: str) -> Finding:
    """Tell whether systemd-logind removes a user's tables when the last session ends."""
    check = "RemoveIPC"
    if not (root / "run/systemd/system").exists():
        return Finding("OK", check, "systemd does not run here")
    last_system_uid = _last_system_uid(root)
    if uid <= last_system_uid:
        text = f"uid {uid} is a system user (up to {last_system_uid}), whose tables systemd keeps"
        return Finding("OK", check, text)
    if not _removes_ipc(root):
        return Finding("OK", check, "RemoveIPC=no in logind.conf")
    if user and (root / "var/lib/systemd/linger" / user).exists():
        return Finding("OK", check, f"user {user} lingers, so systemd keeps the tables")
    return Finding(
        "WARN",
        check,
        f"systemd removes the files of uid {uid} in {SHM_DIR} when the user's last session ends, "
        "under running services too; who uses a table then goes on with a new one",
        f"run services as a system user, 'loginctl enable-linger {user or uid}', or RemoveIPC=no "
        "in /etc/systemd/logind.conf",
    )


def _removes_ipc(root: Path) -> bool:
    """Read logind's configuration as systemd does: main file, then drop-ins; the last word wins."""
    folders = [root / f"{part}/systemd" for part in ("usr/lib", "usr/local/lib", "run", "etc")]
    main_files = [path for folder in folders if (path := folder / "logind.conf").is_file()]
    drop_ins = {
        path.name: path for folder in folders for path in folder.glob("logind.conf.d/*.conf")
    }
    removes = True  # systemd's default
    for path in main_files[-1:] + [drop_ins[name] for name in sorted(drop_ins)]:
        for value in re.findall(r"(?m)^\s*RemoveIPC\s*=\s*(\S*)", _text_of(path)):
            removes = value.lower() not in ("no", "false", "n", "f", "0", "off")
    return removes


def _last_system_uid(root: Path) -> int:
    match = re.search(r"(?m)^\s*SYS_UID_MAX\s+(\d+)", _text_of(root / "etc/login.defs"))
    return int(match[1]) if match else 999


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


def _check_tables() -> Iterator[Finding]:
    if not is_built():
        return
    reports = [report_on(found, details=False) for found in find(None)]
    for report in reports:
        title = f"table {title_of(report)}"
        for mark in report.marks:
            if mark == "unreadable":
                yield Finding("PROBLEM", title, report.detail)
            elif mark == "damaged":
                yield Finding("WARN", title, MARKS[mark], "find out what writes into it")
            elif mark == "other_layout":
                advice = f"once nobody uses it: uniflight-mp destroy {report.name}"
                yield Finding("WARN", title, MARKS[mark], advice)
    total = sum(report.bytes + report.extra_bytes for report in reports)
    yield Finding("OK", "tables", f"{len(reports)} of this user, {size_of(total)}")


def _check_takeover() -> Iterator[Finding]:
    """Try the real thing: a table of the default size, a leader that is killed, a successor."""
    if not is_built() or identity.pid_namespace() == 0:
        return
    name = f"doctor-{os.getpid()}-{secrets.token_hex(4)}"
    check = "robust mutexes"
    try:
        took = _time_takeover(name)
    except (UniflightError, OSError) as error:
        advice = "see the lines above; if they are all OK, report this as a bug"
        yield Finding("PROBLEM", check, f"the trial failed: {printable(str(error), 400)}", advice)
    else:
        yield Finding("OK", check, f"a killed leader was replaced within {took * 1e3:.1f} ms")
    finally:
        segment.destroy(shmfile.segment_name(name), name)


def _time_takeover(name: str) -> float:
    merger = Merger(name, timeout=2.0)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            merger.execute("doctor", _lead, writing)
        finally:
            os._exit(1)
    try:
        if not select.select([reading], [], [], 5.0)[0]:
            raise OSError(errno.ETIMEDOUT, "a child process did not get to lead")
        os.kill(child, signal.SIGKILL)
        begun = time.perf_counter()
        outcome = merger.flight("doctor", time.perf_counter)
        if outcome.role is not Role.LEADER:
            raise OSError(errno.EPROTO, f"its follower ran alone: {dict(merger.stats().solo)}")
        return outcome.value - begun
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
        merger.close()


def _lead(writing: int) -> None:
    os.write(writing, b"1")
    time.sleep(10.0)  # to be killed on the way; bounded, should the parent die


CHECKS: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    _check_versions,
    _check_core,
    _check_kernel,
    _check_shm,
    _check_pid_namespace,
    _check_limits,
    _check_remove_ipc,
    _check_tables,
    _check_takeover,
)
