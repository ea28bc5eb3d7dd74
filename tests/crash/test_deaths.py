"""Other ways to die, and who notices: creators, zombies, forks, exec, threads, namespaces, OOM."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from scenarios import KEY, both_have
from stage import SHM, until

LEASE = 2.0  # seconds; enough for two followers to come meanwhile


def take_over(*actors):
    """Return the outcome of the one that led; the others have its value."""
    outcomes = [actor.outcome() for actor in actors]
    assert all(outcome["what"] == "return" for outcome in outcomes), outcomes
    (leader,) = [outcome for outcome in outcomes if outcome["role"] == "leader"]
    both_have(leader, *[outcome for outcome in outcomes if outcome is not leader])
    return leader


# ---- creators ------------------------------------------------------------------------------

CREATION = [
    ("posix_ipc.unlink_shared_memory", False),  # of an older draft; the lock is held
    ("posix_ipc.SharedMemory", True),
    ("os.fchmod", False),
    ("os.posix_fallocate", False),
    ("os.posix_fallocate", True),
    ("shm.create", False),
    ("shm.create", True),
    ("os.rename", False),
    ("os.rename", True),
]
STEPS = pytest.mark.parametrize(
    ("step", "after"),
    CREATION,
    ids=[f"{'after' if after else 'before'} {step}" for step, after in CREATION],
)


@STEPS
def test_when_a_creator_dies_the_next_one_builds_the_table(stage, step, after):
    victim, survivor = stage.start("victim", "survivor")
    assert survivor.ask("build")["arms"]  # it is up; what follows is the opening alone
    victim.ask("die_in_creation", step=step, after=after)
    victim.send("open", table=stage.table, **stage.options)
    victim.dies()
    begun = time.monotonic()
    assert survivor.ask("open", table=stage.table, **stage.options) is None
    assert time.monotonic() - begun < 3
    survivor.call(KEY)
    assert survivor.outcome()["role"] == "leader"
    stage.curtain()


@STEPS
def test_when_a_creator_dies_replacing_a_damaged_table_the_next_one_replaces_it(stage, step, after):
    victim, first, second = stage.enter("victim", "first", "second")
    name, *old, _ = first.ask("identity")
    victim.ask("die_in_creation", step=step, after=after)
    first.ask("damage")
    victim.call(KEY)
    victim.dies()
    gate = stage.gate()
    source = first.leads(KEY, gate=str(gate))
    second.call(KEY)
    stage.followers(1)
    gate.open()
    assert first.outcome()["role"] == "leader"
    both_have(source, second.outcome())
    status = (SHM / name).stat()
    assert [status.st_dev, status.st_ino] != old
    stage.curtain()


# ---- followers -----------------------------------------------------------------------------


def test_a_follower_killed_asleep_is_not_missed(stage):
    leader, first, second = stage.enter("leader", "first", "second")
    gate = stage.gate()
    source = leader.leads(KEY, gate=str(gate))
    first.call(KEY)
    stage.followers(1)
    second.call(KEY)
    stage.followers(2)
    first.falls_asleep()
    first.kill()
    gate.open()
    assert leader.outcome()["role"] == "leader"
    both_have(source, second.outcome())
    stage.curtain()


@pytest.mark.parametrize("then", ["return", "abandon"])
def test_a_follower_killed_between_its_waking_and_its_first_step_is_not_missed(stage, then):
    leader, first, second = stage.enter("leader", "first", "second")
    gate = stage.gate()
    source = leader.leads(KEY, gate=str(gate), then=then)
    first.call(KEY)
    stage.followers(1)
    second.call(KEY)
    stage.followers(2)
    first.stop()
    gate.open()
    leader.outcome()  # it has posted
    first.kill()
    if then == "return":
        both_have(source, second.outcome())
    else:
        assert second.outcome()["role"] == "leader"
    stage.curtain("SystemExit")


def test_a_leader_and_the_waiters_who_watch_it_die_together(stage):
    leader, first, second, third, fourth = stage.enter("leader", "1st", "2nd", "3rd", "4th")
    leader.leads(KEY, gate=str(stage.gate()))
    waiting = (first, second, third, fourth)
    for count, actor in enumerate(waiting, 1):
        actor.call(KEY)
        stage.followers(count)
    for actor in (first, second):
        actor.stop()
    leader.kill()
    first.kill()
    second.kill()
    take_over(third, fourth)
    assert len(stage.executions(KEY)) == 2
    stage.curtain()


# ---- leaders -------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["FINISH_LOCKED", "FINISH_HALF_COPIED", "FINISH_COPIED"])
def test_a_newcomer_joins_the_flight_that_was_taken_over(stage, point):
    """... from a leader that had a result, and died before it was published."""
    leader, first, newcomer = stage.enter("leader", "first", "newcomer")
    gate, later = stage.gate(), stage.gate()
    leader.leads(KEY, gate=str(gate), arm=[point, "kill", "encode"])
    first.call(KEY, gate=str(later))
    stage.followers(1)
    gate.open()
    leader.dies()
    source = first.expect("execute")
    newcomer.call(KEY)
    until(
        lambda: (newcomer.drain() and any(row[1] for row in stage.peek())) or newcomer.events[3:],
        "the newcomer waits, or acts",
    )
    later.open()
    assert first.outcome()["role"] == "leader"
    both_have(source, newcomer.outcome())
    stage.curtain()


def test_a_function_that_kills_every_process_is_not_given_another(stage):
    stage.options["max_takeovers"] = 2
    actors = stage.enter("1st", "2nd", "3rd", "4th", "5th")
    gate = stage.gate()
    actors[0].leads(KEY, gate=str(gate), then="die")
    for count, actor in enumerate(actors[1:], 1):
        actor.call(KEY, then="die")
        stage.followers(count)
    gate.open()
    for actor in actors[:3]:
        actor.dies()
    for actor in actors[3:]:
        assert actor.outcome().get("error") == "LeaderDied"
    assert len(stage.executions(KEY)) == 3
    stage.curtain("LeaderDied")


def test_a_zombie_is_dead(stage):
    parent, first, second = stage.enter("parent", "first", "second")
    parent.send("fork_caller", life="zombie", key=KEY, gate=str(stage.gate()))
    zombie = parent.expect("forked")["child"]
    parent.reply()
    until(lambda: [row[0] for row in stage.peek()] == ["running"], "the child leads")
    first.call(KEY)
    stage.followers(1)
    second.call(KEY)
    stage.followers(2)
    os.kill(zombie, 9)
    take_over(first, second)
    until(lambda: psutil.Process(zombie).status() == psutil.STATUS_ZOMBIE, "a zombie")
    assert parent.ask("reap_children") == [-9]
    parent.life = "zombie"
    parent.note("died", status=-9)
    stage.curtain()


def namesake(stage, pid):
    """An actor whose main thread has the number that a dead process had."""
    for _ in range(50):
        try:  # the nursery forks twice
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 2))
        except PermissionError:
            pytest.skip("no right to choose the next process's number")
        (actor,) = stage.start("namesake")
        if actor.pid == pid:
            return actor
    raise AssertionError(f"never got pid {pid}")


@pytest.mark.parametrize("takes_part", [True, False], ids=["in the table", "outside of it"])
def test_a_process_with_a_dead_leaders_number_is_not_taken_for_it(stage, takes_part):
    leader, first, second = stage.enter("leader", "first", "second")
    leader.leads(KEY, gate=str(stage.gate()))
    for count, actor in enumerate((first, second), 1):
        actor.call(KEY)
        stage.followers(count)
        actor.stop()
    leader.kill()
    impostor = namesake(stage, leader.pid)
    if takes_part:  # with the record that the dead one had
        impostor.send("open", table=stage.table, **stage.options)
        impostor.reply()
        impostor.call("other")
        assert impostor.outcome()["role"] == "leader"
    first.go_on()
    second.go_on()
    take_over(first, second)
    stage.curtain()


def test_a_leaders_child_is_no_leader_and_its_parents_death_is_seen(stage):
    leader, first = stage.enter("leader", "first")
    leader.leads(KEY, then="fork")
    child = leader.expect("forked")["child"]
    first.call(KEY)
    stage.followers(1)
    # The child comes back from the function and has a value; it must not publish it.
    assert leader.expect("return")["role"] == "leader"
    assert [row[:2] for row in stage.peek()] == [["running", 1]]
    os.kill(leader.pid, 9)
    outcome = first.outcome()
    assert outcome["role"] == "leader"
    assert psutil.pid_exists(child)
    leader.dies()
    # The child obeys now, in its parent's place, and is a caller like any other.
    leader.expect("done")
    gate = stage.gate()
    source = leader.leads("other", gate=str(gate))
    first.call("other")
    stage.followers(1)
    gate.open()
    assert leader.outcome()["role"] == "leader"
    both_have(source, first.outcome())
    stage.is_empty(first)
    os.close(leader.orders)
    leader.orders = -1
    assert os.waitpid(child, 0)[1] == 0  # reparented to us
    first.dismiss()


def test_an_exec_ends_the_leadership(stage):
    leader, first, second = stage.enter("leader", "first", "second")
    gate = stage.gate()
    leader.leads(KEY, gate=str(gate), then="exec")
    first.call(KEY)
    stage.followers(1)
    second.call(KEY)
    stage.followers(2)
    gate.open()
    take_over(first, second)
    process = psutil.Process(leader.pid)
    assert process.status() != psutil.STATUS_ZOMBIE
    until(lambda: process.name() == "sleep", "the exec")
    leader.kill()
    stage.curtain()


@pytest.mark.parametrize("then", ["end_thread", "end_thread_orderly"])
def test_the_end_of_its_thread_ends_the_leadership(stage, then):
    leader, first, second = stage.enter("leader", "first", "second")
    gate = stage.gate()
    leader.send("call", key=KEY, gate=str(gate), then=then, thread=True)
    leader.expect("execute")
    first.call(KEY)
    stage.followers(1)
    second.call(KEY)
    stage.followers(2)
    gate.open()
    take_over(first, second)
    leader.call("other")  # from the main thread, which lives on
    assert leader.expect("return")["key"] == "other"
    stage.curtain()


def test_a_stopped_leader_past_its_lease_is_replaced_and_fenced(stage):
    stage.options["lease"] = LEASE
    leader, first, second, late = stage.enter("leader", "first", "second", "late")
    gate = stage.gate()
    old = leader.leads(KEY, gate=str(gate))
    first.call(KEY)
    stage.followers(1)
    second.call(KEY)
    stage.followers(2)
    leader.stop()
    new = take_over(first, second)
    assert new["execution"] != old["execution"]
    fresh = stage.gate()
    source = late.leads(KEY, gate=str(fresh))  # in the same slot, perhaps
    first.call(KEY)
    stage.followers(1)
    gate.open()
    leader.go_on()
    own = leader.outcome()
    assert (own["role"], own["execution"]) == ("leader", old["execution"])
    fresh.open()
    assert late.outcome()["role"] in ("leader", "follower")
    assert first.outcome()["execution"] != old["execution"]
    assert source["execution"] != old["execution"]
    assert first.ask("stats")["fenced"] >= 1
    stage.curtain()


def test_a_stopped_newcomer_does_not_make_a_dead_leader_look_alive(stage):
    """It holds the dead one's life lock, and is stopped before it gave it a generation."""
    leader, first, newcomer = stage.enter("leader", "first", "newcomer")
    leader.leads(KEY, gate=str(stage.gate()))
    first.call(KEY)
    stage.followers(1)
    first.stop()
    leader.kill()
    newcomer.call("other", arm=["CLAIM_LOCKED", "stop", "before"])
    newcomer.stops()
    first.go_on()
    assert first.outcome()["role"] == "leader"
    newcomer.go_on()
    assert newcomer.outcome()["role"] == "leader"
    stage.curtain()


