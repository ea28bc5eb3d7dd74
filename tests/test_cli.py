"""The command line, run for real: what it shows, what it leaves alone, how it ends."""

from __future__ import annotations

import contextlib
import enum
import json
import os
import pty
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from crew import wait_until

from uniflight_mp import Limits, Merger, cli, segment, shmfile
from uniflight_mp.cli import doctor, identity, reports

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tables need Linux")

SMALL = Limits(flights=64, waiters=64, threads=64)
HOSTILE = "\x1b[31mred\x1b[0m [bold]loud[/bold]\r\n\x07 :smile: \u202e \x9b2J"

# Leads key argv[2] of table argv[1] until its standard input ends.
LEADER = """
import ast, sys
from uniflight_mp import Limits, Merger
def hold():
    print("leading", flush=True)
    sys.stdin.read()
Merger(sys.argv[1], limits=Limits(64, 64, 64)).execute(ast.literal_eval(sys.argv[2]), hold)
"""
FOLLOWER = """
import ast, sys
from uniflight_mp import Limits, Merger
print("calling", flush=True)
Merger(sys.argv[1], limits=Limits(64, 64, 64)).execute(ast.literal_eval(sys.argv[2]), int)
"""
OPENER = """
import sys
from uniflight_mp import Limits, Merger
merger = Merger(sys.argv[1], limits=Limits(64, 64, 64))
print("open", flush=True)
sys.stdin.read()
"""


def files_of(name):
    return sorted(path for path in Path(shmfile.SHM_DIR).iterdir() if f"-{name}" in path.name)


@pytest.fixture
def name():
    """A table name of this test alone; whatever got it is gone afterwards."""
    unique = f"t-{os.getpid()}-{secrets.token_hex(4)}"
    yield unique
    for path in files_of(unique):
        path.unlink()


@pytest.fixture
def merger(name):
    with Merger(name, limits=SMALL) as opened:
        yield opened


