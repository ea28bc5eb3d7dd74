"""A build of the package with crash points, and stages to die on."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite("stage", "scenarios")

from stage import Actor, Nursery, Stage  # noqa: E402

ROOT = Path(__file__).parents[2]

_tables = itertools.count()


def build(directory, flags):
    """Build the package out of a copy, so that nothing is written into the checkout."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, directory)
    compiled = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("shm", "uniflight_mp"):
        shutil.copytree(ROOT / name, directory / name, ignore=compiled)
    made = subprocess.run(
        [sys.executable, "-c", "import setuptools; setuptools.setup()"]
        + ["-q", "build_ext", "--inplace", f"-j{os.cpu_count()}"],
        cwd=directory,
        env={**os.environ, "CFLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    # The extension is optional: a failure is told by nothing else.
    assert list((directory / "uniflight_mp").glob("_shm.*.so")), made.stdout + made.stderr
    return directory


@pytest.fixture(scope="session")
def crash_build(tmp_path_factory):
    """A directory with a package whose core can be killed at any step, and checks every unlock."""
    flags = "-DUNIFLIGHT_CRASH_POINTS -DUF_DEBUG"
    return build(tmp_path_factory.mktemp("crash-build"), flags)


@pytest.fixture(scope="session")
def lenient_build(tmp_path_factory):
    """The same without the checks, which end a process whose table is not sound."""
    return build(tmp_path_factory.mktemp("lenient-build"), "-DUNIFLIGHT_CRASH_POINTS")


@pytest.fixture(scope="module")
def crash_nursery(crash_build):
    """Where actors with crash points come from."""
    nursery = Nursery(crash_build)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def lenient_nursery(lenient_build):
    """Where actors that bear damage come from."""
    nursery = Nursery(lenient_build)
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def observer(crash_nursery):
    """A process that looks at tables and holds nothing of any."""
    actor = Actor(crash_nursery, "observer", [])
    yield actor
    actor.dismiss()
    actor.bury()


def _stage(nursery, observer, directory):
    stage = Stage(nursery, f"crash-test-{os.getpid()}-{next(_tables)}", directory, observer)
    yield stage
    stage.strike_the_set()


@pytest.fixture
def stage(crash_nursery, observer, tmp_path):
    """A stage for actors of the build with crash points."""
    yield from _stage(crash_nursery, observer, tmp_path)


@pytest.fixture
def lenient_stage(lenient_nursery, observer, tmp_path):
    """A stage for actors that bear damage."""
    yield from _stage(lenient_nursery, observer, tmp_path)
