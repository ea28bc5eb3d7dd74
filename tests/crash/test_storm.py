"""Hundreds of processes are killed and stopped at random moments; the judge reads their diaries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from history import judge
from stage import HERE, SHM
from storm import LIMITS, read_histories

MAY_RAISE = ("FlightTimeout", "LookupError", "SystemExit", "CancelledError")
NO_ROOM = ("table_full", "too_many_waiters", "too_many_threads", "damaged")


def rages(stage, directory, path, **config):
    """Run a storm to its end; return the verdict."""
    seed = int(os.environ.get("UNIFLIGHT_STORM_SEED", time.time_ns() % 1_000_000))
    directory.mkdir()
    config.update(table=stage.table, directory=str(directory), seed=seed)
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
    environment.pop("PYTHONPATH", None)
    if path:
        environment["PYTHONPATH"] = str(path)
    storm = subprocess.run(
        [sys.executable, str(HERE / "storm.py"), json.dumps(config)],
        env=environment,
        timeout=240,
        check=False,
        capture_output=True,
        text=True,
    )
    print(f"UNIFLIGHT_STORM_SEED={seed}")
    print(storm.stderr)
    verdict = judge(read_histories(directory), may_raise=MAY_RAISE)
    print(verdict)
    assert storm.returncode == 0
    return verdict


def the_sea_is_calm(stage):
    """After one open and one call nothing is in use, and there was room all the time."""
    stage.options = {"limits": LIMITS.__dict__}
    (newcomer,) = stage.enter("newcomer")
    newcomer.call("red")
    assert newcomer.outcome()["role"] == "leader"
    stage.is_empty(newcomer)
    stats = newcomer.ask("stats")
    print(stats)
    assert {reason: stats["solo"][reason] for reason in NO_ROOM} == dict.fromkeys(NO_ROOM, 0)
    newcomer.dismiss()
    names = sorted(file.name.partition(stage.table)[2] for file in SHM.glob(f"*-{stage.table}*"))
    assert names == ["", "~lock"]
    return stats


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["crash build", "as installed"])
def test_a_storm_of_kills_and_stops_breaks_no_promise(request, stage, tmp_path, kind, crash_build):
    path = crash_build if kind == "crash build" else None
    verdict = rages(stage, tmp_path / "diaries", path, kills=300, everybody=False)
    assert verdict.violations[:3] == []
    assert verdict.counts["kill"] >= 200
    assert verdict.counts["follower"] > 100
    assert verdict.counts["leader"] > 100
    assert verdict.counts["CancelledError"] > 10  # of tasks: there were loops among the workers
    stats = the_sea_is_calm(stage)
    assert stats["takeovers"] > 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_when_everybody_dies_again_and_again_nothing_is_left(stage, tmp_path, crash_build):
    verdict = rages(stage, tmp_path / "diaries", crash_build, kills=1200, everybody=True)
    assert verdict.violations[:3] == []
    assert sum(verdict.counts[what] for what in ("kill", "died")) >= 1200
    the_sea_is_calm(stage)
