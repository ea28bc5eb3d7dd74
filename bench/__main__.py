"""``python -m bench``: see the package's docstring."""

from __future__ import annotations

import argparse
import json
import signal
import sys

from . import __doc__ as description
from . import (
    distributed_10x10,
    floors,
    high_contention_100,
    idle,
    import_time,
    memory,
    peers,
    single_call,
    single_call_async,
    takeover,
    wake_up,
    wake_up_async,
)
from .report import describe_environment, print_rows, to_json
from .stage import apart

FIGURES = {
    "single_call": single_call.run,
    "single_call_async": single_call_async.run,
    "high_contention_100": high_contention_100.run,
    "distributed_10x10": distributed_10x10.run,
    "wake_up": wake_up.run,
    "wake_up_async": wake_up_async.run,
    "takeover": takeover.run,
    "idle": idle.run,
    "memory": memory.run,
    "import_time": import_time.run,
    "peers": peers.run,
}
PRINT = {"peers": peers.print_table}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("--quick", action="store_true", help="fewer rounds: does it run at all?")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    return options


def main() -> None:
    """Run the figures asked for, print each as soon as it is there."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are reaped
    environment = describe_environment()
    print("; ".join(f"{name} {value}" for name, value in environment.items()), flush=True)
    floors.build()
    results = {}
    for figure in options.figures or FIGURES:
        rows = apart(FIGURES[figure], options.quick)
        PRINT.get(figure, print_rows)(figure, rows)
        results[figure] = to_json(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"environment": environment, "figures": results}, file, indent=1)


if __name__ == "__main__":
    main()
