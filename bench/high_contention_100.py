"""100 callers want one key at once: tasks of one event loop, see ``tasks.py``."""

from __future__ import annotations

from .report import Row
from .tasks import measure_crowds

__all__ = ["run"]


def run(quick: bool) -> list[Row]:
    """Measure."""
    return measure_crowds(["sku:42"] * 100, ("<= 480", "<= 520"), quick)
