"""Eight processes of a pool need the same report at once; one of them makes it.

    python multiprocessing_pool.py
"""

from __future__ import annotations

import multiprocessing
import os
import time

from uniflight_mp import Merger

# Each process opens the table by its name, or inherits it: both work, with any start method.
merger = Merger("example-report")


def make_report(day: str) -> dict[str, object]:
    time.sleep(2)  # a slow query
    return {"day": day, "orders": 1234, "made_by": os.getpid()}


def ask(day: str) -> str:
    outcome = merger.flight(("report", day), make_report, day)
    return f"process {os.getpid()}: {outcome.role.value:8} -> {outcome.value}"


if __name__ == "__main__":
    started = time.monotonic()
    with multiprocessing.Pool(8) as pool:
        for line in pool.imap(ask, ["2025-05-01"] * 8):
            print(line)
    print(f"8 reports in {time.monotonic() - started:.1f} s")
