"""The demo: it passes, it cleans up after itself, and it would notice if a key ran too often."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from crew import wait_until

from uniflight_mp import segment, shmfile
from uniflight_mp.cli import demo
from uniflight_mp.cli.demo import Call, Execution, Kill, Run, judge

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tables need Linux")

COMMAND = [sys.executable, "-m", "uniflight_mp", "demo"]


def tables_of(pid):
    return [found for found in shmfile.find_segments() if found.name.startswith(f"demo-{pid}-")]


def members_of_session(leader):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


# ---- the whole thing ---------------------------------------------------------------------------


def test_the_demo_passes_in_plain_lines_when_piped_and_leaves_nothing():
    with subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        output, errors = running.communicate(timeout=60)
    assert running.returncode == 0, output + errors
    assert errors == ""
    assert all(line.isprintable() for line in output.split("\n"))
    assert output.count("led by pid") == 10
    assert re.search(r"takeovers +│ +1 ", output)
    assert re.search(r"executions .* 11 ", output)
    assert re.search(r"slowest takeover.* [0-9.]+ ms", output)
    assert tables_of(running.pid) == []
    assert members_of_session(running.pid) == []


def test_the_demo_in_event_loops_counts_each_task_and_a_worker_once_in_the_table():
    result = subprocess.run([*COMMAND, "--async"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert "Each has an event loop, and 5 tasks in it want each key." in result.stdout
    assert re.search(r"takeovers +│ +1 ", result.stdout)
    assert re.search(r"executions .* 11 ", result.stdout)
    assert "sku:1: led by pid" in result.stdout
    assert result.stdout.count(", 7 followers") + result.stdout.count(", 6 followers") == 10
    # 8 workers until one is killed, in the fifth key or a later one; then 7.
    assert int(re.search(r"calls +│ +(\d+) ", result.stdout)[1]) in range(375, 400, 5)


def test_the_demo_draws_on_a_terminal():
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(COMMAND, stdin=theirs, stdout=theirs, env=environment) as running:
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # the terminal hung up: EIO
            while chunk := os.read(ours, 65536):
                drawn += chunk
    os.close(ours)
    assert running.returncode == 0
    assert b"\x1b[" in drawn
    assert drawn.count(b"sku:10") > 10  # again and again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_leaves_no_process_and_no_table(number):
    with subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert [running.stdout.readline() for _ in range(3)][2].startswith("sku:1: led by pid")
        assert len(members_of_session(running.pid)) > 8
        os.killpg(running.pid, number)  # as a terminal does
        running.communicate(timeout=60)
    assert running.returncode not in (0, -number)
    assert members_of_session(running.pid) == []
    assert tables_of(running.pid) == []


def test_workers_of_a_demo_that_was_killed_go_by_themselves():
    with subprocess.Popen(
        COMMAND, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert [running.stdout.readline() for _ in range(3)][2].startswith("sku:1: led by pid")
        running.kill()
    wait_until(lambda: members_of_session(running.pid) == [])
    for found in tables_of(running.pid):
        segment.destroy(found.segment, found.name)


@pytest.mark.parametrize("seconds", ["0", "-1", "600", "soon"])
def test_a_senseless_duration_is_wrong_usage(seconds):
    result = subprocess.run([*COMMAND, "--seconds", seconds], capture_output=True, timeout=60)
    assert result.returncode == 2


def without_the_library(merger, link, journal, seconds):
    for key, _ in demo._orders(link):
        token = demo._expensive(key, journal, seconds)["token"]
        link.send([Call(key, os.getpid(), token, "leader", os.getpid(), 0, 0)])


def dying(merger, link, journal, seconds):
    os._exit(3)


OTHER_WORK = """
import sys
import test_demo
from rich.console import Console
from uniflight_mp.cli import demo
sys.exit(0 if demo.run(Console(), 0.05, getattr(test_demo, sys.argv[1])) else 1)
"""


def run_with(work):
    """Run the demo with other workers; in a process that has one thread, as the command has."""
    return subprocess.run(
        [sys.executable, "-c", OTHER_WORK, work.__name__],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_demo_fails_if_every_process_runs_the_function_itself():
    result = run_with(without_the_library)
    assert result.returncode == 1, result.stderr
    assert "sku:3 ran 8 times instead of 1" in result.stdout


def test_the_demo_fails_if_workers_die_of_themselves():
    result = run_with(dying)
    assert result.returncode == 1, result.stderr
    assert "died of itself" in result.stdout


# ---- the verdict -------------------------------------------------------------------------------

SECONDS = 0.2


@pytest.fixture
def good():
    """A run of three workers and two keys that kept every promise; pid 1 was killed in b."""
    return Run(
        seconds=SECONDS,
        callers={"a": 3, "b": 3},
        calls=[
            Call("a", 1, "t1", "leader", 1, 2, 0),
            Call("a", 2, "t1", "follower", 1, 2, 0),
            Call("a", 3, "t1", "follower", 1, 2, 0),
            Call("b", 2, "t3", "leader", 2, 1, 1),
            Call("b", 3, "t3", "follower", 2, 1, 1),
        ],
        executions=[
            Execution("a", 1, "t1", 1_000),
            Execution("b", 1, "t2", 2_000),
            Execution("b", 2, "t3", 5_000_000),
        ],
        kill=Kill("b", 1, 3_000_000),
    )


def test_a_run_that_kept_every_promise_is_accepted(good):
    assert judge(good) == []
    assert good.calls_begun == 6
    assert good.seconds_saved == pytest.approx(3 * SECONDS)
    assert good.takeover_seconds == [pytest.approx(0.002)]


def test_an_execution_counted_twice_is_found(good):
    good.executions.append(good.executions[0])
    assert judge(good) == ["a ran 2 times instead of 1"]


def test_a_second_successor_of_the_killed_leader_is_found(good):
    good.executions.append(Execution("b", 3, "t4", 6_000_000))
    assert "b ran 3 times instead of 2" in judge(good)


def test_a_key_that_never_ran_is_found(good):
    del good.executions[0]
    assert "a ran 0 times instead of 1" in judge(good)


def test_a_killed_leader_without_a_successor_is_found(good):
    del good.executions[2]
    assert "b ran 1 times instead of 2" in judge(good)


def test_two_executions_of_the_killed_key_by_others_are_found(good):
    good.executions[1] = replace(good.executions[1], pid=3)
    assert judge(good) == ["b did not run in the killed leader first and in another worker then"]


def test_an_execution_of_an_unknown_key_is_found(good):
    good.executions.append(Execution("c", 1, "t9", 1))
    assert judge(good) == ["c ran, but nobody asked for it"]


def test_a_wrong_value_is_found(good):
    good.calls[4] = replace(good.calls[4], token="t2")  # that of the dead
    assert judge(good) == ["pid 3 got a wrong value for b"]


def test_all_calls_of_the_killed_worker_may_be_missing_and_no_others(good):
    good.tasks, good.callers = 2, {"a": 6, "b": 6}
    good.calls = [call for call in good.calls for _ in range(2)]
    assert judge(good) == []
    del good.calls[-1]
    assert judge(good) == ["3 of 6 calls of b came back"]


def test_a_call_that_did_not_come_back_is_found(good):
    del good.calls[2]
    assert judge(good) == ["2 of 3 calls of a came back"]


def test_an_error_in_a_worker_is_found(good):
    good.calls[1] = replace(good.calls[1], token="", error="LeaderDied: all")
    assert judge(good) == ["pid 2 got an error for a: LeaderDied: all"]


def test_a_wrong_count_of_takeovers_is_found(good):
    good.calls[1] = replace(good.calls[1], takeovers=1)
    assert judge(good) == ["pid 2 was told of 1 takeovers of a"]


def test_a_run_in_which_nobody_was_killed_is_not_accepted(good):
    good.kill = None
    assert "no leader could be killed while all others waited" in judge(good)


def test_a_failure_on_the_way_is_not_forgotten(good):
    good.failures.append("worker 9 died of itself")
    assert judge(good) == ["worker 9 died of itself"]
