"""The codecs: exact round trips, refusals that name the place, and damaged payloads."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import decimal
import enum
import functools
import inspect
import io
import math
import pickle
import subprocess
import sys
import threading
import types
import uuid
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, TypeVar
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import uniflight_mp.codec
from uniflight_mp.codec import MsgpackCodec, RawCodec, check_codec
from uniflight_mp.errors import ResultNotShareable, ResultTooLarge

T = TypeVar("T")


@dataclasses.dataclass
class Price:
    sku: str
    amount: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any = dataclasses.field(init=False, default=7)

    def __post_init__(self):
        object.__setattr__(self, "y", [self.x])


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Any
    y: Any = 0


@dataclasses.dataclass(slots=True, frozen=True)
class FrozenSlotted(Generic[T]):
    x: T


@dataclasses.dataclass
class Half(Slotted):
    """One field in a slot, one in __dict__."""

    z: Any = None


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796
    BLUE = (2, "b")


class Level(enum.IntEnum):
    LOW = 1


class Permission(enum.Flag):
    READ = 1
    WRITE = 2


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Point and other.x == self.x

    __hash__ = None


class NotFound(LookupError):
    def __init__(self, sku, reason="gone"):
        super().__init__(sku)
        self.reason = reason


class Disk(OSError):
    pass


class Row(collections.namedtuple("Row", "sku amount")):
    __slots__ = ()


class Str(str):
    __slots__ = ()


class Nowhere(tzinfo):
    def utcoffset(self, when):
        return None

    dst = tzname = utcoffset


def full_codec(**limits):
    codec = MsgpackCodec(**limits)
    for cls in (Price, Frozen, Slotted, FrozenSlotted, Half, Color, Level, Permission, NotFound):
        assert codec.register(cls) is codec
    codec.register(Disk)
    codec.register(Point, lambda point: {"x": point.x}, lambda state: Point(state["x"]))
    return codec.register(Row, tuple, Row._make)


CODEC = full_codec()


def exact(one: object, other: object) -> bool:
    """Equal with the same types, recursively, order and sign included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return math.copysign(1, one) == math.copysign(1, other) and (
            one == other or one != one != other != other
        )
    if isinstance(one, complex):
        return exact(one.real, other.real) and exact(one.imag, other.imag)
    if isinstance(one, Decimal):
        return one.as_tuple() == other.as_tuple()
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(exact, one, other))
    if isinstance(one, dict):
        return exact(list(one), list(other)) and exact([*one.values()], [*other.values()])
    if isinstance(one, (set, frozenset)):
        rest = list(other)
        for item in one:
            at = next((i for i, found in enumerate(rest) if exact(item, found)), None)
            if at is None:
                return False
            del rest[at]
        return not rest
    if isinstance(one, (datetime, time)):
        return repr(one) == repr(other) and one.tzinfo.__class__ is other.tzinfo.__class__
    if isinstance(one, Point):
        return exact(one.x, other.x)
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(exact(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, BaseException):
        return exact(one.args, other.args) and exact(vars(one), vars(other))
    return one == other


def round_trip(value, codec=CODEC):
    return codec.decode(memoryview(codec.encode(value)))


def in_zone(moment, zone, fold):
    return moment.replace(tzinfo=zone, fold=fold)


offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
zones = (
    st.sampled_from([None, timezone.utc, ZoneInfo("Europe/Berlin"), ZoneInfo("UTC")])
    | offsets.map(timezone)
    | st.builds(timezone, offsets, st.text(max_size=5))
)
texts = st.text() | st.text(st.characters())  # the latter with lone surrogates
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | texts
    | st.binary()
    | st.complex_numbers()
    | st.decimals()
    | st.uuids()
    | st.dates()
    | st.timedeltas()
    | st.builds(in_zone, st.times() | st.datetimes(), zones, st.integers(0, 1))
    | st.sampled_from([*Color, *Level, *Permission, Permission(0), Permission(3)])
)  # fmt: skip
hashables = st.recursive(
    leaves.filter(lambda x: not (isinstance(x, Decimal) and x.is_snan())),
    lambda parts: st.lists(parts, max_size=3).map(tuple) | st.frozensets(parts, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    leaves | st.binary().map(bytearray) | hashables,
    lambda parts: (
        st.lists(parts, max_size=4)
        | st.lists(parts, max_size=4).map(tuple)
        | st.dictionaries(hashables, parts, max_size=4)
        | st.dictionaries(texts, parts, max_size=4)
        | st.sets(hashables, max_size=4)
        | st.builds(Price, texts, parts)
        | st.builds(Frozen, parts)
        | st.builds(Slotted, parts, parts)
        | st.builds(FrozenSlotted, parts)
        | st.builds(Half, parts, parts, parts)
        | st.builds(Point, parts)
        | st.builds(Row, parts, parts)
        | st.builds(NotFound, parts, parts)
    ),
    max_leaves=12,
)


@given(values)
def test_whatever_is_encoded_comes_back_with_the_same_types(value):
    assert exact(round_trip(value), value)


EDGES = [
    2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 1 << 100_000, -(1 << 100_000),
    [2**64], {2**64: -(2**64)}, -0.0, math.nan, math.inf, complex(-0.0, math.nan), "\ud800\udfff",
    {"\ud800": "\udfff"}, Decimal("sNaN123"), Decimal("-NaN7"), Decimal("-0E+3"),
    Decimal("1E+999999"), Decimal("0." + "1" * 200), datetime.min, datetime.max,
    datetime(2024, 10, 27, 2, 30, fold=1),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=14))), date.min, date.max, time.max,
    timedelta.min, timedelta.max, datetime(1, 1, 1, tzinfo=timezone.utc),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "UTC")),
    time(1, tzinfo=ZoneInfo("Asia/Tokyo")),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=-1), "")), uuid.UUID(int=0),
    [], {}, (), set(), frozenset(), [[]], [()], ((),), {(): ()}, {frozenset([(1,)]): {2}},
    {1: "int", "1": "str", b"1": "bytes", 2.5: "float", None: "none", (1,): "tuple"},
    [True, 1, 1.0], {True: 1}, {1.0: 1}, b"", bytearray(), bytearray(b"x" * 300), Frozen(1),
    Color.CRIMSON, Permission.READ | Permission.WRITE, Permission(0), [-1, -1, 0xD6, -1], [12, -1],
    b"\xd6\xff" * 9,
    [b"\xd6\xff\0\0\0\0", "x" * 5000, -1], [(i, str(i), i / 7) for i in range(2000)],
]  # fmt: skip


