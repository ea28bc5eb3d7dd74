"""Somebody writes into a table: calls run alone or raise, values are right, nobody hangs or dies.

The writer is the test itself. It spares the bytes of mutexes and semaphores, whose format is
libc's: peers of the same user are trusted as far as that.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time

import pytest
import stage as stages
from crash_worker import EXTRA
from history import judge
from layout import CELL, DONE, GROUP, HEADER, SLOT, THREAD, Image
from scenarios import KEY
from stage import SHM, Hang, until

import uniflight_mp

# What the calls of a table may raise while it is being damaged.
ERRORS = {
    name
    for name in dir(uniflight_mp)
    if isinstance(cls := getattr(uniflight_mp, name), type)
    and issubclass(cls, uniflight_mp.UniflightError)
}
# A table can say of a thread that it leads what it does not; joining that is refused.
ERRORS.add("RuntimeError")
# In a table that says of a living leader that it is dead, two can lead.
TWO_LEADERS = ("two leaders at once", "a fenced leader's value")
SMALL_TABLE = {"flights": 64, "waiters": 16, "threads": 16}


@pytest.fixture(autouse=True)
def less_patience(monkeypatch):
    """Hangs are what these tests are after, and there may be many."""
    monkeypatch.setattr(stages, "PATIENCE", 6)


@pytest.fixture
def stage(lenient_stage):
    return lenient_stage


@pytest.fixture
def image(stage):
    """A function that maps the stage's table as it is now."""
    images = []

    def mapped():
        name, geometry = stage.observer.ask("survey", table=stage.table)
        images.append(Image(SHM / name, geometry))
        return images[-1]

    yield mapped
    for each in images:
        each.close()


def nothing_worse_happened(stage):
    for actor in stage.cast:
        actor.dismiss()
    violations = judge(stage.history, may_raise=ERRORS).violations
    assert [text for text in violations if not text.startswith(TWO_LEADERS)] == []


def nothing_is_left(stage):
    """After one open and one call, of whatever table there is now."""
    stage.history.clear()
    stage.curtain()


def they_coalesce(stage, leader, follower):
    """Let the two meet at a key; return whether one had the other's value."""
    gate = stage.gate()
    leader.leads(KEY, gate=str(gate))
    follower.call(KEY)
    follower.falls_asleep()
    gate.open()
    leader.outcome()
    return follower.outcome().get("role") == "follower"


def they_coalesce_again(stage, leader, follower):
    """... at the latest a little after the table can have been looked at again."""
    until(lambda: they_coalesce(stage, leader, follower), "they coalesce again", 5)


# ---- one word at a time --------------------------------------------------------------------

STRUCTS = {"slot": SLOT, "cell": CELL, "thread": THREAD, "group": GROUP}
WORDS = [
    pytest.param(struct, field, id=f"{struct}.{field.name}")
    for struct, of in STRUCTS.items()
    for field in of.values()
    if not field.opaque
    and field.name not in ("pad", "reserved")
    # An epoch that is one too high cannot be told from a takeover: its flight has no leader
    # that would end it, and is left to the lease and the timeout.
    and (struct, field.name) != ("slot", "epoch")
]


def damaged_values(field, now):
    """Nothing, everything, a little more or less, and noise."""
    everything = (1 << 8 * field.size) - 1
    noise = random.Random(field.name).getrandbits(8 * field.size)
    return dict.fromkeys((0, everything, (now + 1) & everything, now ^ 2, noise))


@pytest.mark.parametrize(("struct", "field"), WORDS)
def test_a_damaged_word_hangs_nobody(stage, image, struct, field):
    """It is written while a leader runs and a follower waits, without any timeout."""
    stage.options["limits"] = SMALL_TABLE
    leader, follower = stage.enter("leader", "follower")
    for number in itertools.count():
        gate = stage.gate()
        leader.leads(KEY, gate=str(gate))
        follower.call(KEY)
        stage.followers(1)
        table = image()
        slot = table.slot(table.used_slot())
        base = {
            "slot": slot,
            "cell": table.cell(table.used_cells()[0]),
            "thread": table.thread((table.read(slot, SLOT["leader"]) & 0xFFFF) - 1),
            "group": table.group(0),
        }[struct]
        values = list(damaged_values(field, table.read(base, field)))[number:]
        if values:
            table.write(base, field, values[0])
        gate.open()
        try:
            assert leader.outcome()["role"] == "leader"
            follower.outcome()
            if not values:
                break
            they_coalesce_again(stage, leader, follower)
        except Hang as hang:
            pytest.fail(f"{struct}.{field.name} = {values[0]:#x}: {hang}")
    nothing_worse_happened(stage)


