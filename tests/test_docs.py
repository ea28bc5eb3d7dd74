"""The documentation's code runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tables need Linux")

DOCS = Path(__file__).parents[1] / "docs"
TABLE = "prices"  # of the page; a test has one of its own


def run(command, text):
    """Run a program; return what it printed."""
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ["PATH"]))
    done = subprocess.run(
        command,
        input=text,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), text
    return done.stdout


def test_the_code_on_the_page_about_scopes_runs(table_name):
    page = (DOCS / "scopes.md").read_text().replace(TABLE, table_name)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    python = "\n".join(block for language, block in blocks if language == "python")
    shell = "\n".join(block for language, block in blocks if language == "sh")
    assert {language for language, _ in blocks} == {"python", "sh"}
    partitions = "{found.partition for found in find_segments(merger.name)}"
    seen = f"from uniflight_mp.shmfile import find_segments\nprint(sorted({partitions}))\n"
    assert "'acme'" in run([sys.executable, "-W", "error", "-"], python + seen)
    assert "@PerTenant@acme" in run(["sh", "-e"], shell)
    assert table_name not in "".join(os.listdir("/dev/shm"))
