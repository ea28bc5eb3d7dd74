"""Contract: opening a table, what may be in its way, and losing it while it is in use."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time

import pytest
from crew import BOUND, wait_for_followers

from uniflight_mp import Merger, Role, TableMismatch, TableUnavailable, segment
from uniflight_mp.segment import Segment, destroy
from uniflight_mp.shmfile import locked, path_of, segment_name

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


def as_user(uid, function, *args):
    """Call as another user, in a child."""
    os.setgid(uid)
    os.setuid(uid)
    return function(*args)


# ---- names and modes --------------------------------------------------------------------


def test_a_table_is_one_file_of_mode_0600_whatever_the_umask(table_name, hands):
    for umask in (0, 0o277):
        hands.start(open_with_umask, table_name, umask, where="forked").result()
        path = path_of(segment_name(table_name))
        status = os.stat(path)
        assert status.st_mode & 0o7777 == 0o600
        assert os.stat(path + "~lock").st_mode & 0o7777 == 0o600
        destroy(segment_name(table_name), table_name)


def open_with_umask(name, umask):
    os.umask(umask)
    assert Merger(name).execute("key", give, 1) == 1


@needs_root
def test_every_user_has_tables_of_their_own(table_name, hands, leading):
    merger = Merger(table_name)
    leading(merger, "key")
    outcome = hands.start(as_user, NOBODY, lead_elsewhere, table_name, where="forked").result()
    assert outcome.role is Role.LEADER


def lead_elsewhere(name):
    with Merger(name) as merger:
        outcome = merger.flight("key", give, 1)
    destroy(segment_name(name), name)
    return outcome


# ---- what may be in the way -------------------------------------------------------------


def refusal(name):
    with pytest.raises(TableUnavailable) as info:
        Merger(name)
    assert (info.value.reason, info.value.table) == ("refused", name)
    assert f"-{name}" in str(info.value)
    assert "remove it, or choose another table name" in str(info.value)
    return str(info.value)


@pytest.fixture(params=["", "~lock"], ids=["table", "lock"])
def path(request, table_name):
    """Where the segment or its lock would be, and is not yet."""
    return path_of(segment_name(table_name)) + request.param


def plain_file(path, mode=0o600):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    os.chmod(path, mode)


@needs_root
def test_a_file_of_another_user_is_refused_with_its_owner(table_name, path):
    plain_file(path)
    os.chown(path, NOBODY, NOBODY)
    text = refusal(table_name)
    assert f"(uid {NOBODY})" in text
    assert "(uid 0)" in text
    assert os.stat(path).st_uid == NOBODY


@needs_root
def test_a_file_of_a_user_without_a_name_is_refused_with_the_number(table_name, path):
    plain_file(path)
    os.chown(path, 54321, 54321)
    assert "uid 54321" in refusal(table_name)


@needs_root
def test_who_may_not_open_what_is_in_the_way_is_told_so(table_name, hands, path):
    path = path.replace("-0-", f"-{NOBODY}-", 1)
    plain_file(path)
    text = hands.start(as_user, NOBODY, refusal, table_name, where="forked").result()
    assert os.path.basename(path) in text


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o666, 0o700])
def test_a_file_of_another_mode_is_refused(table_name, mode):
    path = path_of(segment_name(table_name))
    plain_file(path, mode)
    assert f"has mode {mode:04o} instead of 0600" in refusal(table_name)


def test_a_symlink_is_refused_and_not_followed(table_name, path, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    os.symlink(target, path)
    refusal(table_name)
    assert target.read_bytes() == b"precious"
    os.unlink(path)
    os.symlink(tmp_path / "nowhere", path)
    refusal(table_name)
    assert not (tmp_path / "nowhere").exists()


def test_a_fifo_is_refused_without_waiting_for_it(table_name, path):
    os.mkfifo(path, 0o600)
    assert "is not a regular file" in refusal(table_name)


def test_a_directory_is_refused(table_name, path):
    os.mkdir(path)
    refusal(table_name)
    os.rmdir(path)


def test_a_hard_link_is_refused_and_what_it_leads_to_is_left_alone(table_name, path):
    other = path_of(segment_name(table_name)) + "~other"
    plain_file(other)
    with open(other, "wb") as file:
        file.write(b"precious")
    os.link(other, path)
    assert "has 2 hard links instead of 1" in refusal(table_name)
    with open(other, "rb") as file:
        assert file.read() == b"precious"


@needs_root
def test_a_draft_of_another_user_is_refused(table_name, hands):
    # In a directory with the sticky bit, only its owner can remove it.
    path = path_of(segment_name(table_name)).replace("-0-", f"-{NOBODY}-", 1) + "~draft"
    plain_file(path)
    text = hands.start(as_user, NOBODY, refusal, table_name, where="forked").result()
    assert os.path.basename(path) in text


def test_a_draft_that_is_a_directory_is_refused(table_name):
    path = path_of(segment_name(table_name)) + "~draft"
    os.mkdir(path)
    assert path in refusal(table_name)
    os.rmdir(path)


def test_what_a_creator_left_that_died_is_thrown_away(table_name):
    plain_file(path_of(segment_name(table_name)) + "~draft")
    assert Merger(table_name).execute("key", give, 1) == 1
    assert not os.path.exists(path_of(segment_name(table_name)) + "~draft")


def test_a_table_of_another_layout_is_a_mismatch(table_name):
    with Merger(table_name) as merger:
        path = path_of(merger._segment.segment)
    with open(path, "r+b") as file:
        file.seek(8)
        file.write(b"\xff")
    with pytest.raises(TableMismatch) as info:
        Merger(table_name)
    assert info.value.table == table_name
    assert "another layout" in str(info.value)
    assert f"destroy {table_name}" in str(info.value)
    os.unlink(path)


def test_a_lock_that_is_held_by_a_stopped_process_is_an_error_that_names_it(
    table_name, hands, monkeypatch, until, tmp_path
):
    from uniflight_mp.segment import open_segment

    holder = hands.start(hold_lock, table_name, tmp_path / "ready", where="forked")
    until((tmp_path / "ready").exists)
    holder.kill(signal.SIGSTOP)
    monkeypatch.setattr(open_segment, "__defaults__", (0.2,))
    with pytest.raises(TableUnavailable, match=r"for 0\.2 s.*~lock open") as info:
        Merger(table_name)
    assert info.value.reason == "locked"
    holder.kill()
    holder.join()
    assert Merger(table_name).execute("key", give, 1) == 1


def hold_lock(name, ready):
    with locked(segment_name(name), name):
        ready.touch()
        time.sleep(60)


@pytest.fixture
def wait_for_lock(hands, monkeypatch):
    """``wait_for_lock(f)``: call in a thread that by now waits for the lock of some table."""

    def start(function, *args):
        def announced(*about):
            waits.set()
            return locked(*about)

        waits = threading.Event()
        with monkeypatch.context() as patch:
            patch.setattr(segment, "locked", announced)
            call = hands.start(function, *args, where="threads")
            assert waits.wait(BOUND)
        return call

    return start


def test_a_thread_that_waits_for_the_lock_of_a_table_holds_up_no_other_table(
    table_names, wait_for_lock, monkeypatch
):
    stuck, other, new = table_names(), table_names(), table_names()
    mergers = Merger(stuck), Merger(other)
    for name in (stuck, other):
        destroy(segment_name(name), name)
    monkeypatch.setattr(segment, "CARE_LOCK_SECONDS", BOUND)
    with locked(segment_name(stuck), stuck):
        caring = wait_for_lock(mergers[0]._segment.care)
        assert mergers[0]._segment.care() is False  # one thread is enough
        assert mergers[1]._segment.care() is True
        assert Merger(new).execute("key", give, 1) == 1
        assert not caring.finished()
    assert caring.result() is True


def test_a_thread_that_waits_to_open_a_table_holds_up_no_other_table(table_names, wait_for_lock):
    stuck, other = table_names(), table_names()
    with locked(segment_name(stuck), stuck):
        calls = [wait_for_lock(Merger, stuck) for _ in range(2)]
        for _ in range(2):
            assert Merger(other).execute("key", give, 1) == 1
        assert not any(call.finished() for call in calls)
    assert calls[0].result()._segment is calls[1].result()._segment


def test_a_child_forked_while_a_thread_waits_for_the_lock_of_a_table_uses_it(
    table_name, hands, wait_for_lock, monkeypatch
):
    def child():
        monkeypatch.setattr(segment, "CARE_LOCK_SECONDS", 0)
        return Merger(table_name).execute("key", give, 1)

    merger = Merger(table_name)
    destroy(segment_name(table_name), table_name)
    monkeypatch.setattr(segment, "CARE_LOCK_SECONDS", BOUND)
    with locked(segment_name(table_name), table_name):
        caring = wait_for_lock(merger._segment.care)
        assert hands.start(child, where="forked").result() == 1
    assert caring.result() is True


def test_a_lock_whose_file_was_replaced_meanwhile_is_taken_again(table_name, monkeypatch):
    import filelock

    path = path_of(segment_name(table_name)) + "~lock"
    lock, seen = filelock.lock_descriptor, []

    def lock_and_lose(*args, **options):
        is_held = lock(*args, **options)
        seen.append(os.stat(path).st_ino)
        if len(seen) == 1:  # an outsider removes it
            os.unlink(path)
        elif len(seen) == 2:  # and another process has its own already
            os.rename(path, path + "-kept")
            plain_file(path)
        return is_held

    monkeypatch.setattr(filelock, "lock_descriptor", lock_and_lose)
    with locked(segment_name(table_name), table_name):
        os.unlink(path + "-kept")
        assert os.stat(path).st_ino == seen[2]


def test_processes_that_open_at_the_same_moment_share_one_table(table_name, hands):
    barrier = multiprocessing.get_context("fork").Barrier(6)
    calls = [hands.start(open_together, table_name, barrier, where="forked") for _ in range(6)]
    assert len({call.result() for call in calls}) == 1


def open_together(name, barrier):
    barrier.wait(BOUND)
    return Merger(name)._segment.table.identity


# ---- a table that goes away -------------------------------------------------------------


def test_a_segment_unlinked_while_in_use_lets_calls_finish_and_new_ones_meet(
    table_name, crew, leading, followed
):
    merger = Merger(table_name)
    old = leading(merger, "key")
    watch = merger._segment.table  # of the old segment
    joined = crew.start(merger.flight, "key", never)
    followed(merger)
    os.unlink(path_of(merger._segment.segment))
    time.sleep(0.15)  # a call looks for its segment ten times a second
    new = leading(merger, "key")
    late = crew.start(merger.flight, "key", never)
    followed(merger)
    assert old.outcome("old").followers == 1
    assert joined.result().value == "old"
    new.finish("new")
    assert late.result().value == "new"
    assert watch.usage()[:2] == (0, 0)


@pytest.mark.parametrize("size", [10, 10_000])
def test_results_of_two_tables_of_one_name_are_not_mixed_up(
    table_name, hands, leading, followed, size
):
    merger = Merger(table_name)
    old = leading(merger, "key")
    joined = hands.start(merger.flight, "key", never, where="forked")
    followed(merger)
    joined.kill(signal.SIGSTOP)
    os.unlink(path_of(merger._segment.segment))
    time.sleep(0.15)
    new = leading(merger, "key")
    late = hands.start(merger.flight, "key", never, where="forked")
    followed(merger)
    late.kill(signal.SIGSTOP)
    old.finish("o" * size)
    new.finish("n" * size)
    for call in (joined, late):
        call.kill(signal.SIGCONT)
    assert joined.result().value == "o" * size
    assert late.result().value == "n" * size


def test_no_call_fails_while_the_segment_is_unlinked_again_and_again(table_name, hands):
    merger = Merger(table_name)
    calls = [hands.start(call_often, merger, 400, where="forked") for _ in range(2)]
    while not all(call.finished() for call in calls):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path_of(segment_name(table_name)))
        time.sleep(0.02)
    assert [call.result() for call in calls] == [400, 400]


def call_often(merger, rounds):
    values = [merger.execute(("key", n % 5), slow, n) for n in range(rounds)]
    return len(values)


def slow(value):
    time.sleep(0.001)
    return value


def test_destroy_removes_all_that_belongs_to_a_table(table_name):
    with Merger(table_name) as merger:
        segment = merger._segment.segment
    plain_file(path_of(segment) + "~r1.2.3")
    plain_file(path_of(segment) + "~draft")
    assert destroy(segment, table_name) is True
    assert [name for name in os.listdir("/dev/shm") if table_name in name] == []
    assert destroy(segment, table_name) is False


def test_a_call_whose_care_took_long_does_not_run_alone(table_name, monkeypatch):
    with Merger(table_name) as merger:
        destroy(segment_name(table_name), table_name)
        monkeypatch.setattr(Segment, "care", lambda self: time.sleep(0.3))
        time.sleep(0.3)  # until the table is looked after again
        assert merger.flight("key", int).role is Role.LEADER


@pytest.mark.parametrize(
    ("kind", "step"), [("per_host", "_open_table"), ("per_process", "_numbers")]
)
def test_a_table_that_is_opened_while_it_is_being_opened_is_one(
    table_name, monkeypatch, kind, step
):
    """By a signal handler of the same thread, or by another greenlet."""
    make, function, opened = getattr(Merger, kind), getattr(segment, step), []

    def interrupted(*args):
        monkeypatch.setattr(segment, step, function)
        opened.append(make(table_name))
        return function(*args)

    monkeypatch.setattr(segment, step, interrupted)
    opened.append(make(table_name))
    assert opened[0]._segment is opened[1]._segment


def test_leftovers_are_removed_later_if_the_lock_is_held(table_name, hands, followed, until):
    merger = Merger(table_name)
    leader = hands.start(merger.execute, "key", time.sleep, 60, where="forked")
    until(merger.flights)
    follower = hands.start(merger.execute, "key", give, 1, where="threads")
    followed(merger)
    leader.kill()
    assert follower.result() == 1
    held = merger._segment
    leftover = path_of(f"{held.segment}~r{held.table.identity[1]:x}.0.99")
    plain_file(leftover)
    with locked(held.segment, table_name):
        held.care()
    assert os.path.exists(leftover)
    held.care()
    assert not os.path.exists(leftover)


def test_a_new_merger_of_a_destroyed_table_meets_those_of_other_processes(table_name, hands, until):
    old = Merger(table_name)
    old.execute("key", int)  # has just been looked after
    destroy(segment_name(table_name), table_name)
    other = hands.start(lead_for_long, table_name, where="spawned")
    new = Merger(table_name)
    until(new.flights)
    assert new.flight("key", int).role is Role.FOLLOWER
    assert other.result() == "other"


def lead_for_long(name):
    def function():
        wait_for_followers(merger)
        return "other"

    with Merger(name) as merger:
        return merger.execute("key", function)