@pytest.fixture
def start(name):
    """Start a script with the table's name; return its process once it printed a line."""
    started = []

    def launch(script, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", script, name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline()
        return process

    yield launch
    for process in started:
        process.kill()
        process.communicate()


def run(*arguments, **options):
    command = [sys.executable, "-m", "uniflight_mp", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def call(*arguments, **options):
    """Run the command in this process, for those who lead or stand by here."""
    return CliRunner().invoke(cli.main, arguments, **options)


def read_json(*arguments):
    result = call("inspect", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def only_table(name):
    (table,) = read_json(name)["tables"]
    return table


def has_follower(merger):
    return lambda: any(flight.followers for flight in merger.flights())


def place(name, *, content=b"", layout=None, namespace=None, mode=0o600, partition=""):
    """Put a file where a table of that name could be."""
    _, uid, own_layout, own_namespace, _ = shmfile.segment_name(name).split("-", 4)
    parts = ["uniflight", uid, layout or own_layout, namespace or own_namespace, name]
    path = Path(shmfile.SHM_DIR) / ("-".join(parts) + partition)
    path.write_bytes(content)
    path.chmod(mode)
    return path


# ---- inspect -----------------------------------------------------------------------------------


def test_inspect_lists_the_tables_of_this_user(merger, name):
    result = run("inspect")
    assert result.returncode == 0
    assert result.stderr == ""
    (line,) = [line for line in result.stdout.splitlines() if name in line]
    assert str(os.getpid()) in line


def test_inspect_shows_a_flight_with_its_leader_and_followers(merger, name, start):
    leader = start(LEADER, "('sku', 42)")
    start(FOLLOWER, "('sku', 42)")
    wait_until(has_follower(merger))
    result = run("inspect", name)
    assert result.returncode == 0
    (line,) = [line for line in result.stdout.splitlines() if "('sku', 42)" in line]
    assert "running" in line
    assert f" {leader.pid} " in line
    (flight,) = only_table(name)["flights"]
    assert flight["followers"] == 1
    assert flight["leader_pid"] == leader.pid
    assert flight["leader_state"] == "alive"
    assert sys.executable in flight["leader_command"]
    assert flight["takeovers"] == 0
    assert flight["age"] > 0


def test_the_json_document_has_the_fields_its_help_names(merger, name):
    merger.execute("before", bytes)
    table = merger.execute("now", only_table, name)
    text = " ".join(call("inspect", "--help").output.replace(",", " ").split()).split()
    for part in (table, table["flights"][0], table["processes"][0]):
        assert part.keys() <= set(text), part.keys() - set(text)
    for part in ("counters", "limits", "in_use"):
        assert table[part].keys() <= set(text)
    assert table["name"] == name
    assert table["marks"] == []
    assert table["flight_count"] == len(table["flights"]) == 1
    assert table["counters"]["leaders"] == 2
    assert set(table["counters"]["solo"]) >= {"table_full", "timeout"}
    assert table["limits"]["flights"] == 64
    assert table["in_use"] == {"flights": 1, "waiters": 0, "threads": 1}
    assert table["creator_pid"] == os.getpid()
    assert abs(table["created"] - time.time()) < 3600
    (process,) = table["processes"]
    assert process["pid"] == os.getpid()
    assert (process["state"], process["threads"], process["leads"]) == ("alive", 1, 1)


def test_without_a_name_json_counts_and_lists_no_flights(merger, name):
    (table,) = [table for table in read_json()["tables"] if table["name"] == name]
    assert (table["flight_count"], table["follower_count"], table["process_count"]) == (0, 0, 1)
    assert table["flights"] is table["processes"] is table["counters"] is None


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("key", "shown", "kind"),
    [
        ("sku:42", "sku:42", "str"),
        (HOSTILE, HOSTILE, "str"),
        (42, 42, "int"),
        (10**60, 10**60, "int"),
        (1.5, 1.5, "float"),
        (float("nan"), "nan", "float"),
        (float("inf"), "inf", "float"),
        (True, True, "bool"),
        (None, None, "NoneType"),
        (b"sku", "b'sku'", "bytes"),
        (("a", 1), "('a', 1)", "tuple"),
        (uuid.UUID(int=7), "UUID('00000000-0000-0000-0000-000000000007')", "UUID"),
        (Color.RED, "Color.RED", "description"),
    ],
)
def test_keys_are_json_when_json_has_their_type_and_text_otherwise(merger, name, key, shown, kind):
    (flight,) = merger.execute(key, only_table, name)["flights"]
    assert (flight["key"], flight["key_type"]) == (shown, kind)
    assert type(flight["key"]) is type(shown)


def test_a_key_longer_than_the_table_keeps_is_described(merger, name):
    (flight,) = merger.execute("x" * 100_000, only_table, name)["flights"]
    assert flight["key_type"] == "description"
    assert len(flight["key"]) <= 200
    assert merger.execute("x" * 100_000, call, "inspect", name).exit_code == 0


def test_a_key_with_escape_codes_and_markup_is_printed_harmlessly(merger, name, start):
    start(LEADER, repr(HOSTILE))
    result = run("inspect", name)
    assert result.returncode == 0
    assert all(line.isprintable() for line in result.stdout.split("\n"))
    assert "\\x1b[31mred" in result.stdout
    assert "[bold]loud[/bold]" in result.stdout
    assert ":smile:" in result.stdout


def test_a_command_line_with_escape_codes_is_printed_harmlessly_and_bounded(merger, name):
    arguments = [sys.executable, "-c", LEADER, name, "'k'", HOSTILE, "y" * 50_000]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(arguments, **pipes) as leader:
        assert leader.stdout.readline()
        shown = run("inspect", name).stdout
        (flight,) = only_table(name)["flights"]
        leader.kill()
    assert all(line.isprintable() for line in shown.split("\n"))
    assert flight["leader_command"].isprintable()
    assert len(flight["leader_command"]) <= identity.COMMAND_LENGTH


def test_inspect_changes_nothing_and_waits_for_nobody_while_everybody_is_stopped(
    merger, name, start
):
    leader, follower = start(LEADER, "'k'"), start(FOLLOWER, "'k'")
    wait_until(has_follower(merger))
    for process in (leader, follower):
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda pid=process.pid: identity.look_up(pid).state == "stopped")
    files = files_of(name)
    (path,) = [path for path in files if "~" not in path.name]
    before = (path.read_bytes(), path.stat().st_mtime_ns, merger.stats())
    with segment.locked(path.name, name):  # and somebody is creating or removing the table
        shown, document = run("inspect", name), only_table(name)
    assert (path.read_bytes(), path.stat().st_mtime_ns, merger.stats()) == before
    assert files_of(name) == files
    assert shown.returncode == 0
    assert f"{leader.pid} (stopped)" in shown.stdout
    assert document["flights"][0]["leader_state"] == "stopped"


def test_inspect_maps_a_table_for_reading_only(merger, name):
    table = segment.attach_read_only(shmfile.segment_name(name), name)
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert {line.split()[1] for line in maps if name in line} == {"rw-s", "r--s"}
    assert table.flights() == []


def test_a_leader_that_was_killed_is_shown_as_dead_and_not_counted(merger, name, start):
    leader = start(LEADER, "'k'")
    leader.kill()
    wait_until(lambda: identity.look_up(leader.pid).is_dead)
    table = only_table(name)
    assert table["flights"][0]["leader_state"] == "zombie"
    assert table["flights"][0]["leader_command"] == ""
    assert table["process_count"] == 1
    leader.wait()
    assert only_table(name)["flights"][0]["leader_state"] == "dead"
    assert f"{leader.pid} (dead)" in run("inspect", name).stdout


def test_a_leader_thread_that_ended_in_a_living_process_is_shown_as_dead(name):
    assert identity.thread_is_gone(os.getpid(), 0) is False
    assert identity.thread_is_gone(os.getpid(), threading.get_native_id()) is False
    thread = threading.Thread(target=int)
    thread.start()
    tid = thread.native_id
    thread.join()
    wait_until(lambda: identity.thread_is_gone(os.getpid(), tid))


def test_who_has_only_opened_a_table_is_among_its_processes(name, start):
    opener = start(OPENER)
    (process,) = only_table(name)["processes"]
    assert (process["pid"], process["threads"]) == (opener.pid, 0)


def test_a_forgotten_flight_is_marked(merger, name):
    def forget_and_look():
        merger.forget("k")
        return only_table(name)

    (flight,) = merger.execute("k", forget_and_look)["flights"]
    assert flight["forgotten"] is True


def test_a_damaged_table_is_marked(merger, name):
    merger._segment.table.damage()
    assert only_table(name)["marks"] == ["damaged"]
    assert "replaces it" in run("inspect", name).stdout


def test_a_table_of_another_pid_namespace_is_marked_and_its_pids_are_not_looked_up(merger, name):
    merger.execute("k", int)
    content = files_of(name)[0].read_bytes()
    place(name, content=content, namespace="abcdef12")
    ours, theirs = sorted(read_json(name)["tables"], key=lambda table: len(table["marks"]))
    assert ours["marks"] == []
    assert theirs["marks"] == ["foreign_pid_namespace"]
    assert [process["state"] for process in theirs["processes"]] == ["unknown"]


def test_a_table_of_another_layout_is_marked_and_not_read(name):
    place(name, content=b"anything", layout="01234567")
    table = only_table(name)
    assert table["marks"] == ["other_layout"]
    assert table["flights"] is None
    assert run("inspect").returncode == 0


@pytest.mark.parametrize(("content", "mode"), [(b"", 0o600), (bytes(8192), 0o600), (b"x", 0o644)])
def test_a_file_that_is_no_table_is_marked_with_the_reason(name, content, mode):
    place(name, content=content, mode=mode)
    table = only_table(name)
    assert table["marks"] == ["unreadable"]
    assert "is not a table" in table["detail"] or "0644" in table["detail"]
    assert run("inspect", name).returncode == 0


def test_a_directory_in_the_place_of_a_table_is_refused_in_one_line(name):
    path = place(name)
    path.unlink()
    path.mkdir()
    try:
        assert only_table(name)["marks"] == ["unreadable"]
        for command in (("reap", name), ("destroy", name, "--yes")):
            result = run(*command)
            assert result.returncode == 1
            assert result.stderr.count("\n") == 1, result.stderr
    finally:
        path.rmdir()


def test_partitions_are_tables_of_their_own(name):
    place(name, content=b"", partition="@PerNuma@1")
    place(name, content=b"", partition="@PerNuma@0")
    tables = read_json(name)["tables"]
    assert [(table["scope"], table["partition"]) for table in tables] == [
        ("PerNuma", "0"),
        ("PerNuma", "1"),
    ]
    assert f"{name}@PerNuma@1" in run("inspect").stdout


def test_extra_segments_are_counted(merger, name):
    place(name, content=b"12345", partition="~r1.2.3")
    table = only_table(name)
    assert (table["extra_segments"], table["extra_bytes"]) == (1, 5)
    assert len(read_json(name)["tables"]) == 1


def test_a_name_that_prefixes_another_does_not_find_it(merger, name):
    assert run("inspect", name[:-1]).returncode == 1


def test_inspect_of_an_unknown_name_says_so_in_one_line_and_makes_no_table(name):
    for command in ("inspect", "reap", "destroy"):
        result = run(command, name)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1
        assert name in result.stderr
    assert files_of(name) == []


@pytest.mark.parametrize(
    "arguments",
    [("inspect", "a b"), ("inspect", "\x1b[31m"), ("inspect", "--json", "--watch"), ("reap",)],
)
def test_wrong_usage_is_2(arguments):
    result = run(*arguments)
    assert result.returncode == 2
    assert "\x1b" not in result.stderr
    assert "Traceback" not in result.stderr


def test_watch_refreshes_until_interrupted_and_ends_well(merger, name):
    command = [sys.executable, "-m", "uniflight_mp", "inspect", name, "--watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        seen = 0
        while seen < 2:
            seen += watching.stdout.readline().startswith(f"Table {name}")
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=30)
    assert watching.returncode == 0


def test_watch_draws_on_a_terminal_and_leaves_it_in_order(merger, name):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "uniflight_mp", "inspect", name, "--watch"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, env=environment) as watching:
        os.close(theirs)
        drawn = b""
        while drawn.count(name.encode()) < 3:
            drawn += os.read(ours, 65536)
        watching.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal hung up: EIO
            while chunk := os.read(ours, 65536):
                drawn += chunk
    os.close(ours)
    assert watching.returncode == 0
    assert b"\x1b[?1049h" in drawn  # into the alternate screen
    assert b"\x1b[?1049l" in drawn  # and back