@pytest.mark.parametrize(
    "value", EDGES, ids=lambda v: repr(v)[:40] if not isinstance(v, int) else "int"
)
def test_edges_come_back_exactly(value):
    assert exact(round_trip(value), value)


def test_a_zone_made_without_the_cache_stays_so():
    fresh = ZoneInfo.no_cache("Europe/Berlin")
    got = round_trip(datetime(2024, 1, 1, tzinfo=fresh)).tzinfo
    assert got.key == "Europe/Berlin"
    assert got is not ZoneInfo("Europe/Berlin")
    assert round_trip(time(1, tzinfo=ZoneInfo("Europe/Berlin"))).tzinfo is ZoneInfo("Europe/Berlin")


def test_the_order_of_a_dict_is_kept():
    value = dict.fromkeys(("z", "a", 3, (1,), "m"))
    assert list(round_trip(value)) == list(value)
    del value[(1,)]
    assert list(round_trip(value)) == list(value)


def test_plain_data_is_exactly_what_msgpack_would_write():
    value = {"id": 1, "rows": [{"a": [1.5, None, True]}, b"x"], "more": {"k": ["v"]}}
    assert CODEC.encode(value) == msgpack.packb(value)


def test_encoding_leaves_the_value_untouched():
    value = {"rows": [(1, {2})], "t": (1,)}
    CODEC.encode(value)
    assert exact(value, {"rows": [(1, {2})], "t": (1,)})


