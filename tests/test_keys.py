"""Keys: which are one and which are not, what is refused, what people are shown."""

from __future__ import annotations

import enum
import hashlib
import itertools
import math
import struct
import uuid
from collections import namedtuple
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniflight_mp.keys import KEY_BYTES, KEY_DEPTH, decode_key, encode_key

UTC = timezone.utc
EAST = timezone(timedelta(hours=2))
BERLIN = ZoneInfo("Europe/Berlin")


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


class Word(str, enum.Enum):
    HI = "hi"


class Permission(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


class Mode(enum.IntFlag):
    A = 1
    B = 2


class Nowhere(tzinfo):
    def utcoffset(self, when):
        return None

    dst = tzname = utcoffset


naive_moments = st.datetimes()
zones = st.sampled_from([None, UTC, EAST, BERLIN, ZoneInfo("UTC")])
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats()
    | st.text()
    | st.text(st.characters(), max_size=3)
    | st.binary()
    | st.uuids()
    | st.dates()
    | st.timedeltas()
    | st.datetimes(timezones=zones)
    | st.times()
    | st.sampled_from([*Color, *Level, *Word, *Permission])
)
keys = st.recursive(leaves, lambda parts: st.lists(parts, max_size=4).map(tuple), max_leaves=8)


def canonical(key):
    """A second opinion on identity: equal exactly if the keys are one."""
    if isinstance(key, enum.Enum):
        return (type(key), key.name)
    if isinstance(key, tuple):
        return ("tuple", *map(canonical, key))
    if isinstance(key, float):
        return ("float", "nan" if math.isnan(key) else key + 0.0)
    if isinstance(key, datetime):
        aware = key.utcoffset() is not None
        return ("datetime", aware, key if aware else key.replace(tzinfo=None, fold=0))
    return (type(key), key)


def same(one, other):
    if type(one) is datetime and one.utcoffset() is not None:
        # Python says unequal to itself for a moment in a gap between zones: compare instants.
        return (
            type(other) is datetime
            and other.utcoffset() is not None
            and instant(one) == instant(other)
        )
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return canonical(one) == canonical(other)


def instant(moment):
    return moment.replace(tzinfo=None) - moment.utcoffset() if in_range(moment) else moment


def in_range(moment):
    try:
        moment.replace(tzinfo=None) - moment.utcoffset()
    except OverflowError:
        return False
    return True


@given(keys, keys)
def test_keys_are_one_exactly_if_equal_in_type_and_value(one, other):
    assert (encode_key(one) == encode_key(other)) == same(one, other)


@given(keys)
def test_an_encoded_key_is_short_and_always_the_same(key):
    assert encode_key(key) == encode_key(key)
    assert len(encode_key(key)) <= KEY_BYTES


EQUAL_LOOKING = [
    1, "1", b"1", True, 1.0, Level.LOW, "Level.LOW", Color.RED, Permission.READ, Mode.A, (1,),
    ((1,),), ("1",), (), "", b"", None, 0, False, 0.0, "None", (None,), Word.HI, "hi",
    uuid.UUID(int=1), uuid.UUID(int=1).bytes, str(uuid.UUID(int=1)), date(2024, 1, 1),
    datetime(2024, 1, 1), datetime(2024, 1, 1, tzinfo=UTC), time(0), time(0, tzinfo=UTC),
    timedelta(0), timedelta(seconds=1), "2024-01-01", 2**64, -(2**64), float(2**64), str(2**64),
    float("inf"), float("-inf"), float("nan"), "nan", ("a", "b"), ("ab",), ("a", ("b",)),
    (("a",), "b"), "\ud800", "\udc00", "e\u0301", "\u00e9",
]  # fmt: skip


def test_keys_that_only_look_equal_are_different():
    for one, other in itertools.combinations(EQUAL_LOOKING, 2):
        assert encode_key(one) != encode_key(other), (one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (0.0, -0.0),
        ((0.0,), (-0.0,)),
        (math.nan, -math.nan),
        (math.nan, struct.unpack(">d", b"\x7f\xf8\0\0\0\0\0\1")[0]),
        (b"abc", bytearray(b"abc")),
        (b"abc", memoryview(b"abc")),
        (b"abc", memoryview(b"xabcx")[1:4]),
        (("a", b"abc"), ("a", memoryview(bytearray(b"abc")))),
        (b"\1\0\2\0", memoryview(struct.pack("<HH", 1, 2)).cast("H")),
        (b"", memoryview(b"")),
        (datetime(2024, 1, 1, 12, tzinfo=UTC), datetime(2024, 1, 1, 14, tzinfo=EAST)),
        (datetime(2024, 7, 1, 12, tzinfo=UTC), datetime(2024, 7, 1, 14, tzinfo=BERLIN)),
        (time(12, tzinfo=UTC), time(14, tzinfo=EAST)),
        (datetime(2024, 1, 1, fold=1), datetime(2024, 1, 1)),
        (datetime(2024, 1, 1, tzinfo=Nowhere()), datetime(2024, 1, 1)),
        (time(1, tzinfo=BERLIN), time(1)),
        (datetime(1, 1, 1, tzinfo=EAST),
         datetime(1, 1, 1, 1, tzinfo=timezone(timedelta(hours=3)))),
        (Color.RED, Color.CRIMSON),
        (Permission.BOTH, Permission.READ | Permission.WRITE),
        (timedelta(days=1), timedelta(hours=24)),
    ],
)  # fmt: skip
def test_two_spellings_of_one_key_are_one(one, other):
    assert encode_key(one) == encode_key(other)


