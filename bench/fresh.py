"""Fresh interpreters, and what they import for us."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

__all__ = ["command", "imported", "interpret"]

_LIST = """
import json, sys
before = set(sys.modules)
import uniflight_mp
at_import = [name for name in sys.modules if name not in before]
with uniflight_mp.Merger(sys.argv[1]) as merger:
    merger.execute("key", int)
print(json.dumps({
    "before": sorted(before),
    "at import": at_import,
    "in all": [name for name in sys.modules if name not in before],
}))
"""


def command(code: str, *args: str) -> list[str]:
    """Return the command that runs ``code`` in an interpreter that ignores its surroundings."""
    return [sys.executable, "-I", "-c", code, *args]


def interpret(code: str, *args: str) -> Any:
    """Run ``code`` in a fresh interpreter; return the JSON that it prints."""
    output = subprocess.run(command(code, *args), check=True, stdout=subprocess.PIPE).stdout
    return json.loads(output)


@cache
def _modules(table: str) -> dict[str, list[str]]:
    return interpret(_LIST, table)


def imported(table: str, when: str) -> tuple[list[str], list[str]]:
    """Return the modules of the standard library and of others that we bring in, in order.

    ``when``: ``"at import"``, or ``"in all"``: also by opening ``table`` and by a call.
    """
    names = [name for name in _modules(table)[when] if not name.startswith("uniflight_mp")]
    standard = [name for name in names if name.partition(".")[0] in sys.stdlib_module_names]
    return standard, [name for name in names if name not in standard]