def test_a_closed_pipe_ends_quietly(merger):
    command = f"{sys.executable} -m uniflight_mp inspect --json | head -c 1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert result.stdout == "{"
    assert result.stderr == ""


# ---- reap --------------------------------------------------------------------------------------


def test_reap_frees_what_a_killed_leader_left(name, start):
    leader = start(LEADER, "'k'")
    leader.kill()
    leader.wait()
    place(name, content=b"12345", partition="~r1.2.3")
    assert only_table(name)["flight_count"] == 1
    result = run("reap", name)
    assert result.returncode == 0
    assert "freed 1 flights, 0 waiters and 1 extra segments" in result.stdout
    table = only_table(name)
    assert (table["flight_count"], table["extra_segments"]) == (0, 0)
    assert "freed 0 flights, 0 waiters and 0 extra" in run("reap", name).stdout


def test_reap_leaves_the_living_alone(merger, name, start):
    start(LEADER, "'k'")
    assert run("reap", name).returncode == 0
    assert [flight.state for flight in merger.flights()] == ["running"]


def test_reap_never_touches_a_table_of_another_pid_namespace(merger, name):
    content = files_of(name)[0].read_bytes()
    path = place(f"{name}-f", content=content, namespace="abcdef12")
    result = run("reap", f"{name}-f")
    assert result.returncode == 1
    assert "reap it there" in result.stderr
    assert path.read_bytes() == content


def test_reap_of_a_damaged_table_says_that_it_is_incomplete(merger, name):
    merger._segment.table.damage()
    result = run("reap", name)
    assert result.returncode == 1
    assert "damaged" in result.stderr


def test_a_file_in_the_way_is_one_clean_line(name):
    place(name, content=b"x", mode=0o644)
    result = run("reap", name)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "0644" in result.stderr


# ---- destroy -----------------------------------------------------------------------------------


def test_destroy_is_refused_while_a_living_process_leads(name, start):
    leader = start(LEADER, "'k'")
    result = run("destroy", name, "--yes")
    assert result.returncode == 1
    assert str(leader.pid) in result.stderr
    assert result.stderr.count("\n") == 1
    assert only_table(name)["flight_count"] == 1


def test_destroy_is_refused_while_a_process_has_it_open_without_a_call(name, start):
    opener = start(OPENER)
    result = run("destroy", name, "--yes")
    assert result.returncode == 1
    assert str(opener.pid) in result.stderr
    opener.kill()
    opener.wait()
    assert run("destroy", name, "--yes").returncode == 0


def test_destroy_with_force_removes_a_table_in_use(name, start):
    start(LEADER, "'k'")
    result = run("destroy", name, "--yes", "--force")
    assert result.returncode == 0
    assert "destroyed 1 segment " in result.stdout
    assert files_of(name) == []


def test_destroy_removes_all_that_belongs_to_a_table_whose_users_died(name, start):
    leader = start(LEADER, "'k'")
    leader.kill()
    leader.wait()
    place(name, content=b"12345", partition="~r1.2.3")
    assert run("destroy", name, "--yes").returncode == 0
    assert files_of(name) == []


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 1, 1), ("", 1, 1)])
def test_destroy_asks_first(name, answer, code, left):
    place(name, content=bytes(4096))
    result = run("destroy", name, input=answer)
    assert result.returncode == code
    assert "Destroy table" in result.stdout
    assert len(files_of(name)) == left