# ---- payloads ------------------------------------------------------------------------------


def published(stage, leader, follower, size=200, then="return"):
    """Bring a flight to where its value lies in the table, and its follower is yet to take it."""
    gate = stage.gate()
    source = leader.leads(KEY, size=size, gate=str(gate), then=then)
    follower.call(KEY)
    stage.followers(1)
    follower.stop()
    gate.open()
    leader.outcome()
    assert [row[0] for row in stage.peek()] == ["done"]
    return source


@pytest.mark.parametrize("place", [0, 1, 37, -1])
def test_an_inline_value_with_a_flipped_byte_is_never_returned(stage, image, place):
    stage.options["limits"] = SMALL_TABLE
    leader, follower = stage.enter("leader", "follower")
    published(stage, leader, follower)
    table = image()
    slot = table.used_slot()
    size = table.read(table.slot(slot), SLOT["payload_bytes"])
    table.bytes[table.payload(slot).start + place % size] ^= 0x10
    follower.go_on()
    assert follower.outcome()["role"] == "solo"
    they_coalesce_again(stage, leader, follower)
    name, _, inode, _ = follower.ask("identity")
    assert (SHM / name).stat().st_ino == inode
    nothing_worse_happened(stage)
    nothing_is_left(stage)


@pytest.mark.parametrize("change", ["flip", "cut", "remove"])
def test_an_extra_value_that_is_not_what_was_published_is_never_returned(stage, change):
    leader, follower = stage.enter("leader", "follower")
    published(stage, leader, follower, size=EXTRA)
    (extra,) = SHM.glob(f"*-{stage.table}~r*")
    if change == "flip":
        with open(extra, "r+b") as file:
            file.seek(EXTRA // 2)
            file.write(b"\0")
    elif change == "cut":
        os.truncate(extra, EXTRA // 2)
    else:
        extra.unlink()
    follower.go_on()
    assert follower.outcome()["role"] == "solo"
    they_coalesce_again(stage, leader, follower)
    stage.curtain()


@pytest.mark.parametrize("then", ["return", "raise"])
@pytest.mark.parametrize("kind", range(10))
def test_a_payload_of_another_kind_is_not_taken_for_a_value(stage, image, kind, then):
    stage.options["limits"] = SMALL_TABLE
    leader, follower = stage.enter("leader", "follower")
    source = published(stage, leader, follower, then=then)
    table = image()
    base = table.slot(table.used_slot())
    assert table.read(base, SLOT["state"]) == DONE
    true_kind = table.read(base, SLOT["payload"])
    table.write(base, SLOT["payload"], kind)
    follower.go_on()
    outcome = follower.outcome()
    if kind == true_kind:
        assert outcome.get("execution", source["execution"]) == source["execution"]
        assert outcome.get("error") in (None, "LookupError")
    else:
        assert outcome.get("role", "solo") == "solo"
        assert outcome.get("error", "LeaderDied") in ERRORS
    if then == "return":
        they_coalesce_again(stage, leader, follower)
        nothing_worse_happened(stage)


# ---- noise ---------------------------------------------------------------------------------


class Noise:
    """Writes random bytes anywhere but into mutexes and semaphores, and the header."""

    def __init__(self, table, dice):
        self.table = table
        self.dice = dice
        self.words = [
            (base, field)
            for base, of in table.structs()
            for field in of.values()
            if not field.opaque and field.name != "pad"
        ]
        self.busy = [word for word in self.words if self._is_used(word[0])]

    def _is_used(self, base):
        """Near the beginnings: low records, slots and cells are the ones in use."""
        table = self.table
        return (
            base < table.thread(8)
            or table.group(0) <= base < table.slot(4)
            or table.cell(0) <= base < table.cell(8)
        )

    def write(self):
        fate = self.dice.random()
        if fate < 0.1:
            payload = self.table.payload(self.dice.randrange(4))
            self.table.bytes[payload.start + self.dice.randrange(300)] = self.dice.randrange(256)
            return
        base, field = self.dice.choice(self.busy if fate < 0.9 else self.words)
        place = base + field.offset + self.dice.randrange(field.size)
        self.table.bytes[place] = self.dice.choice((0, 1, 2, 255, self.dice.randrange(256)))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", range(4))
def test_noise_in_the_table_harms_no_process_and_no_value(stage, image, number):
    seed = int(os.environ.get("UNIFLIGHT_STORM_SEED", time.time_ns() % 1_000_000)) + number
    print(f"UNIFLIGHT_STORM_SEED={seed - number}")
    dice = random.Random(seed)
    stage.options["limits"] = SMALL_TABLE
    actors = stage.enter("1st", "2nd", "3rd", "4th")
    for actor in actors:
        actor.send("storm", seed=seed, seconds=2.0)
    noise, tables = None, 0
    end = time.monotonic() + 1.7
    while time.monotonic() < end:
        # As soon as the table is replaced, the new one is damaged.
        path = SHM / stage.observer.ask("name", table=stage.table)
        if noise is None or not _leads_to(path, noise.inode):
            try:
                inode = path.stat().st_ino
                noise = Noise(Image(path, GEOMETRY), dice)
            except (FileNotFoundError, ValueError, AssertionError):
                continue  # between two tables
            noise.inode = inode
            tables += 1
        for _ in range(dice.choice((1, 1, 3, 30))):
            noise.write()
        for actor in actors:
            actor.drain()  # or a full pipe would stop it
        time.sleep(dice.choice((0, 0.001, 0.02)))
    for actor in actors:
        assert actor.reply() is None
    _give_up(SHM / stage.observer.ask("name", table=stage.table))
    they_coalesce_again(stage, *actors[:2])
    they_coalesce_again(stage, *actors[2:])
    they_coalesce_again(stage, *actors[1:3])
    print(f"{tables} tables; {judge(stage.history, may_raise=ERRORS)}")
    assert tables > 1
    nothing_worse_happened(stage)
    nothing_is_left(stage)


GEOMETRY = {"flights": 64, "waiters_per_group": 16, "threads": 16, "inline_bytes": 4096}


def _leads_to(path, inode):
    try:
        return path.stat().st_ino == inode
    except FileNotFoundError:
        return True  # for now


def _give_up(path):
    """What noise left may be harmless, and is then not noticed; this is."""
    table = Image(path, GEOMETRY)
    for slot in range(64):
        table.write(table.slot(slot), SLOT["state"], 77)
    table.close()


@pytest.mark.parametrize(
    ("struct", "name", "value"),
    [("slot", "state", 1), ("slot", "state", 3), ("group", "attached", (1 << 64) - 1)],
)
def test_an_idle_table_that_looks_full_is_emptied_or_replaced(stage, image, struct, name, value):
    """Flights of nobody, and keys without flights."""
    stage.options["limits"] = SMALL_TABLE
    first, second = stage.enter("first", "second")
    table = image()
    for base, of in table.structs():
        if of is STRUCTS[struct]:
            table.write(base, of[name], value)
    they_coalesce_again(stage, first, second)
    nothing_worse_happened(stage)


def test_an_idle_table_whose_waiters_are_nonsense_is_emptied_or_replaced(stage, image):
    stage.options["limits"] = SMALL_TABLE
    first, second = stage.enter("first", "second")
    table = image()
    for cell in range(table.cells):
        table.write(table.cell(cell), CELL["owner"], random.Random(cell).getrandbits(64))
    they_coalesce_again(stage, first, second)
    nothing_worse_happened(stage)


def test_a_table_whose_slots_are_nonsense_is_replaced(stage):
    first, second = stage.enter("first", "second")
    name, *old, _ = first.ask("identity")
    stage.options["limits"] = SMALL_TABLE
    table = Image(SHM / name, first.ask("geometry"))
    for slot in range(64):
        table.write(table.slot(slot), SLOT["state"], 77)
    table.close()
    they_coalesce_again(stage, first, second)
    assert first.ask("identity")[1:3] != old
    assert first.ask("identity") == second.ask("identity")
    nothing_worse_happened(stage)


# ---- headers -------------------------------------------------------------------------------

HEADERS = [
    ("magic", 0, "TableCorrupt", "is not a table"),
    ("magic", 0x31504D7468676C67, "TableCorrupt", "is not a table"),
    ("layout_version", 99, "TableMismatch", "another layout"),
    ("format", 0x12345678, "TableMismatch", "another layout"),
    ("bytes", 4096, "TableCorrupt", "contradict"),
    ("groups", 3, "TableCorrupt", "contradict"),
    ("groups", 2, "TableCorrupt", "contradict"),
    ("groups", 0, "TableCorrupt", "contradict"),
    ("cells", 0, "TableCorrupt", "contradict"),
    ("cells", 0xFFFFFFFF, "TableCorrupt", "contradict"),
    ("threads", 0x7FFFFFFF, "TableCorrupt", "contradict"),
    ("inline_bytes", 65, "TableCorrupt", "contradict"),
]


@pytest.mark.parametrize(("name", "value", "error", "text"), HEADERS)
def test_a_patched_header_is_refused_and_those_inside_go_on(stage, image, name, value, error, text):
    first, second = stage.enter("first", "second")
    (newcomer,) = stage.start("newcomer")
    image().write(0, HEADER[name], value)
    refusal = newcomer.ask("open", table=stage.table, **stage.options)
    assert refusal.startswith(f"{error}: ")
    assert text in refusal
    assert stage.table in refusal
    assert f"destroy {stage.table}" in refusal
    assert they_coalesce(stage, first, second)
    nothing_worse_happened(stage)


@pytest.mark.parametrize("name", ["asked_flights", "asked_waiters", "result_bytes"])
@pytest.mark.parametrize("value", [0, 0xFFFFFFFF])
def test_a_patched_header_that_fits_is_no_riddle(stage, image, name, value):
    """Numbers that only serve the warning of other limits must not make opening fail."""
    stage.enter("first")
    (newcomer,) = stage.start("newcomer")
    image().write(0, HEADER[name], value)
    refusal = newcomer.ask("open", table=stage.table, **stage.options)
    assert refusal is None or refusal.startswith(("TableCorrupt: ", "TableMismatch: "))


@pytest.mark.parametrize("size", [0, 100, 4096, 1 << 20])
def test_a_file_of_another_size_is_no_table(stage, size):
    (newcomer,) = stage.start("newcomer")
    path = SHM / stage.observer.ask("name", table=stage.table)
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
        file.truncate(size)
    refusal = newcomer.ask("open", table=stage.table)
    assert refusal.startswith("TableCorrupt: ")


# ---- what cannot be replaced ---------------------------------------------------------------


def test_a_damaged_table_that_cannot_be_replaced_costs_a_call_less_than_a_second(stage):
    """Who holds the table's file lock is stopped; six threads of one process call."""
    holder, caller, other = stage.enter("holder", "caller", "other")
    holder.send("hold_lock")
    holder.stops()
    caller.ask("damage")
    for _ in range(6):
        caller.send("call", key=KEY, thread=True, options={"timeout": 0})
    outcomes = [caller.expect("return", "raise") for _ in range(6)]
    assert {outcome.get("role") for outcome in outcomes} == {"solo"}
    holder.go_on()
    holder.reply()
    caller.seen = len(caller.events)
    they_coalesce_again(stage, other, caller)
    nothing_worse_happened(stage)


def test_a_file_in_the_way_of_a_big_result_makes_it_too_large(stage):
    leader, follower = stage.enter("leader", "follower")
    name, _, inode, _ = leader.ask("identity")
    for epoch in range(1, 4):
        (SHM / f"{name}~r{inode:x}.0.{epoch}").write_bytes(b"squatted")
    gate = stage.gate()
    source = leader.leads(KEY, size=EXTRA, gate=str(gate))
    follower.call(KEY, size=EXTRA)
    stage.followers(1)
    gate.open()
    assert leader.outcome()["execution"] == source["execution"]
    assert follower.outcome()["role"] == "solo"
    stage.curtain()


def test_a_process_that_dies_in_a_damaged_table_stops_nobody(stage, image):
    """Locks left by the dead, in groups whose lists are nonsense."""
    stage.options["limits"] = SMALL_TABLE
    victim, first, second = stage.enter("victim", "first", "second")
    gate = stage.gate()
    victim.leads(KEY, gate=str(gate), arm=["FINISH_LOCKED", "kill", "function"])
    first.call(KEY)
    stage.followers(1)
    table = image()
    for cell in range(table.cells):
        table.write(table.cell(cell), CELL["next"], cell + 1)  # every cell follows itself
    gate.open()
    victim.dies(signal.SIGKILL)
    first.outcome()
    they_coalesce_again(stage, first, second)
    nothing_worse_happened(stage)
