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
    large_result,
    memory,
    peers,
    saved,
    scopes,
    single_call,
    single_call_async,
    single_call_at_once,
    takeover,
    throughput,
    wake_up,
    wake_up_async,
    wake_up_crowd,
)
from .ratios import print_ratios
from .report import describe_environment, print_rows, to_json
from .stage import apart

FIGURES = {
    "single_call": single_call.run,
    "single_call_async": single_call_async.run,
    "single_call_at_once": single_call_at_once.run,
    "scopes": scopes.run,
    "high_contention_100": high_contention_100.run,
    "distributed_10x10": distributed_10x10.run,
    "wake_up": wake_up.run,
    "wake_up_async": wake_up_async.run,
    "wake_up_crowd": wake_up_crowd.run,
    "large_result": large_result.run,
    "throughput": throughput.run,
    "takeover": takeover.run,
    "idle": idle.run,
    "memory": memory.run,
    "import_time": import_time.run,
    "peers": peers.run,
}
PRINT = {"peers": peers.print_table}
_ASKED_FOR = ("peers",)  # takes as long as all others, and an environment of its own


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=", ".join(FIGURES))
    parser.add_argument("--quick", action="store_true", help="fewer rounds: does it run at all?")
    parser.add_argument(
        "--save-baseline", metavar="NAME", default=saved.LAST, help="keep the results as NAME"
    )
    parser.add_argument("--baseline", metavar="NAME", help="compare with what was kept as NAME")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    options = parser.parse_args()
    if unknown := set(options.figures) - set(FIGURES):
        parser.error(f"no figure {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}")
    if options.baseline and not saved.figures(options.baseline):
        parser.error(f"no baseline {options.baseline}: make it with --save-baseline")
    return options


def main() -> None:
    """Run the figures asked for, print each as soon as it is there."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that children are reaped
    environment = describe_environment()
    print("; ".join(f"{name} {value}" for name, value in environment.items()), flush=True)
    floors.build()
    machine = saved.machine()
    results = {}
    for figure in options.figures or [name for name in FIGURES if name not in _ASKED_FOR]:
        rows = apart(FIGURES[figure], options.quick)
        PRINT.get(figure, print_rows)(figure, rows)
        baseline = options.baseline and saved.load(options.baseline, figure)
        suite = saved.save(options.save_baseline, figure, rows, machine)
        if options.baseline:
            print_ratios(figure, baseline, suite)
        results[figure] = to_json(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"environment": environment, "figures": results}, file, indent=1)


if __name__ == "__main__":
    main()
