"""Extra segments: what keeps one from being read is told as it is."""

from __future__ import annotations

import os

import pytest

from uniflight_mp.results import Extra, map_extra, read_extra, write_extra
from uniflight_mp.shmfile import path_of

CONTENT = b"x" * 10_000


@pytest.fixture
def extra(table_name):
    """The name of an extra segment that is not there yet."""
    extra = Extra(f"uniflight-test-{table_name}", 1, 2, 3)
    yield extra
    extra.remove()


@pytest.fixture(params=[read_extra, map_extra])
def read(request):
    """Which way of reading one."""
    return request.param


def test_an_extra_segment_that_is_gone_is_said_to_be_gone(extra, read):
    with pytest.raises(OSError, match="No such file or directory"):
        read(extra, (len(CONTENT), 0))


def test_something_else_in_the_place_of_an_extra_segment_is_said_to_be_none(extra, read):
    os.symlink("/dev/null", path_of(extra.name))
    with pytest.raises(OSError, match="symbolic links"):
        read(extra, (len(CONTENT), 0))


def test_another_size_and_another_content_than_was_published_are_told_apart(extra, read):
    size, checksum = write_extra(extra, memoryview(CONTENT))
    with pytest.raises(ValueError, match="fails its checksum"):
        read(extra, (size, checksum ^ 1))
    os.truncate(path_of(extra.name), size - 1)
    with pytest.raises(ValueError, match="another size"):
        read(extra, (size, checksum))


def test_no_umask_makes_an_extra_segment_unreadable(extra, read):
    former = os.umask(0o777)
    try:
        expected = write_extra(extra, memoryview(CONTENT))
    finally:
        os.umask(former)
    assert os.stat(path_of(extra.name)).st_mode & 0o777 == 0o600
    assert bytes(read(extra, expected)) == CONTENT
