"""How a key becomes the bytes that the table compares.

Two keys are one exactly if their bytes are equal, so every key has one encoding: the msgpack
of ``codec`` (whose module docstring lists the extension codes) after normalising. ``-0.0``
becomes ``0.0`` and every NaN the same NaN; an aware datetime or time becomes its instant in
UTC; ``bytearray`` and ``memoryview`` become bytes. An encoding longer than ``KEY_BYTES`` is
replaced by its length and digest: the only case in which a key is not compared in full.

The leaf types that keys and results share are here, as the codec needs keys no less than
keys need the codec: it adds the types that results may have beyond these.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from enum import Enum
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack  # type: ignore[import-untyped]

from .errors import Refused

KEY_BYTES = 128
"""The longest encoded key that the table stores in full."""

KEY_DEPTH = 64
"""How deep the tuples of a key may nest."""

ExtType = msgpack.ExtType
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1)
_BIG_INT, _INSTANT, _CLOCK, _LONG = 16, 32, 33, 34
_TIMESTAMP = re.compile(  # its one group that matched is the first byte of the header
    rb"\xff(?<=[\xd6\xd7\x04\x08\x0c]\xff)"  # fails soon nearly everywhere
    rb"(?:(?<=([\xd6\xd7])\xff)|(?<=(\xc7).\xff)|(?<=(\xc8)\0.\xff)|(?<=(\xc9)\0\0\0.\xff))",
    re.DOTALL,
)
_BLOB_HEADERS = frozenset({0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})  # bytes and long str
TUPLE, ENUM = ExtType(1, b""), ExtType(6, b"")


# Leaves: write gives the data of the extension object, read takes it back.


class Leaf(NamedTuple):
    """How values of one type become the data of an extension object, and back."""

    code: int
    write: Callable[[Any], bytes]
    read: Callable[[bytes], object]


def _write_zone(zone: tzinfo | None) -> bytes:
    if zone is None:
        return b""
    if zone is timezone.utc:
        return b"U"
    if type(zone) is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]
        data = b"O" + struct.pack(">q", offset // _MICROSECOND)
        return data + b"N" + name[0].encode("utf-8", "surrogatepass") if name else data
    if type(zone) is ZoneInfo and zone.key is not None:
        try:
            cached = zone.__reduce__()[1][1]
        except Exception as error:  # it was read from a file, which may not be the system's
            raise Refused(ZoneInfo, f"{error}", ".tzinfo") from error
        return (b"Z" if cached else b"z") + zone.key.encode()
    raise Refused(type(zone), "only a timezone or a ZoneInfo with a key travels", ".tzinfo")


def _read_zone(data: bytes) -> tzinfo | None:
    kind, rest = data[:1], data[1:]
    if kind in (b"Z", b"z"):
        return (ZoneInfo if kind == b"Z" else ZoneInfo.no_cache)(rest.decode())
    if kind == b"O":
        offset = struct.unpack(">q", rest[:8])[0] * _MICROSECOND
        if rest[8:9] == b"N":
            return timezone(offset, rest[9:].decode("utf-8", "surrogatepass"))
        if len(rest) == 8:
            return timezone(offset)
    elif data in (b"", b"U"):
        return timezone.utc if data else None
    raise ValueError("damaged time zone")


def _write_date(day: date) -> bytes:
    return struct.pack(">HBB", day.year, day.month, day.day)


def _read_date(data: bytes) -> date:
    return date(*struct.unpack(">HBB", data))


def _write_time(t: time | datetime) -> bytes:
    clock = struct.pack(">BBBBI", t.hour, t.minute, t.second, t.fold, t.microsecond)
    return clock + _write_zone(t.tzinfo)


def _read_time(data: bytes) -> time:
    hour, minute, second, fold, micro = struct.unpack(">BBBBI", data[:8])
    return time(hour, minute, second, micro, _read_zone(data[8:]), fold=fold)


def _write_timedelta(delta: timedelta) -> bytes:
    return struct.pack(">iii", delta.days, delta.seconds, delta.microseconds)


LEAVES: Mapping[type, Leaf] = {
    # msgpack has ints of up to 64 bits; this leaf is for longer ones only.
    int: Leaf(
        _BIG_INT,
        lambda n: n.to_bytes(n.bit_length() // 8 + 1, "big", signed=True),
        lambda d: int.from_bytes(d, "big", signed=True),
    ),
    UUID: Leaf(19, lambda u: u.bytes, lambda d: UUID(bytes=d)),
    date: Leaf(20, _write_date, _read_date),
    time: Leaf(21, _write_time, _read_time),
    datetime: Leaf(
        22,
        lambda t: _write_date(t) + _write_time(t),
        lambda d: datetime.combine(_read_date(d[:4]), _read_time(d[4:])),
    ),
    timedelta: Leaf(23, _write_timedelta, lambda d: timedelta(*struct.unpack(">iii", d))),
}


def _extend(value: Any) -> Any:
    """Give msgpack the extension object of a leaf; it asks for ints beyond 64 bits too."""
    leaf = LEAVES.get(type(value))
    if leaf is None:
        raise Refused(type(value))
    return ExtType(leaf.code, leaf.write(value))


def pack(tree: object, default: Callable[[Any], Any] = _extend) -> bytes:
    """Return the msgpack of a tree of what msgpack has, leaves and marked arrays.

    A packer per call costs 0.1 µs more than a shared one, but can be used from threads and
    from signal handlers, and keeps no buffer as big as the biggest value ever packed.
    """
    packer = msgpack.Packer(default=default, strict_types=True, unicode_errors="surrogatepass")
    data: bytes = packer.pack(tree)
    return data


def unpack(
    payload: bytes | memoryview,
    extension: Callable[[int, bytes], object],
    array: Callable[[list[Any]], object],
    max_length: int,
) -> object:
    """Return what a payload says; the hooks get every extension object and every array.

    Raises whatever msgpack and the hooks raise. Memory stays in proportion to the payload.
    """
    size = len(payload)
    if size and payload[0] not in _BLOB_HEADERS:
        _inspect(payload, size)
    return msgpack.unpackb(
        payload,
        ext_hook=extension,
        list_hook=array,
        strict_map_key=False,
        unicode_errors="surrogatepass",
        max_array_len=min(2 * max_length + 2, size),
        max_map_len=min(max_length, size),
    )


def _inspect(payload: bytes | memoryview, size: int) -> None:
    # msgpack makes a list as long as its header claims before it reads the elements: 1,024
    # nested headers claim a lot. Skipping through finds false claims without making anything.
    # Extension code -1 would give a Timestamp without asking our hook. What looks like one is
    # given an invalid header before the skipping: inside a number or bytes that is harmless.
    if size > 4096 or _TIMESTAMP.search(payload):
        copy = bytearray(payload)
        if 0xFF in copy:
            for match in _TIMESTAMP.finditer(payload):
                copy[match.start(match.lastindex or 0)] = 0xC1
        unpacker = msgpack.Unpacker(max_buffer_size=size)
        unpacker.feed(copy)
        unpacker.skip()


# Keys.


def identity(thing: Any) -> str:
    """Return the name of a class or function that means the same in all processes.

    Raises:
        AttributeError: it has no name, as a ``functools.partial``.
    """
    # What multiprocessing calls the main module in children that it spawns.
    module = "__main__" if thing.__module__ == "__mp_main__" else thing.__module__
    return f"{module}:{thing.__qualname__}"


def encode_key(key: object) -> bytes:
    """Return the bytes, at most ``KEY_BYTES`` of them, that stand for ``key`` in the table.

    A key whose encoding is longer is told from others by a BLAKE2b-256 digest. ``bytes``,
    ``bytearray`` and ``memoryview`` of such a length are hashed in place; a ``str`` or a tuple
    is copied.

    Raises:
        TypeError: the key, or a part of a tuple, is of a type that no key may have.
        ValueError: tuples nest deeper than ``KEY_DEPTH``, or a part is longer than 4 GiB.
    """
    try:
        if type(key) in _BUFFERS:
            view = memoryview(key)  # type: ignore[arg-type]
            if view.nbytes > KEY_BYTES:
                return _encode_long_bytes(_contiguous(view))
        data = pack(_tree(key, 0))
    except Refused as refusal:
        raise TypeError(_advice(refusal)) from None
    return data if len(data) <= KEY_BYTES else _digest(data)


def _encode_long_bytes(view: memoryview) -> bytes:
    size = view.nbytes
    if size >= 1 << 32:
        raise ValueError(f"a key of {size} bytes: the longest has 4 GiB; pass a digest of it")
    if size < 256:
        header = struct.pack(">BB", 0xC4, size)
    else:
        header = struct.pack(">BH", 0xC5, size) if size < 65536 else struct.pack(">BI", 0xC6, size)
    return _digest(header, view.cast("B"))


def _digest(*parts: bytes | memoryview) -> bytes:
    from hashlib import blake2b  # loads OpenSSL; few keys are long

    hashed = blake2b(digest_size=32)
    for part in parts:
        hashed.update(part)
    size = sum(map(len, parts))
    return pack(ExtType(_LONG, size.to_bytes(8, "big") + hashed.digest()))


def _advice(refusal: Refused) -> str:
    detail = f" ({refusal.detail})" if refusal.detail else ""
    return (
        f"{refusal.path('key')} is of type {refusal.name}, which no key can have{detail}. A key is "
        "a str, bytes, int, float, bool, None, UUID, enum member, date, time, datetime, "
        "timedelta, or a tuple of these. Either give coalesce a key= function that returns such "
        'a key, or pass a tuple of plain values, such as ("sku", 42)'
    )


def _tree(key: Any, depth: int) -> object:
    """Return what ``pack`` encodes: equal keys give the same bytes, others differ."""
    kind = type(key)
    if kind in _AS_IS:
        return key
    if kind is tuple:
        return _marked_tuple(key, depth + 1)
    normalise = _NORMALISED.get(kind)
    if normalise is not None:
        return normalise(key)
    if issubclass(kind, Enum):
        # A combination of flags has no name in the class; its value tells it apart.
        named = key._name_ in kind.__members__
        name = key._name_ if named else key._value_
        return [ENUM, identity(kind), name]
    raise Refused(kind)


def _marked_tuple(items: tuple[object, ...], depth: int) -> list[object]:
    if depth > KEY_DEPTH:
        raise ValueError(f"a key of tuples nested more than {KEY_DEPTH} deep; pass a flat one")
    tree: list[object] = [TUPLE]
    if _AS_IS.issuperset(map(type, items)):
        tree += items
        return tree
    try:
        for item in items:
            tree.append(_tree(item, depth))
    except Refused as refusal:
        refusal.at(f"[{len(tree) - 1}]")
        raise
    return tree


def _one_float(number: float) -> float:
    return number + 0.0 if number == number else math.nan  # -0.0 + 0.0 is 0.0


def _contiguous(view: memoryview) -> memoryview:
    if not view.c_contiguous:
        raise Refused(memoryview, "its bytes are not contiguous: use bytes(view)")
    return view


def _instant(moment: datetime) -> object:
    offset = moment.utcoffset()
    naive = moment.replace(tzinfo=None, fold=0)
    if offset is None:
        return naive
    # Not astimezone: an instant near year 1 or 9999 need not be a datetime in UTC.
    return ExtType(_INSTANT, struct.pack(">q", (naive - _EPOCH - offset) // _MICROSECOND))


def _clock(moment: time) -> object:
    offset = moment.utcoffset()
    naive = moment.replace(tzinfo=None, fold=0)
    if offset is None:
        return naive
    # As in Python, 01:00+02:00 is 23:00 of the day before and not equal to 23:00 UTC.
    since = datetime.combine(_EPOCH, naive) - _EPOCH - offset
    return ExtType(_CLOCK, struct.pack(">q", since // _MICROSECOND))


_BUFFERS = frozenset({bytes, bytearray, memoryview})
_AS_IS = frozenset({str, bytes, bytearray, int, bool, type(None), UUID, date, timedelta})
_NORMALISED: Mapping[type, Callable[[Any], object]] = {
    float: _one_float,
    memoryview: _contiguous,
    datetime: _instant,
    time: _clock,
}


# Keys shown to people.


def decode_key(data: bytes) -> object:
    """Return the key that ``encode_key`` made ``data`` from, to be shown to a person.

    What cannot be restored is described in a ``str``: a long key by its length and digest, an
    enum member as ``Color.RED``, anything else by its bytes. Never raises. An aware datetime or
    time comes back in UTC.
    """
    data = bytes(data)
    try:
        if len(data) > KEY_BYTES:
            raise ValueError("longer than any key")
        return _checked(unpack(data, _show_extension, _show_array, KEY_BYTES))
    except Exception:
        return f"<unreadable key {data[:KEY_BYTES]!r}>"


def _checked(value: object) -> object:
    if type(value) in (ExtType, list, dict):
        raise ValueError("not part of any key")
    return value


def _show_array(items: list[Any]) -> object:
    mark, *values = items
    for value in values:
        _checked(value)
    if mark == TUPLE:
        return tuple(values)
    if mark == ENUM:
        identity, name = values
        enum = identity.rpartition(":")[2].rpartition(".")[2]
        return f"{enum}.{name}" if type(name) is str else f"{enum}({name})"
    raise ValueError("an array that is no tuple")


def _show_extension(code: int, data: bytes) -> object:
    if code in _READERS:
        return _READERS[code](data)
    return ExtType(code, data)


def _show_instant(data: bytes) -> object:
    since = struct.unpack(">q", data)[0] * _MICROSECOND
    try:
        return (_EPOCH + since).replace(tzinfo=timezone.utc)
    except OverflowError:
        return f"<datetime {since} after 1970 in UTC>"


def _show_clock(data: bytes) -> object:
    since = struct.unpack(">q", data)[0] * _MICROSECOND
    moment = _EPOCH + since
    if moment.date() == _EPOCH.date():
        return moment.time().replace(tzinfo=timezone.utc)
    return f"<time {since} after midnight in UTC>"


def _show_long(data: bytes) -> object:
    size, digest = int.from_bytes(data[:8], "big"), data[8:]
    if len(digest) != 32:
        raise ValueError("damaged digest")
    return f"<key of {size} bytes, blake2b {digest.hex()[:16]}…>"


_READERS: Mapping[int, Callable[[bytes], object]] = {
    **{leaf.code: leaf.read for leaf in LEAVES.values()},
    _INSTANT: _show_instant,
    _CLOCK: _show_clock,
    _LONG: _show_long,
}