def test_the_two_hours_of_a_fold_are_two_keys():
    early, late = (datetime(2024, 10, 27, 2, 30, fold=fold, tzinfo=BERLIN) for fold in (0, 1))
    assert encode_key(early) != encode_key(late)


def test_as_in_python_a_time_of_yesterday_is_not_that_time():
    assert encode_key(time(1, tzinfo=EAST)) != encode_key(time(23, tzinfo=UTC))
    assert time(1, tzinfo=EAST) != time(23, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "sku:42", "é" * 15, "x" * 31, "x" * 32, "\U0001f600" * 20, "x" * 126, "\ud800x", "a\0b"],
)
def test_a_str_is_plain_msgpack_with_surrogates_passed(text):
    assert encode_key(text) == msgpack.packb(text, unicode_errors="surrogatepass")


@pytest.mark.parametrize("make", ["x".__mul__, b"x".__mul__, lambda n: ("x" * (n - 4),)])
def test_the_longest_key_stored_in_full_is_the_limit(make):
    at_limit, beyond = encode_key(make(KEY_BYTES - 2)), encode_key(make(KEY_BYTES - 1))
    assert len(at_limit) == KEY_BYTES
    assert decode_key(at_limit) == make(KEY_BYTES - 2)
    assert str(decode_key(beyond)).startswith(f"<key of {KEY_BYTES + 1} bytes, blake2b ")


