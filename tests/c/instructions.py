"""How many instructions the core's operations take, counted by callgrind.

Unlike times, these do not depend on what else the machine does: a regression of a few per cent is
seen. The expected numbers are those of gcc 12 at -O2 on x86-64; other compilers may differ by the
tolerance. After a change that is meant, run with ``--update`` and say why in the commit message.

    python3 instructions.py PROGRAM [--update]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

EXPECTED = Path(__file__).with_suffix(".txt")
TOLERANCE = 0.10


def count(program: str, operation: str, times: int) -> int:
    """Run an operation so often; return the instructions of the whole program."""
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [
                "valgrind",
                "--tool=callgrind",
                f"--callgrind-out-file={directory}/out",
                program,
                operation,
                str(times),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    match = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or match is None:
        sys.exit(f"{program} {operation} {times}: {done.stderr[-2000:]}")
    return int(match[1])


def per_operation(program: str, operation: str) -> float:
    """Return the instructions of one: what a thousand more of them add."""
    return (count(program, operation, 2000) - count(program, operation, 1000)) / 1000


def read_expected() -> dict[str, float]:
    """Read the numbers that are kept in the repository."""
    lines = (line.split() for line in EXPECTED.read_text().splitlines())
    return {name: float(number) for name, number in lines}


def main() -> None:
    """Compare, or update."""
    program, *options = sys.argv[1:]
    expected = read_expected()
    found = {operation: per_operation(program, operation) for operation in expected}
    slower = False
    for operation, number in found.items():
        ratio = number / expected[operation] if expected[operation] else float("inf")
        slower |= ratio > 1 + TOLERANCE
        print(f"{operation:<10}{number:>9,.0f} instructions, {ratio:.2f} of what is expected")
    if "--update" in options:
        EXPECTED.write_text("".join(f"{name} {number:.0f}\n" for name, number in found.items()))
    elif slower:
        sys.exit(f"over {1 + TOLERANCE:.2f}: find out why, or update {EXPECTED.name}")


if __name__ == "__main__":
    main()