def test_a_table_of_another_pid_namespace_is_destroyed_only_on_demand(name):
    path = place(name, content=bytes(4096), namespace="abcdef12")
    assert run("destroy", name, "--yes").returncode == 1
    refused = run("destroy", name, "--yes", "--foreign")
    assert refused.returncode == 1
    assert "cannot be told" in refused.stderr
    assert path.exists()
    assert run("destroy", name, "--yes", "--foreign", "--force").returncode == 0
    assert files_of(name) == []


# ---- doctor ------------------------------------------------------------------------------------


def test_doctor_looks_at_everything_and_leaves_nothing():
    command = [sys.executable, "-m", "uniflight_mp", "doctor"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as doctor:
        output, errors = doctor.communicate(timeout=60)
    assert doctor.returncode == (1 if "PROBLEM" in output else 0)
    assert errors == ""
    for check in (
        "versions",
        "core",
        "kernel",
        "/dev/shm",
        "PID namespace",
        "open files",
        "RemoveIPC",
    ):
        assert check in output
    assert "a killed leader was replaced within" in output
    assert files_of(f"doctor-{doctor.pid}-") == []


def test_doctor_ends_with_1_when_a_limit_makes_tables_impossible():
    def shrink():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    result = run("doctor", preexec_fn=shrink)
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if "limit of file size" in line]
    assert "PROBLEM" in line
    assert "Traceback" not in result.stderr
    assert "the trial failed" in result.stdout


