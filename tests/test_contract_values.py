"""Contract: one execution for overlapping calls, and what its followers receive."""

from __future__ import annotations

import datetime
import decimal
import enum
import os
import uuid
import weakref

import pytest
from crew import wait_for_followers

from uniflight_mp import (
    Merger,
    MsgpackCodec,
    Outcome,
    RawCodec,
    ResultNotShareable,
    Role,
)


def never():
    raise AssertionError("the function of a follower was called")


def give(value):
    return value


def gather(merger, journal, followers):
    """Note that it ran, and end only when ``followers`` have joined."""
    with open(journal, "a") as file:
        file.write(f"{os.getpid()}\n")
    wait_for_followers(merger, followers)
    return os.getpid()


class Colour(enum.Enum):
    RED = 1


class CountingCodec(MsgpackCodec):
    encoded = 0

    def encode(self, value):
        self.encoded += 1
        return super().encode(value)


class TextCodec:
    """A user's own codec, for str only."""

    def encode(self, value):
        return value.encode()

    def decode(self, payload):
        return bytes(payload).decode()


class DeafCodec(MsgpackCodec):
    """Decodes nothing, as a process of an older release might."""

    def decode(self, payload):
        raise ValueError("what is this?")


class Opaque:
    """No codec knows it."""


# ---- one execution ----------------------------------------------------------------------


def test_overlapping_calls_run_one_function_and_all_get_its_value(merger, crew, leading, followed):
    leader = leading(merger, "key")
    calls = [crew.start(merger.flight, "key", never) for _ in range(3)]
    followed(merger, 3)
    first = leader.outcome("value")
    assert first == Outcome("value", Role.LEADER, 3, 0.0, 0, os.getpid())
    for call in calls:
        outcome = call.result()
        assert outcome.waited > 0
        assert outcome == Outcome("value", Role.FOLLOWER, 3, outcome.waited, 0, os.getpid())


def test_callers_who_begin_at_the_same_moment_elect_one_leader(merger, crew, tmp_path):
    journal = tmp_path / "journal"
    calls = [crew.start(merger.flight, "key", gather, merger, journal, 3) for _ in range(4)]
    outcomes = [call.result() for call in calls]
    assert len(journal.read_text().split()) == 1
    assert sorted(outcome.role.value for outcome in outcomes) == ["follower"] * 3 + ["leader"]
    assert {outcome.value for outcome in outcomes} == {outcomes[0].leader_pid}


def test_execute_returns_the_bare_value_and_passes_arguments(merger, crew, leading, followed):
    assert merger.execute("key", dict, [("a", 1)], b=2) == {"a": 1, "b": 2}
    leader = leading(merger, "key")
    call = crew.start(merger.execute, "key", never)
    followed(merger)
    leader.finish({"a": 1})
    assert call.result() == {"a": 1}


def test_the_key_and_function_parameters_leave_all_names_to_the_function(merger):
    def names(**kwargs):
        return kwargs

    given = {"key": 1, "func": 2, "self": 3}
    assert merger.execute("key", names, **given) == given
    assert merger.flight("key", names, **given).value == given


def test_a_call_that_joins_late_gets_the_value_too(merger, crew, leading, followed):
    leader = leading(merger, "key")
    early = crew.start(merger.flight, "key", never)
    followed(merger, 1)
    late = crew.start(merger.flight, "key", never)
    followed(merger, 2)
    leader.finish(1)
    assert [early.result().value, late.result().value] == [1, 1]


def test_nothing_is_remembered_after_a_value(merger, crew):
    assert merger.execute("key", give, 1) == 1
    assert crew.start(merger.flight, "key", give, 2).result().value == 2
    outcome = merger.flight("key", give, 3)
    assert (outcome.value, outcome.role, outcome.followers) == (3, Role.LEADER, 0)
    assert merger.flights() == []


def test_flights_of_different_keys_do_not_wait_for_each_other(merger, crew, leading):
    leading(merger, "slow")
    assert crew.start(merger.execute, "fast", give, 2).result() == 2


class EncodingGate(MsgpackCodec):
    """Calls back from encode, when the function has returned and nothing is published yet."""

    def __init__(self, callback):
        super().__init__()
        self.callback = callback

    def encode(self, value):
        self.callback()
        return super().encode(value)


