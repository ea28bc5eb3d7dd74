"""A process is killed, or stopped, at every step of the core; the others live on.

``scenarios`` brings a victim to each point. Here is what holds after all of them: who survived
has a value, a bystanders' flight in the same group goes on as if nothing had happened, nobody else
dies, the history is lawful, and after one open and one call nothing is in use.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from crash_worker import SMALL
from scenarios import KEY, SCENARIOS, Strike

from uniflight_mp import _shm

SOURCES = Path(__file__).parents[2] / "shm"
POINTS = re.findall(r"^ +POINT\((\w+)\)", (SOURCES / "crash.h").read_text(), re.MULTILINE)

CASES = [
    pytest.param(point, scenario, action, id=f"{point}-{scenario.__name__}-{action}")
    for point in POINTS
    for scenario in SCENARIOS.get(point, ())
    for action in ("kill", "stop")
]


def test_every_crash_point_has_a_scenario(crash_build, observer):
    build = observer.ask("build")
    assert build["file"].startswith(str(crash_build))
    assert sorted(build["points"]) == sorted(POINTS) == sorted(SCENARIOS)


def test_the_package_as_installed_has_no_crash_points():
    assert not hasattr(_shm, "arm")
    assert not hasattr(_shm, "CRASH_POINTS")
    # As strings of their own: debug information may hold the names of the enum.
    core = Path(_shm.__file__).read_bytes()
    assert [point for point in POINTS if b"\0" + point.encode() + b"\0" in core] == []


def test_the_crash_points_are_strings_in_the_crash_build(observer):
    core = Path(observer.ask("build")["file"]).read_bytes()
    assert all(b"\0" + point.encode() + b"\0" in core for point in POINTS)


@pytest.mark.parametrize(("point", "scenario", "action"), CASES)
def test_the_others_live_on(stage, point, scenario, action):
    strike = Strike(point, action)
    leading, following = stage.enter("bystander", "bystander")
    gate = stage.gate()
    source = leading.leads("bystanders", gate=str(gate))
    following.call("bystanders")
    stage.followers(1)

    scenario(stage, strike)

    if not strike.kills:
        a_newcomer_is_served_beside_the_stopped(stage)
        strike.victim.go_on()
        the_victim_ends_its_call(strike.victim)
    gate.open()
    assert leading.outcome()["role"] == "leader"
    shared = following.outcome()
    assert (shared["role"], shared["execution"]) == ("follower", source["execution"])
    stage.curtain("LookupError", "SystemExit", "LeaderDied", "KeyboardInterrupt")


def a_newcomer_is_served_beside_the_stopped(stage):
    newcomer = stage.enter("newcomer")[0]
    newcomer.call(KEY, size=SMALL, options={"timeout": 0.1, "on_timeout": "run"})
    assert newcomer.outcome()["what"] == "return"


def the_victim_ends_its_call(victim):
    victim.expect("done")
