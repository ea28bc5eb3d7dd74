"""``import uniflight_mp`` in fresh interpreters, bytecode cached, files in the page cache.

Within: the clock is read before and after the import. Whole: from starting an interpreter to its
end. The floor is to import the modules of the standard library and of the dependencies that
ours import; the interpreters of all rows alternate.
"""

from __future__ import annotations

import json
import subprocess
import time

from uniflight_mp import Merger

from .fresh import command, imported, interpret
from .report import Row, row
from .stage import table_name

__all__ = ["run"]

_OURS = """
import time
started = time.perf_counter_ns()
import uniflight_mp
print(time.perf_counter_ns() - started)
"""
_THEIRS = """
import json, sys, time
from importlib import import_module
names = json.loads(sys.argv[1])
started = time.perf_counter_ns()
for name in names:
    try:
        import_module(name)
    except ImportError:
        pass
print(time.perf_counter_ns() - started)
"""


def _whole(code: str) -> int:
    started = time.perf_counter_ns()
    subprocess.run(command(code), check=True)
    return time.perf_counter_ns() - started


def run(quick: bool) -> list[Row]:
    """Measure, after a run of each that does not count."""
    with table_name("import") as table, Merger(table):
        standard, others = imported(table, "at import")
    both, theirs = json.dumps(standard + others), json.dumps(standard)
    measure = {
        "floor: what it imports, without it": lambda: interpret(_THEIRS, both),
        "  of it the standard library": lambda: interpret(_THEIRS, theirs),
        "import uniflight_mp, within": lambda: interpret(_OURS),
        "python -c pass, whole": lambda: _whole("pass"),
        "python -c 'import uniflight_mp', whole": lambda: _whole("import uniflight_mp"),
    }
    samples: dict[str, list[int]] = {what: [] for what in measure}
    for count in range((5 if quick else 50) + 1):
        for what, sample in measure.items():
            taken = sample()
            if count > 0:
                samples[what].append(taken)
    floor = row("floor: what it imports, without it", "ms", samples.pop(next(iter(measure))))
    within = "import uniflight_mp, within"
    return [floor] + [
        row(what, "ms", taken, floor if what == within else None, "< 30" * (what == within))
        for what, taken in samples.items()
    ]
