"""100 callers want one key at once.

First tasks of one event loop, see ``tasks.py``. Then threads of one process and of five, see
``callers.py``.
"""

from __future__ import annotations

from .callers import measure_callers
from .report import Row
from .tasks import measure_crowds

__all__ = ["run"]


def run(quick: bool) -> list[Row]:
    """Measure."""
    tasks = measure_crowds(["sku:42"] * 100, ("<= 480", "<= 520"), quick)
    return tasks + measure_callers(1, "", quick)
