"""How a leader's exception reaches followers: same class if possible, bounded always."""

from __future__ import annotations

import contextlib
import sys
import types
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniflight_mp import failure
from uniflight_mp.codec import MsgpackCodec, RawCodec
from uniflight_mp.errors import FlightTimeout, LeaderPanicked
from uniflight_mp.failure import FAILURE_BYTES, decode_failure, encode_failure

CODEC = MsgpackCodec()
PID = 4242


class NotFound(LookupError):
    """Rebuilds from its args."""


class Priced(Exception):
    """Keeps its args although __init__ computes."""

    def __init__(self, sku, price):
        super().__init__(sku, price)
        self.label = f"{sku} at {price}"


class Reworded(Exception):
    """Its args are not what __init__ takes."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")


class Counting(Exception):
    """Rebuilds, but into other args."""

    def __init__(self, number):
        super().__init__(number + 1)


class Outer:
    class Inner(Exception):
        pass


def raised(make):
    try:
        raise make()
    except BaseException as error:
        return error


def travel(error, codec=CODEC, follower_codec=None):
    payload = encode_failure(error, codec, PID)
    assert len(payload) <= FAILURE_BYTES
    return decode_failure(memoryview(payload), follower_codec or codec)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("bad"),
        lambda: KeyError(("a", 1)),
        lambda: NotFound("sku", 42, None, b"x", (1, [2, {3}])),
        lambda: Priced("sku", Decimal("1.50")),
        lambda: Outer.Inner(1.0),
        lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
        lambda: StopIteration(3),
        lambda: OSError(2, "No such file", "/nowhere"),
        lambda: OSError(18, "Cross-device", "/a", None, "/b"),
        lambda: BlockingIOError(11, "again", 5),
        lambda: RuntimeError(),
        lambda: FlightTimeout("k", 1.0, 1.25),
        lambda: ZeroDivisionError("division by zero"),
    ],
)
@pytest.mark.parametrize("codec", [CODEC, RawCodec()], ids=["msgpack", "raw"])
def test_a_class_that_rebuilds_from_its_args_is_raised_in_followers_too(make, codec):
    error = raised(make)
    got = travel(error, codec)
    assert type(got) is type(error)
    assert got is not error
    assert got.args == error.args
    assert list(map(type, got.args)) == list(map(type, error.args))
    assert str(got) == str(error)
    cause = got.__cause__
    assert type(cause) is LeaderPanicked
    assert cause.leader_pid == PID
    assert cause.exc_type == f"{type(error).__module__}.{type(error).__qualname__}"
    assert cause.message == str(error)


def test_every_follower_gets_an_exception_of_its_own():
    payload = encode_failure(NotFound(1), CODEC, PID)
    assert decode_failure(payload, CODEC) is not decode_failure(payload, CODEC)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Reworded(404, "gone"),
        lambda: Counting(1),
        lambda: NotFound(object()),
        lambda: NotFound("x" * 4000),
        lambda: NotFound(lambda: 0),
    ],
    ids=["other_init", "other_args", "odd_args", "big_args", "lambda"],
)
def test_a_class_that_does_not_rebuild_becomes_leader_panicked(make):
    error = raised(make)
    got = travel(error)
    assert type(got) is LeaderPanicked
    assert got.exc_type == f"{__name__}.{type(error).__qualname__}"
    assert got.message.startswith(str(error)[:400])
    assert got.__cause__ is None


def test_the_traceback_tells_where_the_leader_failed_and_ends_with_the_exception():
    def deep(n):
        return deep(n - 1) if n else int("no number")

    got = travel(raised(lambda: deep(200)))
    lines = got.__cause__.traceback.splitlines()
    assert lines[-1] == "builtins.ValueError: invalid literal for int() with base 10: 'no number'"
    assert any("in deep" in line for line in lines)
    assert len(got.__cause__.traceback) <= 1500


def test_a_long_traceback_loses_its_start_not_its_end():
    scope: dict = {"step_0": lambda: 1 / 0}
    for n in range(1, 12):  # lines of the same text would be folded
        exec(f"def step_{n}{'_' * 100}():\n    return step_{n - 1}{'_' * 100 * (n > 1)}()", scope)
    got = travel(raised(scope["step_11" + "_" * 100]))
    assert got.__cause__.traceback.startswith("…")
    assert got.__cause__.traceback.endswith("builtins.ZeroDivisionError: division by zero")


def test_a_class_in_a_function_travels_only_if_both_sides_registered_it():
    class Local(Exception):
        pass

    knows = MsgpackCodec().register(Local)
    assert type(travel(Local("x"), knows)) is Local
    assert type(travel(Local("x"), CODEC)) is LeaderPanicked
    assert type(travel(Local("x"), knows, CODEC)) is LeaderPanicked


def test_args_may_hold_what_the_codec_has_registered():
    codec = MsgpackCodec().register(NotFound)
    got = travel(NotFound(NotFound("inner")), codec)
    assert type(got) is NotFound
    assert type(got.args[0]) is NotFound
    assert got.args[0].args == ("inner",)


def test_a_follower_that_does_not_know_the_class_gets_leader_panicked(monkeypatch):
    payload = encode_failure(NotFound("x"), CODEC, PID)
    monkeypatch.delattr(sys.modules[__name__], "NotFound")
    assert type(decode_failure(payload, CODEC)) is LeaderPanicked


def test_nothing_is_imported_for_the_name_of_a_class(monkeypatch):
    asked = []

    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            asked.append(name)
            raise AttributeError(name)

    monkeypatch.setitem(sys.modules, "lazy_shop", Lazy("lazy_shop"))
    before = set(sys.modules)
    for name in ("lazy_shop:NotFound", "antigravity:X", "xml.dom.pulldom:Y", "nowhere:Z", "::", ""):
        record = [1, PID, name, "m", "t", CODEC.encode(())]
        assert type(decode_failure(CODEC.encode(record), CODEC)) is LeaderPanicked
    assert asked == []
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "name", ["builtins:SystemExit", "builtins:KeyboardInterrupt", "builtins:exec", "os:system"]
)
def test_only_exception_classes_are_ever_called(name):
    record = [1, PID, name, "m", "t", CODEC.encode(("x = 1",))]
    assert type(decode_failure(CODEC.encode(record), CODEC)) is LeaderPanicked


def test_an_alias_of_a_class_is_not_that_class(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Alias", NotFound, raising=False)
    record = [1, PID, f"{__name__}:Alias", "m", "t", CODEC.encode(())]
    assert type(decode_failure(CODEC.encode(record), CODEC)) is LeaderPanicked


def test_a_class_whose_rebuilding_fails_in_the_follower_gives_leader_panicked(monkeypatch):
    payload = encode_failure(Priced("sku", 1), CODEC, PID)
    for bomb in (RuntimeError, SystemExit):

        def init(self, *args, bomb=bomb):
            raise bomb("no")

        monkeypatch.setattr(Priced, "__init__", init)
        assert type(decode_failure(payload, CODEC)) is LeaderPanicked


@pytest.mark.parametrize("make", [KeyboardInterrupt, lambda: SystemExit(3), GeneratorExit])
def test_what_is_no_exception_never_comes_back_as_itself(make):
    assert type(travel(raised(make))) is LeaderPanicked


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no ExceptionGroup")
def test_an_exception_group_becomes_leader_panicked():
    got = travel(ExceptionGroup("several", [ValueError(1)]))  # noqa: F821
    assert type(got) is LeaderPanicked
    assert "several" in got.message


# Hostile exceptions.


def _exit(*_):
    raise SystemExit(3)


def _boom(*_):
    raise RuntimeError("boom")


def _recurse(self):
    return str(self)


class EvilStr(str):
    def __getitem__(self, item):
        raise RuntimeError("indexed")

    def encode(self, *args):
        raise RuntimeError("encoded")


class Meta(type):
    @property
    def __module__(cls):
        raise RuntimeError("no module")


HOSTILE = {
    "str_raises": {"__str__": _boom},
    "str_exits": {"__str__": _exit},
    "str_recurses": {"__str__": _recurse},
    "str_is_no_str": {"__str__": lambda self: 7},
    "str_is_huge": {"__str__": lambda self: "é" * 5_000_000},
    "str_is_evil": {"__str__": lambda self: EvilStr("x" * 900)},
    "str_has_surrogates": {"__str__": lambda self: "\ud800" * 900},
    "str_is_wide": {"__str__": lambda self: "\U0001f600" * 900},
    "repr_exits": {"__repr__": _exit},
    "init_exits": {"__init__": _exit},
    "init_raises": {"__init__": _boom},
    "new_changes_class": {"__new__": lambda cls, *args: KeyError("other")},
    "args_raise": {"args": property(_boom)},
    "traceback_raises": {"__traceback__": property(_exit)},
    "eq_raises": {"__eq__": _exit, "__hash__": None},
    "class_lies": {"__class__": property(lambda self: int)},
    "reduce_raises": {"__reduce__": _boom, "__reduce_ex__": _exit},
    "getattribute_raises": {"__getattribute__": _exit},
    "name_is_huge": {"__qualname__": "N" * 100_000},
    "module_is_odd": {"__module__": 7},
    "name_has_surrogates": {"__qualname__": "\ud800"},
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_exception_gives_a_bounded_text_and_no_error(body, monkeypatch):
    cls = type("Hostile", (Exception,), {"__module__": __name__, **body})
    monkeypatch.setattr(sys.modules[__name__], "Hostile", cls, raising=False)
    error = BaseException.__new__(cls, "arg")
    got = travel(error)
    panicked = got if type(got) is LeaderPanicked else got.__cause__
    assert type(panicked) is LeaderPanicked
    assert len(panicked.message) <= 500
    assert len(panicked.traceback) <= 1500
    assert len(panicked.exc_type) <= 250
    str(panicked).encode()


def test_a_hostile_metaclass_gives_a_bounded_text_and_no_error():
    got = travel(Meta("Hostile", (Exception,), {})("x"))
    assert type(got) is LeaderPanicked
    assert got.exc_type == "?.?"


def test_hostile_args_are_left_out():
    class Arg:
        __repr__ = __str__ = __eq__ = __hash__ = __reduce_ex__ = _exit

    loop: list = []
    loop.append(loop)
    for arg in (Arg(), loop, "x" * 10_000_000, [b"x" * 1_000_000] * 1_000_000):
        error = NotFound("first")
        error.args = ("first", arg) if not isinstance(arg, Arg) else (arg, arg)
        if type(arg) is list and arg is not loop:
            monkey = type("Quiet", (NotFound,), {"__str__": lambda self: "quiet"})
            error = monkey(arg)  # its own str() would need a terabyte
        assert type(travel(error)) is LeaderPanicked


def test_ctrl_c_while_an_exception_is_described_is_not_swallowed():
    def interrupt(self):
        raise KeyboardInterrupt

    error = type("Slow", (Exception,), {"__str__": interrupt})()
    with pytest.raises(KeyboardInterrupt):
        encode_failure(error, CODEC, PID)


def test_a_thousand_causes_cost_nothing():
    error = None
    for n in range(100_000):
        following = ValueError(n)
        following.__cause__, error = error, following
    assert type(travel(error)) is ValueError
    while error is not None:  # or freeing the chain recurses
        error.__cause__, error = None, error.__cause__


# Limits and damage.


@pytest.mark.parametrize("size", range(480, 1400, 7))
def test_args_travel_up_to_the_room_there_is_and_never_beyond(size):
    got = travel(NotFound("m", "x" * size))
    if type(got) is NotFound:
        assert got.args == ("m", "x" * size)


def test_small_args_always_fit_beside_the_longest_texts():
    error = type("Wordy", (NotFound,), {"__str__": lambda self: "é" * 9000})
    codec = MsgpackCodec().register(error)
    assert type(travel(error("x" * 600), codec)) is error


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        [1, PID, "a:b", "m", "t"],
        [1, PID, "a:b", "m", "t", None, None],
        [2, PID, "a:b", "m", "t", None],
        [1, "pid", "a:b", "m", "t", None],
        [1, PID, "a:b", "m", 1, None],
        [1, PID, "a:b", "m", "t", "args"],
        [True, PID, "a:b", "m", "t", None],
    ],
)
def test_a_record_of_another_shape_is_a_value_error(record):
    with pytest.raises(ValueError, match="failure"):
        decode_failure(CODEC.encode(record), CODEC)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_error(data):
    with pytest.raises(ValueError):  # noqa: PT011
        decode_failure(data, CODEC)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_gives_an_exception_or_a_value_error(position, flip):
    payload = bytearray(encode_failure(NotFound("sku", 42), CODEC, PID))
    payload[position % len(payload)] ^= flip
    with contextlib.suppress(ValueError):
        assert isinstance(decode_failure(payload, CODEC), Exception)


def test_damaged_args_cost_the_class_only():
    record = [1, PID, "builtins:ValueError", "m", "t", b"\xc1"]
    assert type(decode_failure(CODEC.encode(record), CODEC)) is LeaderPanicked


def test_the_texts_have_room_for_their_limits():
    texts = failure._NAME_BYTES + failure._MESSAGE_BYTES + failure._TRACEBACK_BYTES
    assert texts + failure._OVERHEAD + 600 <= FAILURE_BYTES
