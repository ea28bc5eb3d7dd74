"""The table in /dev/shm, and the memory that a process needs besides.

A fresh interpreter reads its ``/proc/self/smaps_rollup`` step by step: bare; with the modules of
the standard library that we import; with those of our dependencies; with ours; with a table
open; after a call. "private" is what no other process shares (USS); pages of the table are
shared, as this process maps them too. "PSS" adds the process's share of the shared pages.

The target is for what we and our dependencies add. Most of the standard library's share is there
already in a process that serves requests, and none of it is ours to save.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from uniflight_mp import Merger
from uniflight_mp.shmfile import path_of, segment_name

from .fresh import imported, interpret
from .report import Row, row
from .stage import table_name

__all__ = ["run"]

_STEPS = """
import sys, json
from importlib import import_module

def read():
    private = pss = 0
    with open("/proc/self/smaps_rollup") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            if name in ("Private_Clean", "Private_Dirty", "Private_Hugetlb"):
                private += int(rest.split()[0]) * 1024
            elif name == "Pss":
                pss = int(rest.split()[0]) * 1024
    return private, pss

standard, others = map(json.loads, sys.argv[2:])
steps = [read()]
for names in (standard, others, ["uniflight_mp"]):
    for name in names:
        try:
            import_module(name)
        except ImportError:
            pass
    steps.append(read())
merger = sys.modules["uniflight_mp"].Merger(sys.argv[1])
steps.append(read())
merger.execute("key", int)
steps.append(read())
print(json.dumps(steps))
"""
_NAMES = (
    "modules of the standard library",
    "modules of the dependencies",
    "our modules",
    "opening the table",
    "the first call",
)


@contextmanager
def _mapped(path: str) -> Iterator[None]:
    """Keep every page of a table mapped, so that another process's pages of it are shared."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        for page in range(0, len(memory), mmap.PAGESIZE):
            memory[page]
        yield


def _process_rows(table: str, runs: int) -> list[Row]:
    modules = [json.dumps(names) for names in imported(table, "in all")]
    seen = [interpret(_STEPS, table, *modules) for _ in range(runs)]
    rows = []
    for i, what in enumerate(_NAMES):
        extra = [steps[i + 1][0] - steps[i][0] for steps in seen]
        rows.append(row(f"  private, for {what}", "KiB", extra))
    ours = [steps[-1][0] - steps[1][0] for steps in seen]
    rows.append(row("private, but the standard library", "KiB", ours, target="< 2,048"))
    for kind, what in enumerate(("private", "PSS")):
        extra = [steps[-1][kind] - steps[0][kind] for steps in seen]
        rows.append(row(f"{what}, in all", "KiB", extra))
    bare = [steps[0][0] for steps in seen]
    return [row("floor: a bare interpreter, private", "KiB", bare), *rows]


def run(quick: bool) -> list[Row]:
    """Measure."""
    with table_name("memory") as table, Merger(table) as merger:
        path = path_of(segment_name(table))
        merger.execute("key", int)
        reserved = os.stat(path).st_blocks * 512
        with _mapped(path):
            rows = _process_rows(table, 3 if quick else 20)
    return [row("default table in /dev/shm, reserved", "MiB", [reserved], target="< 8"), *rows]