@pytest.mark.shared
@pytest.mark.parametrize("strict", [False, True])
def test_a_call_that_begins_after_the_function_returned_runs_its_own(
    table_name, hands, leading, followed, strict
):
    def begin_late():
        merger._codec.callback = lambda: None  # the late call encodes as well, if it is strict
        late.append(hands.start(plain.flight, "key", give, "fresh", where="forked").result(5))

    late, plain = [], Merger(table_name)
    merger = Merger(table_name, codec=EncodingGate(begin_late), strict=strict)
    leader = leading(merger, "key")
    early = hands.start(plain.flight, "key", never, where="forked")
    followed(merger)
    assert leader.outcome("old").value == "old"
    assert early.result().value == "old"
    assert [late[0].value, late[0].role] == ["fresh", Role.LEADER]


# ---- keys -------------------------------------------------------------------------------


def test_equal_values_of_five_types_are_five_keys(merger, leading):
    keys = [1, "1", b"1", True, 1.0]
    for key in keys:
        leading(merger, key)
    found = [flight.key for flight in merger.flights()]
    assert sorted(map(repr, found)) == sorted(map(repr, keys))


@pytest.mark.shared
@pytest.mark.parametrize(
    ("key", "same"),
    [
        ("grün", "grün"),
        (b"1", b"1"),
        (b"1", bytearray(b"1")),
        (b"1", memoryview(b"1")),
        (-7, -7),
        (1 << 100, 1 << 100),
        (0.5, 0.5),
        (None, None),
        (True, True),
        (uuid.UUID(int=5), uuid.UUID(int=5)),
        (Colour.RED, Colour.RED),
        (datetime.date(2024, 2, 29), datetime.date(2024, 2, 29)),
        (datetime.datetime(2024, 2, 29, 1), datetime.datetime(2024, 2, 29, 1)),
        (datetime.time(1, 2), datetime.time(1, 2)),
        (("sku", 42, (None, b"x")), ("sku", 42, (None, b"x"))),
        ("x" * 100_000, "x" * 100_000),
        (b"x" * 100_000, bytearray(b"x" * 100_000)),
    ],
    ids=lambda key: repr(key)[:20],
)
def test_equal_keys_meet_in_different_processes(merger, hands, leading, followed, key, same):
    leader = leading(merger, key)
    call = hands.start(merger.execute, same, never, where="forked")
    followed(merger)
    leader.finish("value")
    assert call.result() == "value"


@pytest.mark.parametrize("length", [10, 126, 127, 128, 129, 1000, 1_000_000])
def test_keys_of_any_length_that_differ_at_the_end_are_different(merger, leading, length):
    key = "x" * (length - 1)
    leading(merger, key + "a")
    outcome = merger.flight(key + "b", give, 2)
    assert (outcome.role, outcome.value) == (Role.LEADER, 2)


@pytest.mark.parametrize("key", [[1], {"a": 1}, object(), ("sku", [1]), 1j, range(3)])
def test_other_types_are_refused_with_the_two_ways_out(merger, key):
    with pytest.raises(TypeError) as info:
        merger.execute(key, never)
    text = str(info.value)
    assert type(key).__name__ in text or "list" in text
    assert "key= function" in text
    assert "tuple" in text
    with pytest.raises(TypeError, match="no key can have"):
        merger.forget(key)


# ---- what followers receive -------------------------------------------------------------

ZOO = {
    "tuple": (1, (2, [3, {4}]), frozenset({5})),
    "dict": {1: "a", "b": None, (2, 3): [], b"c": {}},
    "numbers": [True, 1, -(1 << 200), 0.1, 1 + 2j, decimal.Decimal("1.10")],
    "bytes": [b"a", bytearray(b"b")],
    "times": [
        datetime.date(2024, 2, 29),
        datetime.time(1, 2, 3, 4),
        datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone.utc),
        datetime.timedelta(days=-1, microseconds=1),
    ],
    "uuid": uuid.UUID(int=7),
    "nothing": None,
}


def shape(value):
    """Return the value with the type of every part, recursively."""
    if isinstance(value, dict):
        return dict, [(shape(key), shape(value[key])) for key in value]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, map(shape, value)))
    if isinstance(value, (list, tuple)):
        return type(value), [shape(part) for part in value]
    return type(value), repr(value)


@pytest.mark.parametrize("what", ZOO)
def test_followers_elsewhere_receive_an_equal_copy_with_the_same_types(
    merger, processes, leading, followed, what
):
    leader = leading(merger, "key")
    call = processes.start(merger.flight, "key", never)
    followed(merger)
    leader.finish(ZOO[what])
    assert shape(call.result().value) == shape(ZOO[what])


def test_followers_in_the_leaders_process_receive_the_very_object(merger, hands, leading, followed):
    value = [Opaque()]  # shareable or not
    leader = leading(merger, "key")
    calls = [hands.start(Merger(merger.name).flight, "key", never) for _ in range(3)]
    followed(merger, 3)
    assert leader.outcome(value).value is value
    assert all(call.result().value is value for call in calls)
    assert merger.stats().published_bytes == 0


