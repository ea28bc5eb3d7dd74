"""Contract: opening and calling where something runs short, or is missing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
from crew import wait_for_followers

from uniflight_mp import Merger, TableUnavailable, _shm
from uniflight_mp.segment import destroy
from uniflight_mp.shmfile import path_of, segment_name


def give(value):
    return value


def can_unshare(*flags):
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", *flags, "true"], capture_output=True, timeout=30)
    return done.returncode == 0


needs_mount_namespace = pytest.mark.skipif(not can_unshare("-m"), reason="needs unshare -m")
needs_pid_namespace = pytest.mark.skipif(
    not can_unshare("--pid", "--fork", "--mount-proc"), reason="needs unshare --pid"
)


def python(script, *args, before=(), timeout=90, **options):
    """Run a script in a Python of its own; return its output, which must be all it had to say."""
    done = subprocess.run(
        [*before, sys.executable, "-c", textwrap.dedent(script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# ---- scarce resources -------------------------------------------------------------------


def limited(limit, value, function, *args):
    resource.setrlimit(limit, (value, value))
    return function(*args)


def test_without_a_descriptor_opening_is_an_oserror(table_name, hands):
    Merger(table_name)
    for free in (0, 1, 2):
        error = hands.start(open_with_descriptors, table_name, free, where="spawned").result()
        assert error in (errno.EMFILE, None), free
        assert error == errno.EMFILE or free > 0


def open_with_descriptors(name, free):
    """Open with only so many descriptors left; return the error's number."""
    with Merger(f"{name}-warm"):
        pass
    destroy(segment_name(f"{name}-warm"), f"{name}-warm")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, before[1]))
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            for _ in range(free):
                os.close(taken.pop())
        try:
            Merger(name)
        except OSError as error:
            return error.errno
        return None
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_a_descriptor_calls_go_on_and_big_results_fall_back(table_name, hands, until):
    merger = Merger(table_name)
    leader = hands.start(lead_without_descriptors, merger, where="forked")
    until(merger.flights)
    call = hands.start(merger.flight, "big", give, b"own", where="forked")
    assert call.result().value == b"own"
    assert leader.result() == (100_000, 1)
    assert merger.stats().solo["too_large"] == 1


def lead_without_descriptors(merger):
    import posix_ipc  # noqa: F401  # a descriptor is needed to import

    def function():
        wait_for_followers(merger)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        return bytes(100_000)

    warnings.simplefilter("ignore")
    size = len(merger.execute("big", function))
    return size, merger.execute("small", give, 1)


def test_with_too_little_address_space_opening_is_an_error_that_says_so(table_name, hands):
    error = hands.start(open_without_memory, table_name, where="forked").error()
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOMEM
    assert not os.path.exists(path_of(segment_name(table_name)) + "~draft")


def open_without_memory(name):
    with Merger(f"{name}-warm"):
        pass
    destroy(segment_name(f"{name}-warm"), f"{name}-warm")
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), -1))
    Merger(name)


def test_a_limit_on_the_size_of_files_is_an_error_at_once_or_a_fall_back(table_name, hands, until):
    small = hands.start(limited, resource.RLIMIT_FSIZE, 1 << 20, Merger, table_name, where="forked")
    error = small.error()
    assert isinstance(error, TableUnavailable)
    assert "smaller Limits" in str(error)
    merger = Merger(table_name)
    leader = hands.start(lead_with_small_files, merger, where="forked")
    until(merger.flights)
    assert merger.flight("big", give, b"own").value == b"own"
    assert leader.result() == 100_000


def lead_with_small_files(merger):
    def function():
        wait_for_followers(merger)
        return bytes(100_000)

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    return len(merger.execute("big", function))


MOUNTED = """
    import subprocess, sys
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=" + sys.argv[1], "tmpfs", "/dev/shm"], check=True
    )
"""

FULL = (
    MOUNTED
    + """
    import os
    from uniflight_mp import Limits, Merger, TableUnavailable
    try:
        Merger("prices")
    except TableUnavailable as error:
        print(error.reason, error.table)
        print(error)
    print(sorted(os.listdir("/dev/shm")))
"""
)


@needs_mount_namespace
def test_a_full_dev_shm_is_an_error_that_says_what_to_do():
    first, text, left = python(FULL, "64k", before=["unshare", "-m"]).splitlines()
    assert first == "no_space prices"
    assert "needs 5," in text
    assert "of /dev/shm, of which " in text
    assert "smaller Limits" in text
    assert "shm-size" in text
    assert left == "[]"