# ---- namespaces and memory -----------------------------------------------------------------


def test_another_pid_namespace_has_a_table_of_its_own(stage):
    leader, first, outside = stage.enter("leader", "first", "outside")
    gate = stage.gate()
    source = leader.leads(KEY, gate=str(gate))
    first.call(KEY)
    stage.followers(1)
    outside.send("fork_caller", life="inside", key=KEY, namespace=True, reopen=True)
    if outside.reply() is None:
        pytest.skip("no right to make a PID namespace")
    assert outside.ask("reap_children") == [0]
    own = [event for event in outside.events if event.get("life") == "inside"]
    assert [event["what"] for event in own if event["what"] in ("execute", "return")] == [
        "execute",
        "return",
    ]
    assert own[-1]["role"] == "leader"
    assert own[-1]["execution"] != source["execution"]
    assert len(list(SHM.glob(f"*-{stage.table}"))) == 2
    # Two tables, two leaders, as it should be: nothing for the judge.
    stage.history[:] = [event for event in stage.history if event["life"] != "inside"]
    gate.open()
    assert leader.outcome()["role"] == "leader"
    both_have(source, first.outcome())
    stage.curtain()


def test_a_mapping_inherited_into_another_pid_namespace_still_tells_the_dead(stage):
    outside, first, second = stage.enter("outside", "first", "second")
    gate = stage.gate()
    outside.send("fork_caller", life="inside", key=KEY, gate=str(gate), namespace=True)
    if (pid := outside.reply()) is None:
        pytest.skip("no right to make a PID namespace")
    until(lambda: [row[0] for row in stage.peek()] == ["running"], "the one inside leads")
    first.call(KEY)
    stage.followers(1)
    second.call(KEY)
    stage.followers(2)
    time.sleep(0.3)  # long enough for all to have looked at the leader, and found it alive
    stage.followers(2)
    os.kill(pid, 9)
    take_over(first, second)
    assert outside.ask("reap_children") == [-9]
    outside.life = "inside"
    outside.note("died", status=-9)
    stage.curtain()


@pytest.fixture
def prison(tmp_path):
    """The list of tasks of a new memory cgroup of 64 MiB."""
    kinds = [
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "tasks"),
        (Path("/sys/fs/cgroup"), "memory.max", "cgroup.procs"),
    ]
    for root, limit, tasks in kinds:
        group = root / f"uniflight-crash-test-{os.getpid()}"
        with suppress(OSError):
            group.mkdir()
            try:
                (group / limit).write_text(str(64 << 20))
                with suppress(OSError):
                    (group / "memory.swap.max").write_text("0")
                yield str(group / tasks)
            finally:
                until(lambda group=group: _is_removed(group), "the end of the cgroup")
            return
    pytest.skip("no right to make a memory cgroup")


def _is_removed(group):
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def test_a_leader_killed_for_its_memory_is_replaced(stage, prison):
    leader, first, second = stage.enter("leader", "first", "second")
    gate = stage.gate()
    leader.ask("confine", tasks=prison)
    leader.leads(KEY, gate=str(gate), then="eat")
    first.call(KEY)
    stage.followers(1)
    second.call(KEY)
    stage.followers(2)
    gate.open()
    take_over(first, second)
    leader.dies()
    stage.curtain()