def test_the_object_is_let_go_when_the_last_follower_has_it(merger, hands, leading, followed):
    import weakref

    value = Opaque()
    gone = weakref.ref(value)
    leader = leading(merger, "key")
    call = hands.start(merger.flight, "key", never)
    followed(merger)
    leader.finish(value)
    assert call.result().value is value
    call._message = call._thread.message = leader._answer = leader._call._message = None
    leader._call._thread.message = None
    del value
    assert gone() is None


@pytest.mark.shared
def test_threads_get_the_object_and_processes_a_copy_of_the_same_flight(
    merger, hands, leading, followed
):
    value = {"a": (1, 2)}
    leader = leading(merger, "key")
    thread = hands.start(merger.flight, "key", never)
    process = hands.start(merger.flight, "key", never, where="forked")
    followed(merger, 2)
    leader.finish(value)
    assert thread.result().value is value
    assert process.result().value == value


def evaluate(_):
    raise RuntimeError("evaluated")


class Lazy:
    """As a lazy proxy: whoever asks for its class evaluates it."""

    __class__ = property(evaluate)
    __repr__ = evaluate

    def __call__(self):
        async def function():
            pass

        return function()


def dead_proxy():
    return weakref.proxy(Lazy())


def test_a_value_is_passed_on_unasked(merger):
    kinds = [type(merger.execute("key", function)) for function in (Lazy, dead_proxy)]
    assert kinds == [Lazy, weakref.CallableProxyType]


class LazyExit(BaseException):
    __class__ = property(evaluate)


def test_an_exception_is_passed_on_unasked(merger):
    with pytest.raises(LazyExit):
        merger.execute("key", throw, LazyExit())


def throw(error):
    raise error


def test_a_function_is_not_asked_what_it_is_called(merger):
    with pytest.raises(TypeError, match="Lazy: no repr> returned a coroutine"):
        merger.execute("key", Lazy())


# ---- codecs -----------------------------------------------------------------------------


def test_nothing_is_encoded_without_followers_in_other_processes(
    table_name, hands, leading, followed
):
    codec = CountingCodec()
    merger = Merger(table_name, codec=codec)
    assert merger.execute("key", give, 1) == 1
    leader = leading(merger, "key")
    hands.start(merger.flight, "key", never)
    followed(merger)
    leader.finish(1)
    assert codec.encoded == 0


@pytest.mark.shared
def test_a_value_is_encoded_once_for_any_number_of_followers(table_name, hands, leading, followed):
    codec = CountingCodec()
    merger = Merger(table_name, codec=codec)
    leader = leading(merger, "key")
    calls = [hands.start(merger.flight, "key", never, where="forked") for _ in range(3)]
    followed(merger, 3)
    leader.finish("value")
    assert [call.result().value for call in calls] == ["value"] * 3
    assert codec.encoded == 1


@pytest.mark.parametrize(
    ("codec", "value"), [(RawCodec(), b"\0raw"), (RawCodec(), b""), (TextCodec(), "grün")]
)
def test_any_object_with_encode_and_decode_is_a_codec(
    table_name, processes, leading, followed, codec, value
):
    merger = Merger(table_name, codec=codec)
    leader = leading(merger, "key")
    call = processes.start(merger.flight, "key", never)
    followed(merger)
    leader.finish(value)
    assert call.result().value == value
    assert merger.stats().published_bytes == len(codec.encode(value))


class BrokenCodec:
    """Encodes with what the test says: raises it, or returns it although it is no bytes."""

    def __init__(self, answer):
        self.answer = answer

    def encode(self, value):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def decode(self, payload):
        return bytes(payload)


@pytest.mark.shared
@pytest.mark.parametrize("answer", [KeyError("x"), "text", None, 7, memoryview(b"1234")[::2]])
def test_a_codec_that_fails_costs_the_leader_nothing(table_name, hands, leading, followed, answer):
    merger = Merger(table_name, codec=BrokenCodec(answer))
    leader = leading(merger, "key")
    call = hands.start(Merger(table_name).flight, "key", give, "own", where="forked")
    followed(merger)
    with pytest.warns(RuntimeWarning, match="the codec"):
        assert leader.outcome("value").value == "value"
    assert [call.result().value, call.result().role] == ["own", Role.SOLO]
    with pytest.raises(ResultNotShareable, match="the codec"):
        merger.with_options(strict=True).execute("key", give, 1)
