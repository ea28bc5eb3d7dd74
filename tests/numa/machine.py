"""A machine with NUMA nodes: a Linux kernel in QEMU, and in it this Python with our package.

Everything is emulated, so it needs neither nodes nor the right to use KVM. The kernel is Debian's,
unpacked without being installed, or the one that ``NUMA_KERNEL`` names. Its first process is
Python, with ``init.py``; all files are in an initramfs, at the paths that they have here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "numa"
SECONDS = 300  # far above what it takes; a machine that hangs is ended

# The CPUs take turns, so that a node is not just half of the CPUs; and node 2 has none.
CPUS = {0: [0, 2], 1: [1, 3], 2: []}
MEGABYTES = {0: 384, 1: 384, 2: 256}

PACKAGES = ("uniflight_mp", "msgpack", "filelock", "posix_ipc", "typing_extensions")
# Large, or in need of large libraries.
_NOT_COPIED = shutil.ignore_patterns(
    "test", "tests", "site-packages", "dist-packages", "idlelib", "tkinter", "turtledemo",
    "lib2to3", "distutils", "ensurepip", "pydoc_data", "config-*", "_test*", "_tkinter*",
    "_sqlite3*", "_curses*", "_ssl*", "readline*", "*.opt-?.pyc", "*.a", "*.exe",
)  # fmt: skip
_SITE = Path("/site")


class Missing(Exception):
    """Something has to be installed first; the text says what."""


# ---- the kernel -------------------------------------------------------------------------


def find_kernel() -> Path:
    """Return the kernel's file, downloaded now if there is none yet.

    Raises:
        Missing: it cannot be had.
    """
    given = os.environ.get("NUMA_KERNEL")
    if given:
        return Path(given)
    kernel = BUILD / "vmlinuz"
    if not kernel.exists():
        _download(kernel)
    return kernel


def _download(kernel: Path) -> None:
    for tool in ("apt-cache", "apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Missing(
                f"no {tool}, so Debian's kernel cannot be had: set NUMA_KERNEL to the file of a "
                "kernel for x86-64 with NUMA, ACPI, an 8250 console, devtmpfs and tmpfs built in"
            )
    # The package of that name is empty, and depends on the one of the current version.
    depends = _run("apt-cache", "depends", "linux-image-cloud-amd64")
    package = re.search(r"Depends: (linux-image-\S+)", depends)
    if package is None:
        raise Missing("apt knows no linux-image-cloud-amd64: apt-get update")
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as directory:
        _run("apt-get", "download", package[1], cwd=directory)
        (deb,) = Path(directory).glob("*.deb")
        _run("dpkg-deb", "--extract", str(deb), directory)
        (unpacked,) = Path(directory, "boot").glob("vmlinuz-*")
        unpacked.rename(kernel)  # in one step: a kernel that is there is complete


def _run(*command: str, cwd: str | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise Missing(f"{' '.join(command)} failed; apt-get update may help:\n{said}")
    return done.stdout


# ---- the initramfs ----------------------------------------------------------------------


class Archive:
    """A cpio archive of the kind that the kernel unpacks ("newc"), in memory."""

    def __init__(self) -> None:
        self.sources: list[Path] = []
        self._parts: list[bytes] = []
        self._names: set[Path] = {Path("/")}

    def add(self, name: Path, source: Path) -> None:
        """Put a file there under an absolute name, and the directories above it."""
        if name in self._names:
            return
        self.add_directory(name.parent)
        self.sources.append(source)
        status = source.stat()
        # The time of change too: compiled modules are valid for one alone.
        self._add(name, stat.S_IFREG | 0o755, int(status.st_mtime), source.read_bytes())

    def add_tree(self, name: Path, source: Path) -> None:
        """Put a directory there, without what nothing in the machine needs."""
        for directory, directories, files in os.walk(source):
            skipped = _NOT_COPIED(directory, directories + files)
            directories[:] = [each for each in directories if each not in skipped]
            for file in set(files) - skipped:
                path = Path(directory, file)
                if path.exists():  # not a link to nowhere
                    self.add(name / path.relative_to(source), path)

    def add_directory(self, name: Path) -> None:
        if name not in self._names:
            self.add_directory(name.parent)
            self._add(name, stat.S_IFDIR | 0o755, 0, b"")

    def write(self, path: Path) -> None:
        self._add(Path("TRAILER!!!"), 0, 0, b"")
        path.write_bytes(b"".join(self._parts))

    def _add(self, name: Path, mode: int, mtime: int, content: bytes) -> None:
        self._names.add(name)
        text = os.fsencode(str(name).lstrip("/")) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = [len(self._names), mode, 0, 0, links, mtime, len(content), 0, 0, 0, 0]
        numbers += [len(text), 0]
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + text
        for part in (header, content):
            self._parts.append(part + bytes(-len(part) % 4))


def build_image(path: Path) -> None:
    """Write an initramfs with this interpreter, our package and the scripts beside this file."""
    archive = Archive()
    for directory in ("/proc", "/sys", "/dev", "/tmp"):
        archive.add_directory(Path(directory))
    stdlib = Path(sysconfig.get_path("stdlib"))
    archive.add(_python(), _python())
    archive.add_tree(stdlib, stdlib)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:  # typing_extensions is needed by some versions only
            continue
        assert spec.origin is not None
        origin = Path(spec.origin)
        if spec.submodule_search_locations:
            archive.add_tree(_SITE / name, origin.parent)
        else:
            archive.add(_SITE / origin.name, origin)
    for script in ("init.py", "inside.py"):
        archive.add(_SITE / script, HERE / script)
    for library in _libraries(archive.sources):
        archive.add(library, library)
    archive.write(path)


def _python() -> Path:
    """Return the interpreter itself, which a virtual environment has a link to."""
    return Path(sys.executable).resolve()


def _libraries(files: list[Path]) -> Iterator[Path]:
    """List the shared libraries that the interpreter and its modules need, and the loader."""
    compiled = [file for file in files if file == _python() or file.suffix == ".so"]
    listed = subprocess.run(
        ["ldd", *map(str, compiled)], capture_output=True, text=True, check=False
    ).stdout  # a module of the standard library that has none of its libraries is none of ours
    for found in sorted(set(re.findall(r"(/\S+) \(0x", listed))):
        yield Path(found)


# ---- the machine ------------------------------------------------------------------------


def observe() -> tuple[dict[str, Any], str]:
    """Build and run the machine; return what ``inside.py`` saw, and the console's text.

    Raises:
        Missing: something has to be installed first.
        AssertionError: it ended, or hung, without a report; the text has the console's.
    """
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise Missing("no qemu-system-x86_64: apt-get install qemu-system-x86")
    if platform.machine() != "x86_64":
        raise Missing(f"this Python is for {platform.machine()}, and the machine is an x86-64")
    kernel, image = find_kernel(), BUILD / "image"
    BUILD.mkdir(parents=True, exist_ok=True)
    build_image(image)
    return _boot(qemu, kernel, image)


def _boot(qemu: str, kernel: Path, image: Path) -> tuple[dict[str, Any], str]:
    console, report = BUILD / "console", BUILD / "report"
    for file in (console, report):
        file.write_bytes(b"")
    command = [
        qemu, "-accel", "tcg", "-cpu", "max", *_topology(),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", f"file:{console}", "-serial", f"file:{report}",
        "-kernel", str(kernel), "-initrd", str(image), "-append", _command_line(),
    ]  # fmt: skip
    try:
        ended = f"ended with status {subprocess.run(command, timeout=SECONDS).returncode}"
    except subprocess.TimeoutExpired:
        ended = f"was ended after {SECONDS} s"
    said = console.read_text(errors="replace")
    try:
        return json.loads(report.read_text()), said
    except ValueError:
        raise AssertionError(f"the machine {ended}, without a report:\n{said}") from None


def _topology() -> list[str]:
    count = sum(map(len, CPUS.values()))
    arguments = ["-smp", f"{count},sockets={count}", "-m", f"{sum(MEGABYTES.values())}M"]
    for node, size in MEGABYTES.items():
        arguments += ["-object", f"memory-backend-ram,id=memory{node},size={size}M"]
        cpus = "".join(f",cpus={cpu}" for cpu in CPUS[node])
        arguments += ["-numa", f"node,nodeid={node},memdev=memory{node}{cpus}"]
    return arguments


def _command_line() -> str:
    """Have Python be the first process. A kernel hands it what has a "=" as environment."""
    return (
        "console=ttyS0 quiet panic=-1 mitigations=off "
        f"rdinit={_python()} PYTHONPATH={_SITE} PYTHONHOME={sys.base_prefix} "
        f"PYTHONDONTWRITEBYTECODE=1 -- {_SITE}/init.py"
    )


if __name__ == "__main__":
    try:
        facts, text = observe()
    except Missing as error:
        sys.exit(f"missing: {error}")
    print(text)
    print(json.dumps(facts, indent=2))
