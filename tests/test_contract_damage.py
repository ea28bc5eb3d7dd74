"""Contract: a table whose lock is held by a stopped process, or whose memory was overwritten."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import time

import pytest

from uniflight_mp import Limits, Merger, Role, TableCorrupt, TableUnavailable

TINY = Limits(flights=1, waiters=2, threads=64)


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


# ---- a lock that is held, a table that is damaged ---------------------------------------

HEADER, THREAD, GROUP = 256, 128, 128 + 64 * 256  # sizes, see shm/layout.h
DAMAGED_AT = 88


def map_table(merger):
    with open(f"/dev/shm/{merger._segment.segment}", "r+b") as file:
        return mmap.mmap(file.fileno(), 0)


def group_offset(merger):
    return HEADER + merger._segment.table.geometry()["threads"] * THREAD


def hold_every_lock(merger, ready):
    """Be the process that was stopped inside the table, for as long as the test likes."""
    memory = map_table(merger)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + group_offset(merger)
    libc = ctypes.CDLL(None)
    for group in range(merger._segment.table.geometry()["flights"] // 64):
        assert libc.pthread_mutex_lock(ctypes.c_void_p(start + group * GROUP)) == 0
    ready.touch()
    time.sleep(60)


@pytest.mark.shared
def test_a_lock_held_by_a_stopped_process_makes_calls_run_alone(table_name, hands, until, tmp_path):
    merger = Merger(table_name, limits=TINY)
    holder = hands.start(hold_every_lock, merger, tmp_path / "ready", where="forked")
    until((tmp_path / "ready").exists)
    holder.kill(signal.SIGSTOP)
    outcome = merger.flight("key", give, "own")
    assert (outcome.value, outcome.role) == ("own", Role.SOLO)
    assert merger.stats().solo["lock_timeout"] == 1
    with pytest.raises(TableUnavailable) as info:
        merger.with_options(strict=True).execute("key", never)
    assert info.value.reason == "lock_timeout"
    assert "stopped" in str(info.value)
    assert merger.forget("key") is False
    assert merger.flights() == []
    holder.kill()
    holder.join()
    assert merger.flight("key", give, 1).role is Role.LEADER


@pytest.mark.shared
def test_a_lock_held_by_a_stopped_process_stops_neither_leaders_nor_followers(
    table_name, hands, leading, followed, until, tmp_path
):
    merger = Merger(table_name, limits=TINY)
    leader = leading(merger, "key")
    call = hands.start(merger.with_options(timeout=10).flight, "key", never, where="forked")
    followed(merger)
    impatient = hands.start(
        merger.with_options(timeout=0.3, on_timeout="run").flight, "key", give, "own"
    )
    # It may have come and gone on a busy machine; then nobody leaves while the lock is held.
    until(lambda: impatient.finished() or merger.flights()[0].followers == 2)
    holder = hands.start(hold_every_lock, merger, tmp_path / "ready", where="forked")
    until((tmp_path / "ready").exists)
    assert impatient.result().value == "own"
    assert leader.outcome("value").value == "value"
    result = call.result() if call_is_fine(call) else None
    assert result is None or result.role is Role.SOLO
    holder.kill()
    holder.join()
    assert merger.flight("key", give, 1).role is Role.LEADER


def call_is_fine(call):
    """Whether a follower whose leader could not publish ran alone, or timed out, in time."""
    try:
        call.result()
    except (TimeoutError, AssertionError):
        return False
    return True


def test_a_table_given_up_as_damaged_is_replaced_for_all(merger, processes):
    first = os.stat(f"/dev/shm/{merger._segment.segment}").st_ino
    memory = map_table(merger)
    memory[DAMAGED_AT] = 1
    outcomes = [
        merger.flight("key", give, 1),
        processes.start(merger.flight, "k", give, 2).result(),
    ]
    assert [outcome.value for outcome in outcomes] == [1, 2]
    assert outcomes[1].role is Role.LEADER
    assert os.stat(f"/dev/shm/{merger._segment.segment}").st_ino != first
    assert merger.flight("key", give, 3).role is Role.LEADER


@pytest.mark.shared
def test_a_follower_whose_table_is_damaged_runs_alone_and_its_leader_is_fine(
    merger, hands, leading, followed
):
    leader = leading(merger, "key")
    calls = [hands.start(merger.flight, "key", give, "own", where=w) for w in ("threads", "forked")]
    followed(merger, 2)
    memory = map_table(merger)
    slot = merger._segment.table.flights()[0][11]
    memory[group_offset(merger) + slot // 64 * GROUP + 128 + slot % 64 * 256] = 77  # its state
    assert [call.result().value for call in calls] == ["own", "own"]
    assert {call.result().role for call in calls} == {Role.SOLO}
    assert leader.outcome("value").value == "value"
    assert merger.flight("key", give, 1).role is Role.LEADER


@pytest.mark.shared
def test_a_value_that_fails_its_checksum_is_never_returned(merger, hands, leading, followed):
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", give, "own", where="forked")
    followed(merger)
    call.kill(signal.SIGSTOP)
    leader.finish("the value")
    memory = map_table(merger)
    at = memory.find(b"the value")
    memory[at : at + 3] = b"THE"
    call.kill(signal.SIGCONT)
    outcome = call.result()
    assert (outcome.value, outcome.role) == ("own", Role.SOLO)


@pytest.mark.shared
@pytest.mark.parametrize("value", ["v" * 10_000, b"v" * 10_000], ids=["encoded", "bytes"])
@pytest.mark.parametrize("damage", ["another byte", "cut short", "gone"])
def test_a_large_value_that_fails_its_checksum_is_never_returned(
    merger, hands, leading, followed, value, damage
):
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", give, "own", where="forked")
    followed(merger)
    call.kill(signal.SIGSTOP)
    leader.finish(value)
    (extra,) = [name for name in os.listdir("/dev/shm") if merger.name in name and "~r" in name]
    with open(f"/dev/shm/{extra}", "r+b") as file:
        file.seek(5000)
        if damage == "another byte":
            file.write(b"X")
        elif damage == "cut short":
            file.truncate()
    if damage == "gone":
        os.unlink(f"/dev/shm/{extra}")
    call.kill(signal.SIGCONT)
    assert call.result().value == "own"


@pytest.mark.shared
def test_what_is_no_table_is_called_corrupt(table_name):
    with Merger(table_name) as merger:
        path = f"/dev/shm/{merger._segment.segment}"
    with open(path, "r+b") as file:
        file.write(b"\0" * 8)
    with pytest.raises(TableCorrupt, match=table_name) as info:
        Merger(table_name)
    assert "destroy" in str(info.value)
    os.unlink(path)