def test_decimals_ignore_the_context_of_the_thread():
    with decimal.localcontext() as context:
        context.prec = 3
        context.traps[decimal.InvalidOperation] = False
        assert exact(round_trip(Decimal("1.23456789")), Decimal("1.23456789"))
        with pytest.raises(ValueError, match="cannot be decoded"):
            CODEC.decode(msgpack.packb(msgpack.ExtType(18, b"garbage")))


# Refusals.

LIST_CLASS = types.new_class("Items", (list,))


@pytest.mark.parametrize(
    ("value", "name", "hint"),
    [
        (object(), "object", ""),
        (lambda: 0, "function", ""),
        ((x for x in ()), "generator", ""),
        (memoryview(b"x"), "memoryview", ""),
        (io.StringIO(), "_io.StringIO", ""),
        (range(3), "range", ""),
        (int, "type", ""),
        (Color, "enum.Enum", ""),
        (msgpack.ExtType(1, b""), "msgpack.ext.ExtType", "plain tuple"),
        (msgpack.Timestamp(1), "msgpack.ext.Timestamp", ""),
        (collections.OrderedDict(a=1), "collections.OrderedDict", "plain dict"),
        (collections.defaultdict(int), "collections.defaultdict", "plain dict"),
        (collections.Counter("a"), "collections.Counter", "plain dict"),
        (collections.deque(), "collections.deque", ""),
        (types.SimpleNamespace(a=1), "types.SimpleNamespace", ""),
        (types.MappingProxyType({}), "mappingproxy", ""),
        (Row(1, 2), "Row", "plain tuple"),
        (Str("x"), "Str", "plain str"),
        (LIST_CLASS([1]), "Items", "plain list"),
        (Level.LOW, "Level", "no functions"),
        (Color.RED, "Color", "no functions"),
        (Price("a"), "Price", "no functions"),
        (ValueError("x"), "ValueError", ""),
        ({}.keys(), "dict_keys", ""),
        (ZoneInfo("UTC"), "zoneinfo.ZoneInfo", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_restored_is_refused_by_type_and_path(value, name, hint):
    codec = MsgpackCodec()
    for wrap, path in [
        (lambda v: v, "$"),
        (lambda v: {"rows": [1, 2, 3, {"owner": v}]}, "$.rows[3].owner"),
        (lambda v: ("a", [0, v]), "$[1][1]"),
        (lambda v: {"two words": v}, "$['two words']"),
        (lambda v: {(1, 2): v}, "$[(1, 2)]"),
        (lambda v: {7: {None: v}}, "$[7][None]"),
    ]:
        with pytest.raises(ResultNotShareable) as caught:
            codec.encode(wrap(value))
        error = caught.value
        assert error.path == path
        assert name in error.type_name
        assert hint in error.detail
        assert f"{path} is of type " in str(error)
    with contextlib.suppress(TypeError):
        hash(value)
        with pytest.raises(ResultNotShareable) as caught:
            codec.encode({"a": {"k": 2, value: 3}})
        assert caught.value.path == "$.a.keys()[1]"


@pytest.mark.parametrize("moment", [datetime(2024, 1, 1), time(1)], ids=["datetime", "time"])
def test_a_zone_that_cannot_be_named_is_refused(moment, tmp_path):
    zone = next(Path("/usr/share/zoneinfo").glob("**/Berlin"), None)
    odd = [Nowhere()]
    if zone is not None:
        with zone.open("rb") as file:
            odd.append(ZoneInfo.from_file(file, key="Europe/Berlin"))
        with zone.open("rb") as file:
            odd.append(ZoneInfo.from_file(file))
    for tz in odd:
        with pytest.raises(ResultNotShareable) as caught:
            CODEC.encode([moment.replace(tzinfo=tz)])
        assert caught.value.path == "$[0].tzinfo"


def test_a_metaclass_that_raises_has_no_say_in_a_refusal():
    class Meta(type):
        def __getattribute__(cls, name):
            raise SystemExit(name)

    class Price(metaclass=Meta):
        pass

    with pytest.raises(ResultNotShareable, match="is of type <type without a name>"):
        MsgpackCodec().encode([object.__new__(Price)])


def test_a_cycle_is_refused_with_one_turn_of_it():
    a: list = []
    a.append(a)
    b: dict = {"x": {"y": [1, (2,)]}}
    b["x"]["y"].append(b["x"])
    c: Price = Price("c")
    c.amount = {"of": (c,)}
    d = {"head": [b]}
    turns = [
        (a, {"$[0]"}),
        (b, {"$.x.y[2]", "$.x.y[2].y"}),
        (c, {"$.amount.of[0]", "$.amount.of[0].amount", "$.amount.of[0].amount.of"}),
        (d, {"$.head[0].x.y[2]", "$.head[0].x.y[2].y"}),
    ]
    for value, paths in turns:
        with pytest.raises(ResultNotShareable, match="contains itself") as caught:
            CODEC.encode(value)
        assert caught.value.path in paths


def nested(depth, wrap):
    value: Any = wrap(None)
    for _ in range(depth - 1):
        value = wrap(value)
    return value


WRAPS = {
    "list": lambda v: [v],
    "tuple": lambda v: (v,),
    "dict": lambda v: {"k": v},
    "dataclass": lambda v: Price("s", v),
    "frozenset": lambda v: frozenset([v]),
    "exception": lambda v: NotFound("s", v) if not isinstance(v, NotFound) else [v],
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("limit", [1, 2, 64, 256])
def test_containers_nest_up_to_the_limit(wrap, limit):
    codec = full_codec(max_depth=limit)
    if wrap is not WRAPS["exception"]:  # its args and attributes are containers too
        payload = codec.encode(nested(limit, wrap))
        assert codec.encode(codec.decode(payload)) == payload
    for depth in (limit + 1, limit + 100):
        with pytest.raises(ResultNotShareable, match="nested more than") as caught:
            codec.encode(nested(depth, wrap))
        assert len(caught.value.path) < 400


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_no_depth_and_no_lack_of_stack_gives_a_recursion_error(wrap):
    codec = full_codec(max_depth=256)
    if wrap is WRAPS["list"]:
        with pytest.raises(ResultNotShareable):
            codec.encode(nested(100_000, wrap))
    value = nested(50, wrap)

    limit = sys.getrecursionlimit()
    outcomes = set()
    for spare in range(20, 300, 20):
        sys.setrecursionlimit(len(inspect.stack(0)) + spare)
        try:
            codec.encode(value)
            outcomes.add("encoded")
        except ResultNotShareable:
            outcomes.add("refused")
        finally:
            sys.setrecursionlimit(limit)
    assert outcomes == {"encoded", "refused"}


def test_a_class_that_unfolds_forever_is_refused():
    codec = MsgpackCodec().register(Point, lambda p: [Point(p.x + 1)], lambda s: Point(0))
    with pytest.raises(ResultNotShareable, match="nested more than"):
        codec.encode(Point(0))


def test_an_encode_function_that_raises_is_a_refusal_with_its_cause():
    codec = MsgpackCodec().register(Point, lambda p: 1 / 0, Point)
    with pytest.raises(ResultNotShareable, match="ZeroDivisionError") as caught:
        codec.encode({"a": [Point(0)]})
    assert caught.value.path == "$.a[0]"
    assert type(caught.value.__cause__) is ZeroDivisionError


# Limits of size.


@pytest.mark.parametrize(
    "wrap",
    [lambda a, b: ([a] * 10, b), lambda a, b: ({"a": a, "b": a}, b), lambda a, b: (b, [a, b])],
    ids=["list", "dict", "fibonacci"],
)
def test_a_value_that_shares_its_parts_is_refused_without_going_through_it(wrap):
    part, other = [0], [1]
    for _ in range(60):
        part, other = wrap(part, other)
    with pytest.raises(ResultTooLarge, match="more than"):
        MsgpackCodec(max_bytes=1 << 36).encode([part, other])  # would take an hour


def test_large_parts_that_are_shared_come_back():
    codec = MsgpackCodec().register(Point, lambda p: [[p.x] * 10_000], lambda s: Point(s[0][0]))
    part = [[(1, {2}), b"x" * 5000] for _ in range(10)]
    value = [part, [part, part], Point(1), Point(2), [Point(3)], part]
    assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    "make",
    [b"x".__mul__, "x".__mul__, lambda n: "é" * (n // 2), lambda n: [None] * n,
     lambda n: dict.fromkeys(range(n // 2)), lambda n: 1 << 8 * n, lambda n: (b"x" * n,)],
)  # fmt: skip
def test_the_largest_payload_is_the_limit_to_the_byte(make):
    size = len(MsgpackCodec().encode(make(1000)))
    assert len(MsgpackCodec(max_bytes=size).encode(make(1000))) == size
    with pytest.raises(ResultNotShareable, match=f"{size - 1}") as caught:
        MsgpackCodec(max_bytes=size - 1).encode(make(1000))
    assert caught.value.path == "$"
    with pytest.raises(ValueError, match="max_bytes"):
        MsgpackCodec(max_bytes=size - 1).decode(MsgpackCodec().encode(make(1000)))


@pytest.mark.parametrize("make", [list, tuple, set, dict.fromkeys])
def test_a_container_has_up_to_max_length_elements(make):
    codec = MsgpackCodec(max_length=10)
    assert round_trip(make(range(10)), codec) == make(range(10))
    with pytest.raises(ResultNotShareable, match="11 elements"):
        codec.encode([make(range(11))])
    with pytest.raises(ValueError, match="cannot be decoded"):
        codec.decode(MsgpackCodec().encode([None] * 1000))


LIMIT = """
import resource
def limit_memory(megabytes):
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
"""

SHARED = """
import sys
from uniflight_mp.codec import MsgpackCodec
from uniflight_mp.errors import ResultNotShareable, ResultTooLarge
codec = MsgpackCodec(max_bytes=1 << 20)
text, blob, number = "x" * 100_000, b"x" * 100_000, 1 << 800_000
values = [
    [text] * 100_000, {"a": [blob] * 100_000}, [(text,) * 1000] * 1000, [number] * 100_000,
    {i: blob for i in range(100_000)}, [bytearray(blob)] * 100_000,
    {(i, text) for i in range(10_000)},
]
tower = [1]
for _ in range(60):
    tower = [tower, tower]
values.append(tower)
limit_memory(100)
for value in values:
    try:
        codec.encode(value)
    except ResultNotShareable as error:
        assert "more than 1048576" in error.detail, error
    else:
        sys.exit("encoded")
"""

DAMAGED = """
import struct, sys
from uniflight_mp.codec import MsgpackCodec
codec = MsgpackCodec()
size = 1 << 20
heads = [b"\\xdd", b"\\xdf", b"\\xdb", b"\\xc6", b"\\xc9"]
claims = [0xFFFFFFFF, 0x7FFFFFFF, 0x10000000, 16 << 20, size + 9]
payloads = [head + struct.pack(">I", claim) for head in heads for claim in claims]
payloads += [payload + bytes(size) for payload in payloads]
for claim in (size, size - 6000, 16 << 20):
    payloads.append((b"\\xdd" + struct.pack(">I", claim)) * 1000 + bytes(size))
    payloads.append((b"\\xdd" + struct.pack(">I", claim)) * 800)
payloads.append(b"\\xdc\\xff\\xff" * 1000 + bytes(65535))
payloads += [b"\\x91" * n for n in (1000, 1100, 1 << 20)]
payloads += [b"\\x81" * n for n in (1000, 1 << 20)]
payloads += [b"\\x92\\xc7\\x00\\x01" * n for n in (1000, 100_000)]
limit_memory(100)
for payload in payloads:
    try:
        codec.decode(memoryview(payload))
    except ValueError as error:
        if isinstance(error.__cause__, MemoryError):
            sys.exit(f"no memory for {payload[:40]!r}")
    else:
        sys.exit(repr(payload[:40]))
"""


@pytest.mark.parametrize("script", [SHARED, DAMAGED], ids=["shared_parts", "damaged_headers"])
def test_memory_is_bounded(script):
    root = Path(uniflight_mp.codec.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", LIMIT + script],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


# Damage.


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xc1")
def test_random_bytes_decode_or_are_a_value_error(data):
    with contextlib.suppress(ValueError):
        check_known(CODEC.decode(memoryview(data)))


def test_the_error_of_a_damaged_payload_has_its_cause():
    with pytest.raises(ValueError, match=r"^the payload cannot be decoded: ") as caught:
        CODEC.decode(b"\xc1")
    assert type(caught.value) is ValueError
    assert type(caught.value.__cause__) is msgpack.FormatError


def check_known(value):
    known = (type(None), bool, int, float, str, bytes, bytearray, complex, Decimal, uuid.UUID, date,
             time, datetime, timedelta, list, tuple, dict, set, frozenset)  # fmt: skip
    assert type(value) in known
    if isinstance(value, dict):
        for item in value.items():
            check_known(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            check_known(item)


@given(values, st.data())
def test_a_damaged_payload_decodes_or_is_a_value_error(value, data):
    payload = bytearray(CODEC.encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(payload)))
    for damaged in (payload, payload[:cut]):
        with contextlib.suppress(ValueError):
            CODEC.decode(damaged)


@pytest.mark.parametrize("code", [*range(-128, 0), *range(9, 16), *range(25, 128)])
@pytest.mark.parametrize("size", [0, 1, 4, 8, 12])
def test_an_unknown_extension_code_is_a_value_error(code, size):
    kind = bytes([code & 0xFF])
    fixed = {1: b"\xd4", 4: b"\xd6", 8: b"\xd7"}.get(size, b"\xc7" + bytes([size]))
    heads = [
        fixed,
        b"\xc7" + bytes([size]),
        b"\xc8\0" + bytes([size]),
        b"\xc9\0\0\0" + bytes([size]),
    ]
    for head in heads:
        extension = head + kind + bytes(size)
        for payload in (extension, b"\x92\x01" + extension, b"\x81\xa1a" + extension,
                        b"\x92" + extension + b"\xc4\xff" + b"x" * 255,
                        b"\x92" + extension + b"\xc5\x20\0" + b"x" * 8192):  # fmt: skip
            with pytest.raises(ValueError, match="cannot be decoded"):
                CODEC.decode(payload)


@pytest.mark.parametrize(
    "payload",
    [b"\x01\x01", b"\x92\x01", b"\xc7\0\1", b"\x92\x01\xc7\0\1", b"\x92\xc7\0\1\xc7\0\2",
     b"\x81\xc7\0\1\1", b"\x92\xc7\0\4\1", b"\x92\xc7\0\2\x90", b"\x81\x90\1", b"\x91\xc7\0\6",
     b"\x92\xc7\0\6\x90",
     b"\x92\xc7\0\7\xa3a:b", b"\xc7\1\1\0", b"\xd4\x11\0", b"\xd8\x15" + b"\xff" * 16,
     b"\xd6\x14\0\0\0\0", b"\xa1\xff", b"\x81\x01", b"\xc7\2\x15Zx"],
)  # fmt: skip
def test_what_no_encoder_writes_is_a_value_error(payload):
    with pytest.raises(ValueError, match="cannot be decoded"):
        CODEC.decode(payload)


def test_an_unknown_zone_is_a_value_error():
    payload = CODEC.encode(datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")))
    for name in (b"Europe/Xerlin", b"../../../../x"):
        with pytest.raises(ValueError, match="cannot be decoded"):
            CODEC.decode(payload.replace(b"Europe/Berlin", name))


def test_a_class_unknown_to_the_follower_is_a_value_error_that_names_it():
    for value in (Price("a"), Color.RED, Point(1), NotFound("x")):
        with pytest.raises(ValueError, match=type(value).__name__):
            MsgpackCodec().decode(CODEC.encode(value))


def test_other_fields_in_the_follower_are_a_value_error():
    here = dataclasses.make_dataclass("Item", ["a", "b"])
    there = dataclasses.make_dataclass("Item", ["b", "a"])
    here.__module__ = there.__module__ = "shop"
    payload = MsgpackCodec().register(here).encode(here(1, 2))
    with pytest.raises(ValueError, match="other fields"):
        MsgpackCodec().register(there).decode(payload)


def test_a_member_unknown_to_the_follower_is_a_value_error():
    payload = CODEC.encode(Color.BLUE).replace(b"BLUE", b"BLUR")
    with pytest.raises(ValueError, match="BLUR"):
        CODEC.decode(payload)


def test_a_decode_function_that_raises_or_errs_is_a_value_error():
    for decode in (lambda state: 1 / 0, lambda state: "no point"):
        codec = MsgpackCodec().register(Point, lambda p: p.x, decode)
        with pytest.raises(ValueError, match="cannot be decoded"):
            codec.decode(codec.encode(Point(1)))


# Registration.


def test_dataclasses_are_rebuilt_without_calling_their_code():
    calls = []

    @dataclasses.dataclass
    class Loud:
        x: int
        secret: dataclasses.InitVar[int] = 0

        def __post_init__(self, secret):
            calls.append(secret)

    codec = MsgpackCodec().register(Loud)
    value = Loud(1, 2)
    assert round_trip(value, codec) == value
    assert calls == [2]


def test_a_dataclass_with_more_or_less_than_its_fields_is_refused():
    more, less, unset, cached = Price("a"), Price("a"), Slotted(1), Price("a")
    more.note = 1
    del less.amount  # the class has a default by that name
    del unset.x
    cached.__dict__["total"] = 3
    for value, name in [(more, "note"), (less, "amount"), (unset, "x"), (cached, "total")]:
        with pytest.raises(ResultNotShareable, match=f"'{name}' is") as caught:
            CODEC.encode([value])
        assert caught.value.path == "$[0]"


def test_a_slot_that_is_no_field_counts_too():
    class Base:
        __slots__ = ("cache",)

    @dataclasses.dataclass
    class Item(Base):
        x: int

    codec = MsgpackCodec().register(Item)
    item = Item(1)
    assert round_trip(item, codec) == item
    item.cache = 2
    with pytest.raises(ResultNotShareable, match="cache"):
        codec.encode(item)


def test_subclasses_of_registered_classes_are_not_registered():
    @dataclasses.dataclass
    class Special(Price):
        pass

    for value in (Special("a"), type("P", (Point,), {})(1), type("N", (NotFound,), {})("x")):
        with pytest.raises(ResultNotShareable):
            CODEC.encode(value)


def test_dataclasses_that_extend_a_type_written_in_c_need_functions():
    for base in (dict, list, int, collections.deque, Decimal):
        cls = dataclasses.make_dataclass("Extended", [], bases=(base,))
        with pytest.raises(ValueError, match="both functions"):
            MsgpackCodec().register(cls)
        MsgpackCodec().register(cls, str, str)


def test_members_of_enums_are_the_very_members():
    assert round_trip([Color.RED, Color.CRIMSON, Color.BLUE, Level.LOW]) == [
        *map(Color, [1, 1, (2, "b")]),
        1,
    ]
    assert round_trip(Color.BLUE) is Color.BLUE
    assert type(round_trip(Level.LOW)) is Level


def test_exceptions_travel_by_class_args_and_attributes():
    error = NotFound("sku", reason={"why": (1,)})
    got = round_trip({"error": error})["error"]
    assert type(got) is NotFound
    assert got.args == ("sku",)
    assert vars(got) == {"reason": {"why": (1,)}}


def test_exceptions_that_would_lose_something_are_refused():
    linked = NotFound("x")
    linked.__cause__ = ValueError()
    for error in (linked, Disk(2, "no", "file")):
        with pytest.raises(ResultNotShareable):
            CODEC.encode(error)


def test_registered_exceptions_are_known_by_name():
    name = f"{__name__}:NotFound"
    assert CODEC.exception_class(name) is NotFound
    assert CODEC.exception_class(f"{__name__}:Price") is None
    assert MsgpackCodec().exception_class(name) is None
    with_functions = MsgpackCodec().register(NotFound, lambda e: e.args[0], NotFound)
    assert with_functions.exception_class(name) is NotFound


@pytest.mark.parametrize(
    ("args", "error", "words"),
    [
        ((Price("a"),), TypeError, "takes a class"),
        ((list[int],), TypeError, "takes a class"),
        (("Price",), TypeError, "takes a class"),
        ((Point,), TypeError, "give encode and decode"),
        ((Point, str), TypeError, "both functions"),
        ((Point, None, str), TypeError, "both functions"),
        ((Price, str), TypeError, "both functions"),
        ((Point, 1, 2), TypeError, "callable"),
        ((dict,), ValueError, "no registration"),
        ((bool, str, bool), ValueError, "no registration"),
        ((uuid.UUID,), ValueError, "no registration"),
        ((datetime, str, str), ValueError, "no registration"),
    ],
)
def test_a_registration_that_cannot_work_is_an_error_at_once(args, error, words):
    codec = MsgpackCodec()
    with pytest.raises(error, match=words):
        codec.register(*args)
    assert codec.classes == {}


def test_two_classes_of_one_name_are_an_error_and_one_class_twice_is_not():
    def make():
        @dataclasses.dataclass
        class Local:
            x: int

        return Local

    one, other = make(), make()
    codec = MsgpackCodec().register(one).register(one)
    with pytest.raises(ValueError, match="another class"):
        codec.register(other)
    assert round_trip(one(1), codec) == one(1)
    with pytest.raises(ResultNotShareable):
        codec.encode(other(1))


@pytest.mark.parametrize(
    "limits", [{"max_bytes": 0}, {"max_depth": 0}, {"max_depth": 257}, {"max_length": -1}]
)
def test_limits_that_make_no_sense_are_a_value_error(limits):
    with pytest.raises(ValueError, match="limits"):
        MsgpackCodec(**limits)


# Objects, threads, other codecs.


def _to_x(point):
    return point.x


def test_a_codec_can_be_pickled_with_its_limits_and_classes():
    codec = MsgpackCodec(max_bytes=1000, max_depth=5)
    for cls in (Price, Slotted, Half, Color, NotFound):
        codec.register(cls)
    again = pickle.loads(pickle.dumps(codec.register(Point, _to_x, Point)))
    assert (again.max_bytes, again.max_depth) == (1000, 5)
    for value in (Price("a"), Slotted(1, 2), Half(1, 2, 3), Color.RED, Point(3), (1,)):
        assert again.decode(codec.encode(value)) == value


def test_threads_share_a_codec():
    wrong = []

    def work(n):
        value = {"n": n, "rows": [(n, {n}, 2**64 + n)] * 20, "text": str(n) * 100}
        for _ in range(200):
            if round_trip(value) != value:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_functions_may_use_the_codec_that_calls_them():
    codec = MsgpackCodec()
    codec.register(Point, lambda p: codec.encode((p.x,)), lambda s: Point(*codec.decode(s)))
    assert round_trip([Point((1,)), Point(2)], codec) == [Point((1,)), Point(2)]


def test_the_payload_may_be_any_bytes_and_is_not_kept():
    payload = bytearray(CODEC.encode([b"abc", "text", (1,)]))
    value = CODEC.decode(memoryview(payload))
    payload[:] = b"\0" * len(payload)
    assert value == [b"abc", "text", (1,)]


def test_raw_codec_takes_exactly_bytes():
    codec = RawCodec()
    data = b"x" * 100
    assert codec.encode(data) is data
    assert codec.decode(memoryview(data)) == data
    assert type(codec.decode(memoryview(data))) is bytes
    for value in (bytearray(b"x"), "x", None, type("B", (bytes,), {})(b"x")):
        with pytest.raises(ResultNotShareable, match="bytes only"):
            codec.encode(value)


class Partial:
    def encode(self, value):
        return b""


@pytest.mark.parametrize(
    ("codec", "words"),
    [
        (None, "no method encode and no method decode"),
        (Partial(), "no method decode"),
        (MsgpackCodec, r"MsgpackCodec\(\)"),
        (types.SimpleNamespace(encode=1, decode=len), "no method encode"),
    ],
)
def test_what_is_no_codec_is_told_what_it_lacks(codec, words):
    with pytest.raises(TypeError, match=words):
        check_codec(codec)


def test_anything_with_both_methods_is_a_codec():
    check_codec(MsgpackCodec())
    check_codec(RawCodec())
    check_codec(types.SimpleNamespace(encode=functools.partial(bytes), decode=bytes))
