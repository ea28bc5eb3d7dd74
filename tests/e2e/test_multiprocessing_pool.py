"""The example of a pool: eight processes that need one report."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from gunicorn_server import EXAMPLES

from uniflight_mp.segment import destroy
from uniflight_mp.shmfile import segment_name


def test_8_processes_of_a_pool_make_a_report_once():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(EXAMPLES / "multiprocessing_pool.py")]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=True
        )
    finally:
        destroy(segment_name("example-report"), "example-report")
    assert done.stderr == ""
    *lines, last = done.stdout.splitlines()
    found = [re.fullmatch(r"process (\d+): (\w+) +-> .*'made_by': (\d+)}", line) for line in lines]
    calls = [match.groups() for match in found if match]
    assert [role for _, role, _ in calls].count("leader") == 1
    assert [role for _, role, _ in calls].count("follower") == 7
    assert {maker for *_, maker in calls} == {pid for pid, role, _ in calls if role == "leader"}
    assert re.fullmatch(r"8 reports in \d+\.\d s", last)
