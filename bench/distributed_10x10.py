"""100 callers want 10 keys at once, 10 callers each.

First tasks of one event loop, see ``tasks.py``. Then threads of one process, and of five, 2 for
each key in each process, see ``callers.py``.
"""

from __future__ import annotations

from .callers import measure_callers
from .report import Row
from .tasks import measure_crowds

__all__ = ["run"]

_KEYS = 10


def run(quick: bool) -> list[Row]:
    """Measure."""
    keys = [f"sku:{number}" for number in range(_KEYS) for _ in range(10)]
    tasks = measure_crowds(keys, ("<= 500", "<= 540"), quick)
    return tasks + measure_callers(_KEYS, "<= 1,000", quick)