def test_doctor_reports_a_check_that_fails_itself(monkeypatch):
    monkeypatch.setattr(shmfile, "SHM_DIR", "/proc/nonexistent")
    monkeypatch.setattr(doctor, "SHM_DIR", "/proc/nonexistent")
    result = call("doctor")
    assert result.exit_code == 1
    assert "does not exist" in result.output


def test_doctor_names_tables_of_other_namespaces_and_files_that_are_no_tables(name):
    place(name, content=b"x" * 4096)
    place(f"{name}-f", content=b"x", namespace="abcdef12")
    result = run("doctor")
    assert result.returncode == 1
    assert f"{name}-f" in result.stdout
    assert "is not a table" in result.stdout.replace("\n", " ")


def test_free_space_is_judged_against_the_default_table_and_a_big_result():
    assert doctor._judge_space(1 << 40, "tmpfs").status == "OK"
    assert doctor._judge_space(64 << 20, "tmpfs").status == "WARN"
    problem = doctor._judge_space(1 << 20, "tmpfs")
    assert problem.status == "PROBLEM"
    assert "--shm-size" in problem.advice


@pytest.fixture
def machine(tmp_path):
    """A file system of a machine where systemd runs."""
    write(tmp_path / "run/systemd/system/.keep")
    write(tmp_path / "etc/systemd/logind.conf", "[Login]\n#RemoveIPC=no\n")
    return tmp_path


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_systemd_removes_the_tables_of_ordinary_users_by_default(machine):
    finding = doctor._judge_remove_ipc(machine, 1000, "ann")
    assert finding.status == "WARN"
    assert "enable-linger ann" in finding.advice