TIGHT = (
    MOUNTED
    + """
    import os, sys, threading, time, warnings
    from uniflight_mp import Merger
    warnings.simplefilter("ignore")
    merger = Merger("prices")

    def function():
        while merger.flights()[0].followers == 0:
            time.sleep(0.001)
        return b"v" * int(sys.argv[2])

    pid = os.fork()
    if pid == 0:
        while not merger.flights():
            time.sleep(0.001)
        outcome = merger.flight("key", bytes)
        sys.stdout.write(f"{outcome.role.name} {len(outcome.value)}\\n")
        sys.stdout.flush()
        os._exit(0)
    size = len(merger.execute("key", function))
    os.waitpid(pid, 0)
    print(size)
    print(merger.stats().solo["too_large"], merger.execute("key", int, 5))
    print(len([name for name in os.listdir("/dev/shm") if "~r" in name]))
"""
)


@needs_mount_namespace
def test_a_big_result_that_does_not_fit_into_dev_shm_falls_back():
    lines = python(TIGHT, "8m", 1 << 20, before=["unshare", "-m"]).split("\n")
    assert lines[:2] == ["FOLLOWER 1048576", "1048576"]
    assert lines[2:4] == ["0 5", "0"]
    lines = python(TIGHT, "8m", 5 << 20, before=["unshare", "-m"]).split("\n")
    assert lines[:2] == ["SOLO 0", "5242880"]
    assert lines[2:4] == ["1 5", "0"]


NAMESPACE = """
    import sys
    from uniflight_mp import Merger
    from uniflight_mp.segment import destroy
    from uniflight_mp.shmfile import segment_name
    with Merger(sys.argv[1]) as merger:
        print(merger.flight("key", int, 5).role.name, merger._segment.segment)
    destroy(segment_name(sys.argv[1]), sys.argv[1])
"""


@needs_pid_namespace
def test_another_pid_namespace_has_a_table_of_its_own(table_name, leading):
    merger = Merger(table_name)
    leading(merger, "key")
    role, segment = python(
        NAMESPACE, table_name, before=["unshare", "--pid", "--fork", "--mount-proc"]
    ).split()
    assert role == "LEADER"
    assert segment != merger._segment.segment
    assert len(merger.flights()) == 1


# ---- without the core -------------------------------------------------------------------

WITHOUT_CORE = """
    import sys
    sys.modules["uniflight_mp._shm"] = None
    import uniflight_mp
    assert not uniflight_mp.core.is_built()
    uniflight_mp.MsgpackCodec().encode([1])
    try:
        uniflight_mp.Merger("prices")
    except uniflight_mp.TableUnavailable as error:
        print(error.reason, error.table)
        print(error)
    try:
        uniflight_mp.Merger("no name")
    except ValueError:
        print("fine")
"""


def test_without_the_core_the_package_imports_and_opening_says_what_is_missing():
    first, text, last = python(WITHOUT_CORE).splitlines()
    assert first == "unsupported prices"
    assert "Linux" in text
    assert "compile" in text
    assert last == "fine"


def test_a_core_that_cannot_be_loaded_says_why(tmp_path):
    core = Path(_shm.__file__)
    package = shutil.copytree(core.parent, tmp_path / core.parent.name)
    (package / core.name).write_bytes(b"of another platform")
    script = """
        import uniflight_mp
        try:
            uniflight_mp.Merger("prices")
        except uniflight_mp.TableUnavailable as error:
            print(error, "|", error.__cause__)
    """
    text, cause = python(script, cwd=tmp_path).strip().split(" | ")
    assert text.endswith(f"cannot be loaded: {cause}")
    assert core.name in cause
    assert "compiler" not in text


OTHER_INTERPRETER = """
    import sys, textwrap
    try:
        import _xxsubinterpreters as interpreters
    except ImportError:
        import _interpreters as interpreters
    import uniflight_mp

    code = textwrap.dedent('''
        import uniflight_mp
        try:
            uniflight_mp.Merger("prices")
        except uniflight_mp.TableUnavailable as error:
            print(error.reason, error, flush=True)
    ''')
    other = interpreters.create()
    interpreters.run_string(other, f"import sys; sys.path[:] = {sys.path}\\n{code}")
    interpreters.destroy(other)
"""


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12),
    reason="msgpack itself cannot be imported in another interpreter of Python 3.12",
)
def test_other_interpreters_of_a_process_are_refused_plainly():
    text = python(OTHER_INTERPRETER)
    assert text.startswith("unsupported table 'prices' is unavailable")
    assert "interpreter" in text


WITHOUT_PROC = """
    import subprocess
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/proc"], check=True)
    import uniflight_mp
    try:
        uniflight_mp.Merger("prices")
    except uniflight_mp.TableUnavailable as error:
        print(error.reason, "mount /proc" in str(error))
"""


@needs_mount_namespace
def test_without_proc_opening_says_what_is_missing():
    assert python(WITHOUT_PROC, before=["unshare", "-m"]) == "unsupported True\n"
