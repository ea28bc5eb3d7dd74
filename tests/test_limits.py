"""Contract: the capacity of a table, and how much memory it takes."""

from __future__ import annotations

import dataclasses
import os
import warnings

import pytest

from uniflight_mp import Limits, Merger, TableUnavailable


def give(value):
    return value


# ---- limits -----------------------------------------------------------------------------


def test_the_limits_of_the_creator_hold_and_others_are_told(table_name, processes):
    limits = Limits(flights=64, waiters=100, threads=10)
    with warnings.catch_warnings(record=True) as caught:
        first = Merger(table_name, limits=limits)
        again = Merger(table_name, limits=limits)
    assert caught == []
    with pytest.warns(RuntimeWarning, match="the limits of the one that created it") as seen:
        other = Merger(table_name, limits=Limits(flights=128))
    assert "Limits(flights=64, waiters=100, threads=10" in str(seen[0].message)
    assert seen[0].filename == __file__  # the line that asked for other limits
    assert processes.start(limits_warned_of, table_name).result() == 1
    assert other._segment.table.geometry()["threads"] == 10
    assert {merger.execute("key", give, 1) for merger in (first, again, other)} == {1}


def limits_warned_of(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Merger(name)
    return len(caught)


def test_limits_may_be_rounded_up_without_a_warning(table_name):
    limits = Limits(flights=65, waiters=1, threads=3, inline_bytes=5000, result_bytes=1)
    with warnings.catch_warnings(record=True) as caught:
        first, second = Merger(table_name, limits=limits), Merger(table_name, limits=limits)
    assert caught == []
    sizes = first._segment.table.geometry()
    assert (sizes["flights"], sizes["threads"], sizes["inline_bytes"]) == (128, 3, 5056)
    assert second.execute("key", give, 1) == 1


def test_the_default_table_takes_less_than_8_mib_reserved(merger):
    status = os.stat(f"/dev/shm/{merger._segment.segment}")
    assert status.st_size < 8 << 20
    assert status.st_blocks * 512 >= status.st_size  # posix_fallocate: no SIGBUS later


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_limits_out_of_range_are_refused_by_name(field):
    for value in (0, -1, 1 << 60):
        with pytest.raises(ValueError, match=rf"Limits.{field} must be from 1 to .*, not"):
            Limits(**{field: value})
    for value in (1.0, "1", None, True):
        with pytest.raises(TypeError, match=f"Limits.{field} must be an int, not"):
            Limits(**{field: value})


def test_limits_that_are_too_large_together_are_an_error_at_once(table_name):
    with pytest.raises((ValueError, TableUnavailable)) as info:
        Merger(table_name, limits=Limits(flights=65536, inline_bytes=1 << 20))
    assert "Limits" in str(info.value)