def test_systemd_keeps_the_tables_of_system_users(machine):
    assert doctor._judge_remove_ipc(machine, 0, "root").status == "OK"
    assert doctor._judge_remove_ipc(machine, 999, "www").status == "OK"
    write(machine / "etc/login.defs", "# SYS_UID_MAX 1\nSYS_UID_MAX\t\t  499\n")
    assert doctor._judge_remove_ipc(machine, 500, "www").status == "WARN"


def test_systemd_keeps_the_tables_of_a_user_who_lingers(machine):
    write(machine / "var/lib/systemd/linger/ann")
    assert doctor._judge_remove_ipc(machine, 1000, "ann").status == "OK"
    assert doctor._judge_remove_ipc(machine, 1001, "bob").status == "WARN"


def test_the_last_word_on_removeipc_is_that_of_the_last_drop_in(machine):
    write(machine / "usr/lib/systemd/logind.conf.d/50-a.conf", "[Login]\nRemoveIPC=no\n")
    assert doctor._judge_remove_ipc(machine, 1000, "ann").status == "OK"
    write(machine / "run/systemd/logind.conf.d/60-b.conf", "[Login]\nRemoveIPC = yes\n")
    assert doctor._judge_remove_ipc(machine, 1000, "ann").status == "WARN"
    write(machine / "etc/systemd/logind.conf.d/60-b.conf", "[Login]\n")  # masks the other 60-b
    assert doctor._judge_remove_ipc(machine, 1000, "ann").status == "OK"


def test_without_systemd_nobody_removes_tables(tmp_path):
    assert doctor._judge_remove_ipc(tmp_path, 1000, "ann").status == "OK"


# ---- identity ----------------------------------------------------------------------------------


def started(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_process_is_known_by_its_pid_and_its_start_time():
    pid = os.getpid()
    assert identity.look_up(pid, started(pid)).state == "alive"
    assert identity.look_up(pid, started(pid) - 1).is_dead
    assert identity.look_up(pid).state == "alive"  # no start time on record: no proof


def test_the_start_time_in_a_thread_record_is_the_one_that_proc_tells(merger):
    merger.execute("k", int)
    ((pid, _, start_time),) = merger._segment.table.threads()
    assert start_time == started(pid)


def test_a_zombie_is_dead_and_so_is_a_pid_of_nobody():
    with subprocess.Popen(["true"]) as child:
        wait_until(lambda: identity.look_up(child.pid).state == "zombie")
        assert identity.look_up(child.pid).is_dead
    assert identity.look_up(child.pid) == identity.Process(child.pid, "dead")


def test_a_process_that_cannot_be_looked_at_counts_as_alive(monkeypatch):
    monkeypatch.setattr(identity, "_read_stat", lambda pid: None)  # as /proc with hidepid=2
    process = identity.look_up(os.getpid(), 1)
    assert process.state == "unknown"
    assert not process.is_dead


def test_a_command_with_parentheses_and_spaces_does_not_confuse(tmp_path):
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as child:
        try:
            process = wait_until(lambda: identity.look_up(child.pid, started(child.pid)))
            assert process.state == "alive"
        finally:
            child.kill()


# ---- the command itself ------------------------------------------------------------------------


def test_importing_the_package_imports_no_command_line_library():
    check = "import sys, uniflight_mp; sys.exit(bool({'click', 'rich'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


def test_version_is_that_of_the_distribution():
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("uniflight-mp")


def test_help_states_the_exit_codes_and_every_command():
    result = run("--help")
    assert result.returncode == 0
    assert "0 done; 1 not found, refused" in " ".join(result.stdout.split())
    for command in ("inspect", "reap", "destroy", "doctor", "demo"):
        assert f"  {command} " in result.stdout


def test_without_the_compiled_core_one_line_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(reports, "is_built", lambda: False)
    monkeypatch.setattr(doctor, "is_built", lambda: False)
    result = call("inspect")
    assert result.exit_code == 1
    assert "compiled core" in result.output
    assert call("doctor").exit_code == 1