@pytest.mark.parametrize("size", [127, 128, 129, 255, 256, 65535, 65536, 1_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_long_key_is_told_by_the_digest_of_its_encoding(size, kind):
    data = bytes(range(256)) * (size // 256 + 1)
    encoded = msgpack.packb(data[:size])
    digest = hashlib.blake2b(encoded, digest_size=32).digest()
    expected = b"\xc7\x28\x22" + len(encoded).to_bytes(8, "big") + digest
    assert encode_key(kind(data[:size])) == expected


def test_long_keys_of_other_types_or_lengths_differ():
    several = [
        "x" * 500,
        b"x" * 500,
        ("x" * 500,),
        "x" * 501,
        "x" * 499 + "y",
        1 << 8000,
        (1,) * 500,
    ]
    assert len({encode_key(key) for key in several}) == len(several)


def test_a_long_key_cannot_be_imitated_by_a_short_one():
    shadow = encode_key("x" * 500)
    assert encode_key(shadow) != shadow


def test_long_bytes_are_hashed_without_a_copy():
    tracemalloc = pytest.importorskip("tracemalloc")
    data = bytearray(8 << 20)
    tracemalloc.start()
    try:
        encode_key(data)
        encode_key(memoryview(data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(data) // 2


# Refused keys.

Row = namedtuple("Row", "sku")


class Str(str):
    __slots__ = ()


class Int(int):
    pass


class Moment(datetime):
    pass


REFUSED = [
    ([1], "list"), ({}, "dict"), (set(), "set"), (frozenset(), "frozenset"), (object(), "object"),
    (Decimal(1), "decimal.Decimal"), (1j, "complex"), (Row(1), "Row"), (Str("a"), "Str"),
    (Int(1), "Int"), (Moment(2024, 1, 1), "Moment"), (int, "type"), (len, "builtin_function"),
    ((x for x in ()), "generator"), (range(3), "range"), (ZoneInfo("UTC"), "ZoneInfo"),
    (msgpack.ExtType(1, b""), "ExtType"), (msgpack.Timestamp(1), "Timestamp"), (Color, "Enum"),
    (memoryview(b"abcd")[::2], "memoryview"), (memoryview(bytes(1000))[::2], "memoryview"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "name"), REFUSED, ids=[name for _, name in REFUSED])
def test_any_other_type_is_refused_by_name_with_the_ways_out(key, name):
    with pytest.raises(TypeError) as caught:
        encode_key(key)
    text = str(caught.value)
    assert text.startswith("key is of type ")
    assert name in text
    assert "key=" in text
    assert "tuple of plain values" in text
    with pytest.raises(TypeError, match=r"^key\[1\]\[2\] is of type "):
        encode_key(("a", (1, 2, key), 3))


def test_a_refused_part_does_not_hide_behind_plain_ones():
    with pytest.raises(TypeError, match=r"key\[3\]"):
        encode_key((1, "a", None, 1j))


def test_a_hostile_repr_is_never_asked():
    class Hostile:
        def __repr__(self):
            raise SystemExit

    with pytest.raises(TypeError, match="Hostile"):
        encode_key((Hostile(),))


def nested(depth):
    key = ()
    for _ in range(depth - 1):
        key = (key,)
    return key


def test_tuples_nest_up_to_the_limit():
    assert decode_key(encode_key(nested(20))) == nested(20)
    encode_key(nested(KEY_DEPTH))
    for depth in (KEY_DEPTH + 1, 100_000):
        with pytest.raises(ValueError, match=f"more than {KEY_DEPTH} deep"):
            encode_key(nested(depth))


# What people are shown.


@pytest.mark.parametrize(
    "key",
    ["sku", b"sku", 1, -1, 2**64, 1.5, True, None, ("a", (1, b"b", None)), (), uuid.UUID(int=7),
     date(2024, 2, 29), time(1, 2, 3, 4), timedelta(-1, 2, 3), datetime(2024, 1, 1, 1, 2, 3, 4),
     datetime(2024, 1, 1, tzinfo=UTC), time(1, tzinfo=UTC), "\ud800"],
)  # fmt: skip
def test_a_plain_key_is_shown_as_itself(key):
    shown = decode_key(encode_key(key))
    assert (type(shown), shown) == (type(key), key)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        (Color.RED, "Color.RED"),
        (Color.CRIMSON, "Color.RED"),
        (Level.LOW, "Level.LOW"),
        (("a", Word.HI), ("a", "Word.HI")),
        (Permission.BOTH, "Permission.BOTH"),
        (Mode.A | Mode.B, "Mode(3)"),
        (datetime(2024, 1, 1, 2, tzinfo=EAST), datetime(2024, 1, 1, tzinfo=UTC)),
        (time(14, tzinfo=EAST), time(12, tzinfo=UTC)),
        (bytearray(b"x"), b"x"),
        (time(1, tzinfo=EAST), "<time -1 day, 23:00:00 after midnight in UTC>"),
    ],
)
def test_what_cannot_be_restored_is_shown_readably(key, shown):
    assert decode_key(encode_key(key)) == shown


def test_an_instant_outside_the_calendar_is_described():
    assert "in UTC>" in str(decode_key(encode_key(datetime.min.replace(tzinfo=EAST))))


def test_a_long_key_is_shown_by_length_and_digest():
    encoded = encode_key("x" * 5000)
    digest = encoded[11:].hex()[:16]
    assert decode_key(encoded) == f"<key of 5003 bytes, blake2b {digest}…>"


GARBAGE = [
    b"", b"\xc1", b"\xa5ab", b"\x90", b"\x91\x01", b"\x80", b"\x81\x01\x02", b"\x01\x01",
    b"\xc7\0\1", b"\x92\xc7\0\1\x80", b"\x92\xc7\0\1\xc7\0\1", b"\x91\xc7\0\6", b"\x92\xc7\0\6\x01",
    b"\xd6\xff\0\0\0\0", b"\x92\xc7\0\1\xd6\xff\0\0\0\0", b"\xd4\x63\0", b"\xc7\x03\x22abc",
    b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x93\xc7\0\6\x01\x02", b"x" * 500,
    b"\x91" * 128, b"\xc7\1\x20\0", b"\xd7\x16" + b"\xff" * 8,
]  # fmt: skip


@pytest.mark.parametrize("data", GARBAGE, ids=repr)
def test_garbage_is_shown_by_its_bytes(data):
    shown = decode_key(data)
    assert type(shown) is str
    assert shown.startswith("<unreadable key b'")
    assert len(shown) < 600
    assert repr(data[:8])[2:-1] in shown


@given(st.binary(max_size=150))
def test_showing_random_bytes_never_raises_nor_gives_what_is_no_key(data):
    for shown in (decode_key(data), decode_key(bytearray(data)), decode_key(memoryview(data))):
        parts = [shown]
        while parts:
            part = parts.pop()
            if type(part) is tuple:
                parts += part
            else:
                encode_key(part)
