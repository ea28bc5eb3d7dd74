#!/usr/bin/env python3
"""Checks the models of the protocol with spin: flight.pml, and bell.pml for event loops' bells.

    run.py [--quick]   every configuration in about two minutes, less than 4 GiB
    run.py --full      larger ones as well; minutes, less than 6 GiB
    run.py --mutants   breaks one rule at a time; spin has to find a counterexample

Needs spin and a C compiler on PATH. Everything is built in a temporary directory; with
--keep DIR it stays, with the trail of each counterexample. Exit status: 0 if all passed,
1 if a configuration failed or was not searched to its end, or a mutant survived, 2 if a
tool is missing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).resolve().parent
MAX_DEPTH = 100_000


@dataclass(frozen=True)
class Config:
    name: str
    switches: str  # NAME or NAME=value, separated by blanks: the -D of the model
    full: bool = False  # only with --full
    cycles: bool = False  # look for cycles (calls that never return), not for errors
    bitstate: bool = False  # too large to be searched to the end
    model: str = "flight.pml"


@dataclass(frozen=True)
class Mutant:
    name: str  # the model's switch, without M_
    switches: str
    cycles: bool = False
    model: str = "flight.pml"


# 3 callers, 1 call each, 2 slots, 3 cells, 1 key, 1 kill and nothing else, unless it says so.
CONFIGS = (
    Config("two-calls", "CALLS=2 CANCELS=1"),
    Config("four-callers", "CALLERS=4 KILLS=2 NC=2 CANCELS=1"),
    Config("two-keys", "KEYS=2 KILLS=3 CANCELS=1"),
    Config("forget", "FORGETS=1 KILLS=2 CANCELS=1 NS=3"),
    Config("leases", "LEASES=2 KILLS=2 CANCELS=1 TIMEOUTS=1 MAX_TAKEOVERS=1"),
    Config("died", "CALLERS=4 KILLS=3 MAX_TAKEOVERS=1"),
    Config("died-at-once", "KILLS=2 LEASES=1 MAX_TAKEOVERS=0 TIMEOUTS=1"),
    Config("lock-timeouts", "LOCK_TIMEOUTS=2 KILLS=2 CANCELS=1 TIMEOUTS=1"),
    Config("reborn", "REBORN CALLS=2 KILLS=1"),
    Config("false-life", "LIES=2 KILLS=3 CANCELS=1 TIMEOUTS=1"),
    Config("no-room", "KEYS=2 NS=1 NC=1 KILLS=2 CALLS=2"),
    Config("semaphores", "SEMAPHORES SEALING KILLS=2 CANCELS=1"),
    Config("prompt", "PROMPT KILLS=2 CANCELS=1 TIMEOUTS=1"),
    Config("prompt-two-steps", "PROMPT SEALING KILLS=2 LEASES=1"),
    Config("chain", "CALLERS=4 SEMAPHORES NO_LOOKS KILLS=0 CANCELS=1 TIMEOUTS=2"),
    Config("chain-killed", "CALLERS=4 SEMAPHORES KILLS=2"),
    Config("chain-prompt", "CALLERS=4 PROMPT TIMEOUTS=1"),
    Config("chain-died", "CALLERS=4 PROMPT KILLS=0 LEASES=1 MAX_TAKEOVERS=0 TIMEOUTS=1"),
    Config("cycles", "CANCELS=1 TIMEOUTS=1 LOCK_TIMEOUTS=1", cycles=True),
    Config("sealing", "CALLERS=4 SEALING KILLS=2 CANCELS=1"),
    Config("sealing-two-calls", "CALLS=2 SEALING CANCELS=1 NS=3"),
    Config("sealing-forget", "CALLERS=4 SEALING FORGETS=1 KILLS=2 NS=3"),
    Config("sealing-leases", "CALLERS=4 SEALING LEASES=1 KILLS=2 NS=3"),
    Config("sealing-died", "CALLERS=4 SEALING KILLS=2 TIMEOUTS=1 MAX_TAKEOVERS=1"),
    Config("sealing-strict", "STRICT LOCK_TIMEOUTS=1 KILLS=2 CANCELS=1"),
    Config("sealing-prompt", "CALLERS=4 SEALING PROMPT"),
    Config("sealing-cycles", "CALLERS=4 SEALING CANCELS=1", cycles=True),
    Config("bell", "FAILS=2 CANCELS=2 STOPS=1 DEATHS=1", model="bell.pml"),
    Config("bell-two-rings", "QUEUE=2 FAILS=2 CANCELS=2", model="bell.pml"),
    Config("bell-cycles", "FAILS=2 CANCELS=2", model="bell.pml", cycles=True),
    Config("two-calls-2", "CALLS=2 KILLS=2 CANCELS=1 TIMEOUTS=1 MAX_TAKEOVERS=1", full=True),
    Config("two-calls-3", "CALLS=2 KILLS=3 CANCELS=1", full=True),
    Config("two-calls-reborn", "REBORN CALLS=2 KILLS=2 CANCELS=1 MAX_TAKEOVERS=1", full=True),
    Config("two-calls-leases", "CALLS=2 LEASES=1 CANCELS=1 TIMEOUTS=1", full=True),
    Config("two-calls-lock", "CALLS=2 LOCK_TIMEOUTS=1 KILLS=2 TIMEOUTS=1", full=True),
    Config("two-calls-died", "CALLS=2 KILLS=2 LEASES=1 MAX_TAKEOVERS=0", full=True),
    Config("two-calls-two-keys", "CALLS=2 KEYS=2 FORGETS=1", full=True),
    Config(
        "two-calls-no-looks", "CALLS=2 SEMAPHORES NO_LOOKS KILLS=0 CANCELS=1 TIMEOUTS=1", full=True
    ),
    Config("four-all", "CALLERS=4 KILLS=2 CANCELS=1 TIMEOUTS=1 LEASES=1 LIES=1 NC=2", full=True),
    Config("four-two-keys", "CALLERS=4 KEYS=2 KILLS=2 CANCELS=1 TIMEOUTS=1", full=True),
    Config("chain-lock", "CALLERS=4 SEMAPHORES LOCK_TIMEOUTS=1 KILLS=1 TIMEOUTS=1", full=True),
    Config("four-prompt", "CALLERS=4 PROMPT KILLS=2 CANCELS=1 TIMEOUTS=1", full=True),
    Config(
        "three-all",
        "KILLS=2 CANCELS=1 TIMEOUTS=1 LOCK_TIMEOUTS=1 LEASES=1 FORGETS=1 LIES=1 "
        "MAX_TAKEOVERS=1 SEALING NC=2",
        full=True,
    ),
    Config("sealing-two-calls-2", "CALLS=2 SEALING KILLS=2 TIMEOUTS=1 NS=3", full=True),
    Config("sealing-two-calls-leases", "CALLS=2 SEALING LEASES=1 CANCELS=1 NS=3", full=True),
    Config("sealing-two-calls-forget", "CALLS=2 SEALING FORGETS=2 CANCELS=1 NS=3", full=True),
    Config("sealing-all", "CALLERS=4 SEALING KILLS=2 CANCELS=1 TIMEOUTS=1 NS=3", full=True),
    Config("sealing-lock", "CALLERS=4 SEALING LOCK_TIMEOUTS=1 KILLS=2 CANCELS=1", full=True),
    Config("sealing-reborn", "CALLS=2 SEALING REBORN KILLS=1 CANCELS=1 NS=3", full=True),
    Config("sealing-four-strict", "CALLERS=4 STRICT KILLS=2 CANCELS=1", full=True),
    Config("sealing-four-prompt", "CALLERS=4 SEALING PROMPT KILLS=2 CANCELS=1", full=True),
    Config("cycles-sealing", "CALLS=2 SEALING LEASES=1 NS=3", full=True, cycles=True),
    Config("cycles-two-calls", "CALLS=2 CANCELS=1 TIMEOUTS=1", full=True, cycles=True),
    Config("cycles-semaphores", "SEMAPHORES KILLS=2 CANCELS=1 LEASES=1", full=True, cycles=True),
)

# Each is first run unbroken: the counterexample has to come from the broken rule.
MUTANTS = (
    Mutant("DETACH_BEFORE_DONE", "KILLS=2"),
    Mutant("LOOKUP_ACCEPTS_DONE", "KILLS=0 CALLS=2"),
    Mutant("DONE_BEFORE_PAYLOAD", "KILLS=2"),
    Mutant("PAYLOAD_OUTSIDE_LOCK", "KILLS=0 LEASES=1"),
    Mutant("NO_FENCE", "KILLS=0 LEASES=1"),
    Mutant("NO_EPOCH", "KILLS=0 LEASES=1"),
    Mutant("TAKEOVER_TRUSTS_THE_LOOK", "KILLS=1"),
    Mutant("TAKEOVER_EPOCH_FIRST", "KILLS=1 LOCK_TIMEOUTS=1"),
    Mutant("TAKEOVER_STATE_FIRST", "KILLS=1 CANCELS=1"),
    Mutant("GIVE_UP_BUMPS_EPOCH", "KILLS=1 LEASES=1 MAX_TAKEOVERS=0"),
    Mutant("DEATHS_NOT_COUNTED", "KILLS=2 MAX_TAKEOVERS=1"),
    Mutant("JOIN_AFTER_SWEEP", "CALLERS=4 KILLS=3 NC=2"),
    Mutant("OWNER_WITHOUT_GENERATION", "KILLS=1 CALLS=2 REBORN"),
    Mutant("RESIGNED_WITHOUT_EPOCH", "KILLS=0 LOCK_TIMEOUTS=1 LEASES=1"),
    Mutant("SWEEP_IGNORES_RESIGNED", "KILLS=0 LOCK_TIMEOUTS=1"),
    Mutant("REPAIR_KEEPS_ATTACHED", "KILLS=2"),
    Mutant("REPAIR_KEEPS_LISTS", "KILLS=2"),
    Mutant("REPAIR_WITHOUT_SWEEP", "KILLS=2"),
    Mutant("LEAVE_KEEPS_DEAD", "CALLERS=4 PROMPT CANCELS=1 TIMEOUTS=1"),
    Mutant("NO_SECOND_LOOK", "SEMAPHORES KILLS=1"),
    Mutant("FINISH_SETS_NO_CURSOR", "CALLERS=4 SEMAPHORES NO_LOOKS KILLS=0"),
    Mutant("GIVE_UP_SETS_NO_CURSOR", "CALLERS=4 PROMPT KILLS=0 LEASES=1 MAX_TAKEOVERS=0"),
    Mutant("CURSOR_STAYS", "CALLERS=4 SEMAPHORES NO_LOOKS KILLS=0 TIMEOUTS=1"),
    Mutant("CURSOR_NOT_STORED", "SEMAPHORES NO_LOOKS KILLS=0"),
    Mutant("LEAVE_PASSES_NOTHING_ON", "CALLERS=4 SEMAPHORES NO_LOOKS KILLS=0"),
    Mutant("LEAVE_PASSES_ON_TO_THE_DEAD", "CALLERS=4 PROMPT KILLS=1"),
    Mutant("TIMED_OUT_PASSES_NOTHING_ON", "CALLERS=4 SEMAPHORES NO_LOOKS KILLS=0 TIMEOUTS=1"),
    Mutant("REPAIR_KEEPS_CURSOR", "SEMAPHORES KILLS=1"),
    Mutant("ABANDON_WAKES_NOBODY", "SEMAPHORES NO_LOOKS KILLS=0 CANCELS=1"),
    Mutant("TAKEOVER_WAKES_NOBODY", "PROMPT CANCELS=1"),
    Mutant("LEAVE_WAKES_NOBODY", "PROMPT TIMEOUTS=1"),
    Mutant("FINISH_WAKES_NO_SUCCESSOR", "PROMPT SEALING KILLS=2"),
    Mutant("SWEEP_WAKES_NO_SUCCESSOR", "PROMPT CALLERS=4 KILLS=2 NC=2"),
    Mutant("REPAIR_POSTS_NOBODY", "PROMPT KILLS=1"),
    Mutant("SEAL_AFTER_ENCODING", "SEALING KILLS=0"),
    Mutant("SEAL_GIVES_UP", "STRICT KILLS=0 LOCK_TIMEOUTS=1"),
    Mutant("DETACH_BEFORE_SEAL", "SEALING"),
    Mutant("REPAIR_KEEPS_SEALED", "SEALING"),
    Mutant("UNSEAL_FIRST", "CALLERS=4 SEALING KILLS=2"),
    Mutant("UNSEAL_FORGOTTEN", "SEALING FORGETS=1 NS=3"),
    Mutant("MOVE_FORGOTTEN", "SEALING FORGETS=1 NS=3"),
    Mutant("LEADS_BESIDE_NEWER", "SEALING KILLS=1"),
    Mutant("MOVE_KEEPS_GENERATION", "CALLERS=4 SEALING"),
    Mutant("MOVE_LEAVES_ORPHAN", "SEALING CANCELS=1 KILLS=0"),
    Mutant("MOVE_WAKES_NOBODY", "CALLERS=4 SEALING PROMPT"),
    Mutant("SLEEPS_NOT", "SEMAPHORES KILLS=0", cycles=True),
    Mutant("NO_EARLY_LOOK", "", model="bell.pml"),
    Mutant("NO_LOOK_AFTER_LATE_BELL", "FAILS=1", model="bell.pml"),
    Mutant("LOOKS_BEFORE_DRAINING", "", model="bell.pml"),
    Mutant("LOOKS_AT_ONE", "", model="bell.pml"),
    Mutant("CLOSES_IN_USE", "", model="bell.pml"),
    Mutant("RINGS_BEFORE_DONE", "", model="bell.pml"),
    Mutant("RING_WAITS", "STOPS=1", model="bell.pml"),
)


@dataclass
class Result:
    states: int = 0
    depth: int = 0
    seconds: float = 0.0
    mebibytes: float = 0.0
    errors: int = 0
    finding: str = ""  # what spin says of the first error
    complete: bool = False


def search(
    directory: Path, model: str, switches: str, *, cycles: bool, bitstate: bool, memory: int
) -> Result:
    """Builds and runs one verifier. RuntimeError if spin or the compiler refuses."""
    shutil.copy(MODELS / model, directory / model)
    defines = [f"-D{switch}" for switch in switches.split()]
    (directory / "switches").write_text(" ".join(defines) + "\n")
    call(["spin", *defines, "-a", model], directory)
    flags = ["-O1", "-w", f"-DMEMLIM={memory}", "-DNOFAIR", "-DVECTORSZ=2048"]
    flags += ["-DNP"] if cycles else ["-DSAFETY"]
    flags += ["-DBITSTATE"] if bitstate else ["-DCOLLAPSE"]
    call([compiler(), *flags, "-o", "pan", "pan.c"], directory)
    started = time.monotonic()
    options = (
        [f"-m{MAX_DEPTH}"] + (["-l"] if cycles else []) + (["-w32", "-k2"] if bitstate else [])
    )
    done = subprocess.run(["./pan", *options], cwd=directory, capture_output=True, text=True)
    output = done.stdout + done.stderr
    (directory / "output").write_text(output)
    result = Result(seconds=time.monotonic() - started)
    if found := re.search(r"depth reached (\d+), errors: (\d+)", output):
        result.depth, result.errors = int(found[1]), int(found[2])
        result.complete = "Search not completed" not in output and "too small" not in output
    if found := re.search(r"^\s*(\d+)(?:\.0)? states, stored", output, re.M):
        result.states = int(found[1])
    if found := re.search(r"([\d.]+)\s+total actual memory", output):
        result.mebibytes = float(found[1])
    if found := re.search(r"^pan:\d+: (.*?)(?: \(at depth \d+\))?$", output, re.M):
        result.finding = found[1]
    return result


def call(command: list[str], directory: Path) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if done.returncode != 0 or "Error" in done.stdout:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")


def compiler() -> str:
    return next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), "")


def check(config: Config, directory: Path, memory: int) -> bool:
    result = search(
        directory,
        config.model,
        config.switches,
        cycles=config.cycles,
        bitstate=config.bitstate,
        memory=memory,
    )
    passed = result.errors == 0 and (result.complete or config.bitstate) and result.states > 0
    report(config.name, result, "ok" if passed else result.finding or "not searched to the end")
    return passed


def kill(mutant: Mutant, directory: Path, memory: int) -> bool:
    def run(switches: str, subdirectory: str) -> Result:
        (directory / subdirectory).mkdir(exist_ok=True)
        return search(
            directory / subdirectory,
            mutant.model,
            switches,
            cycles=mutant.cycles,
            bitstate=False,
            memory=memory,
        )

    unbroken = run(mutant.switches, "unbroken")
    if unbroken.errors or not unbroken.complete:
        report(mutant.name.lower(), unbroken, f"FAILS UNBROKEN: {unbroken.finding}")
        return False
    result = run(f"{mutant.switches} M_{mutant.name}", "broken")
    killed = result.errors > 0
    report(mutant.name.lower(), result, f"killed: {result.finding}" if killed else "SURVIVED")
    return killed


def report(name: str, result: Result, verdict: str) -> None:
    if len(verdict) > 90:
        verdict = verdict[:87] + "..."
    print(
        f"{name:26} {result.states:>11,} states  depth {result.depth:>5}  "
        f"{result.seconds:>6.1f} s  {result.mebibytes:>6,.0f} MiB  "
        f"errors {result.errors}  {verdict}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="the default; what CI runs")
    mode.add_argument("--full", action="store_true", help="the larger configurations as well")
    mode.add_argument("--mutants", action="store_true", help="broken rules have to be found")
    parser.add_argument("--only", metavar="NAME", help="one configuration or mutant")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="build here and leave it")
    options = parser.parse_args()
    missing = [tool for tool in ("spin",) if not shutil.which(tool)]
    missing += [] if compiler() else ["gcc"]
    if missing:
        print(
            f"{' and '.join(missing)} not found on PATH: install the distribution's packages "
            "of these names (Debian, Ubuntu: apt install spin gcc)",
            file=sys.stderr,
        )
        return 2
    memory = 5900 if options.full else 3900
    todo = MUTANTS if options.mutants else [c for c in CONFIGS if options.full or not c.full]
    if options.only:
        known = [*CONFIGS, *MUTANTS]
        todo = [item for item in known if item.name.lower() == options.only.lower()]
        if not todo:
            parser.error(f"no {options.only}: {', '.join(item.name for item in known)}")
    passed = 0
    with tempfile.TemporaryDirectory(prefix="uniflight-model-") as temporary:
        for item in todo:
            directory = (options.keep or Path(temporary)) / item.name.lower()
            directory.mkdir(parents=True, exist_ok=True)
            run = kill if isinstance(item, Mutant) else check
            passed += run(item, directory.resolve(), memory)
    print(f"{passed} passed, {len(todo) - passed} failed")
    return 0 if passed == len(todo) and passed else 1


if __name__ == "__main__":
    sys.exit(main())
