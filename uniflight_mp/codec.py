"""How a result becomes bytes that another process turns back into an equal value.

``MsgpackCodec`` is exact by construction: it writes only what it can restore with the same
types, recursively, and refuses everything else by naming it. The bytes are ordinary msgpack.
What msgpack has no type for is written in one of two ways.

A *leaf* is an extension object with data, all numbers big-endian:

====  ==========  =========================================================================
code  type        data
====  ==========  =========================================================================
16    int         two's complement; only for ints beyond 64 bits
17    complex     two float64: real, imaginary
18    Decimal     the text of ``str(value)``
19    UUID        its 16 bytes
20    date        year u16, month u8, day u8
21    time        hour u8, minute u8, second u8, fold u8, microsecond u32, zone
22    datetime    date, time, zone
23    timedelta   days i32, seconds i32, microseconds i32
24    bytearray   its bytes
32    in keys     an aware datetime: microseconds since 1970 in UTC, i64
33    in keys     an aware time: microseconds since midnight in UTC, i64
34    in keys     a long key: length of its encoding u64, BLAKE2b-256 of it (see ``keys``)
====  ==========  =========================================================================

(*zone*: nothing if naive; ``U`` for ``timezone.utc``; ``O``, microseconds east of UTC i64 and
the UTF-8 name, if it has one after ``N``, for another ``timezone``; ``Z`` or, made by
``no_cache``, ``z`` and the key for a ``ZoneInfo``.)

A *container* is an array whose first element is an empty extension object. Nesting costs no
copies that way, unlike msgpack packed into the data of an extension object:

====  ==========  =========================================================================
code  type        the other elements
====  ==========  =========================================================================
1     tuple       its elements
2     set         its elements
3     frozenset   its elements
4     dict        key, value, key, value, …; only if a key is not a str, bytes or number
5     dataclass   "module:qualname", names of its fields, the value of each field
6     enum        "module:qualname", name of the member (a combination of flags: its value)
7     other       "module:qualname", what the registered ``encode`` returned
8     exception   "module:qualname", args, attributes
====  ==========  =========================================================================
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, InvalidOperation
from enum import Enum
from itertools import chain, islice
from operator import is_not
from typing import Any, Protocol, TypeVar

from . import keys
from .classes import EXCEPTION, OTHER, Registered, describe
from .errors import Refused, ResultNotShareable, ResultTooLarge, attempt, show, type_name
from .keys import ExtType, Leaf, identity

_SCALARS = frozenset({str, bytes, int, float, bool, type(None)})
_SIZED = frozenset({str, bytes})
_STRICT = Context(traps=[InvalidOperation])  # malformed text raises, whatever the thread's says
_LEAVES: Mapping[type, Leaf] = {
    **keys.LEAVES,
    complex: Leaf(
        17,
        lambda c: struct.pack(">dd", c.real, c.imag),
        lambda d: complex(*struct.unpack(">dd", d)),
    ),
    Decimal: Leaf(18, lambda n: str(n).encode(), lambda d: Decimal(d.decode("ascii"), _STRICT)),
    bytearray: Leaf(24, bytes, bytearray),
}
_READ_LEAF = {leaf.code: leaf.read for leaf in _LEAVES.values()}
_MAP = 4
_MARKS = {code: ExtType(code, b"") for code in range(1, 9)}
_CONTAINERS: Mapping[type, Any] = {
    list: None,
    dict: None,
    tuple: _MARKS[1],
    set: _MARKS[2],
    frozenset: _MARKS[3],
}
_NATIVE: frozenset[object] = _SCALARS | _LEAVES.keys() | _CONTAINERS.keys()
_DEPTH_LIMIT = 256  # two Python frames a level, of the 1,000 there are; msgpack allows 1,024
_LARGE = 4096  # bytes

T = TypeVar("T")


class Codec(Protocol):
    """What ``codec=`` takes: turns a leader's result into bytes and back.

    Both methods are called from any thread. ``encode`` raises ``ResultNotShareable`` for what
    it could not restore exactly; ``decode`` raises ``ValueError`` for what it cannot restore,
    and must not keep the payload, which is shared memory.
    """

    def encode(self, value: object) -> bytes | bytearray | memoryview: ...

    def decode(self, payload: memoryview) -> object: ...


def check_codec(codec: object) -> None:
    """Raise ``TypeError``, saying what is missing, unless ``codec`` can serve as a ``Codec``."""
    if isinstance(codec, type):
        raise TypeError(f"codec= takes an instance: {codec.__name__}() instead of the class")
    missing = [name for name in ("encode", "decode") if not callable(getattr(codec, name, None))]
    if missing:
        raise TypeError(
            f"{show(codec)} is no codec: it has no method {' and no method '.join(missing)}. A "
            "codec has encode(value) -> bytes and decode(payload) -> value"
        )


class RawCodec:
    """Shares results that are exactly ``bytes``, untouched; refuses any other."""

    def encode(self, value: object) -> bytes:
        """Return ``value`` itself. Raises ``ResultNotShareable`` if it is not ``bytes``."""
        if type(value) is bytes:
            return value
        raise ResultNotShareable(type_name(type(value)), "$", "RawCodec takes bytes only")

    def decode(self, payload: memoryview) -> bytes:
        """Return a copy of the payload."""
        return bytes(payload)


class _Encoding:
    """One call of encode: makes the tree that msgpack packs, and counts what that takes.

    Every element takes a byte or more and every string its length, so that a value which
    shares its parts a billion times over is refused before it is written out. Nor is a large
    part gone through again when it is met again at the same depth.
    """

    def __init__(self, codec: MsgpackCodec, room: int) -> None:
        self.codec = codec
        self.room = room
        # By identity and depth: the part (kept, or another object could get its identity), its
        # tree and what it takes.
        self.large: dict[tuple[int, int], tuple[object, object, int]] = {}

    def root(self, value: object) -> object:
        return self.children((value,), 0, lambda values, index: "")[0]

    def tree(self, value: Any, depth: int) -> object:
        """Return ``value`` itself where msgpack restores it as it is, else what stands for it."""
        kind = type(value)
        if kind in _LEAVES:
            return self.leaf(value)
        if kind not in _CONTAINERS and kind not in self.codec.classes:
            raise Refused(kind, attempt(lambda: _hint(kind), ""))  # a metaclass may have a say
        if depth == self.codec.max_depth:
            raise Refused(kind, f"it is nested more than {depth} deep", deepest=value)
        if self.large and (id(value), depth) in self.large:
            _, tree, size = self.large[id(value), depth]
            self.take(size)
            return tree
        room = self.room
        try:
            if kind is dict:
                tree = self.mapping(value, depth + 1)
            elif kind not in _CONTAINERS:
                tree = self.instance(self.codec.classes[kind], value, depth + 1)
            else:
                items = self.children(value, depth + 1, _index_step)
                tree = items if kind is list else [_CONTAINERS[kind], *items]
        except Refused as refusal:
            refusal.leave(value)
            raise
        if room - self.room > _LARGE:
            self.large[id(value), depth] = value, tree, room - self.room
        return tree

    def take(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise _TooLarge

    def leaf(self, value: Any) -> object:
        """Return the extension object of a leaf; msgpack asks for ints beyond 64 bits too."""
        leaf = _LEAVES.get(type(value))
        if leaf is None:  # another thread put it there after we looked
            raise Refused(type(value))
        data = leaf.write(value)
        self.take(len(data))
        return ExtType(leaf.code, data)

    def mapping(self, value: dict[Any, Any], depth: int) -> object:
        names = self.children(value, depth, _key_step)
        old = value.values()
        new = self.children(old, depth, _value_step)
        if names is not value:  # msgpack packs a dict by itself if its keys are scalars
            return [_MARKS[_MAP], *chain.from_iterable(zip(names, new, strict=True))]
        return value if new is old else dict(zip(value, new, strict=True))

    def instance(self, known: Registered, value: object, depth: int) -> object:
        try:
            steps, parts = zip(*known.take(value), strict=True)
        except Refused:
            raise
        except Exception as error:
            raise Refused(known.cls, f"taking it apart raised {show(error)}") from error
        made = self.children(parts, depth, lambda _, index: steps[index])
        return [_MARKS[known.code], identity(known.cls), *made]

    def children(self, values: Any, depth: int, step: Callable[[Any, int], str]) -> Any:
        """Return ``values`` itself if nothing in it is to be replaced, else a list."""
        size = len(values)
        if size > self.codec.max_length:
            raise Refused(type(values), f"its {size} elements are more than max_length")
        kinds = set(map(type, values))
        if kinds <= _SIZED:
            size += sum(map(len, values))
        elif not kinds.isdisjoint(_SIZED):
            size += sum([len(value) for value in values if type(value) in _SIZED])
        self.take(size)
        if kinds <= _SCALARS:
            return values
        made: list[object] = []
        try:
            for value in values:
                made.append(value if type(value) in _SCALARS else self.tree(value, depth))
        except Refused as refusal:
            refusal.at(step(values, len(made)))
            raise
        return made if any(map(is_not, values, made)) else values


class _TooLarge(Exception):
    """The value takes more than the limit."""


def _index_step(_: object, index: int) -> str:
    return f"[{index}]"


def _key_step(_: object, index: int) -> str:
    return f".keys()[{index}]"


def _value_step(values: Any, index: int) -> str:
    key = next(islice(values.mapping, index, None))
    return f".{key}" if type(key) is str and key.isidentifier() else f"[{show(key, 40)}]"


def _hint(kind: type) -> str:
    if issubclass(kind, Enum) or dataclasses.is_dataclass(kind):
        return "register it; no functions needed"
    base = next((base for base in kind.__mro__ if base in _NATIVE), None)
    return f"it would come back as a plain {base.__name__}" if base else ""


class _Decoding:
    """One call of decode: the hooks that msgpack calls, inner elements first."""

    def __init__(self, classes: Mapping[tuple[int, str], Registered]) -> None:
        self.classes = classes
        self.marks = 0  # seen and not yet found at the start of an array

    def extension(self, code: int, data: bytes) -> object:
        if code in _MARKS and not data:
            self.marks += 1
            return _MARKS[code]
        if code in _READ_LEAF:
            return _READ_LEAF[code](data)
        raise ValueError(f"unknown extension code {code}")

    def array(self, items: list[Any]) -> object:
        if not items or type(items[0]) is not ExtType:
            return items
        self.marks -= 1
        code = items[0].code
        del items[0]
        if code in _BUILD:
            return _BUILD[code](items)
        name = items.pop(0)
        known = self.classes.get((code, name))
        if known is None:
            raise ValueError(f"{show(name)} is not registered here")
        return known.make(items)


_BUILD: Mapping[int, Callable[[list[Any]], object]] = {
    1: tuple,
    2: set,
    3: frozenset,
    _MAP: lambda items: dict(zip(items[::2], items[1::2], strict=True)),
}


class MsgpackCodec:
    """The default codec: exact round trips of plain data and of registered classes.

    Restores the same types, recursively: None, bool, int, float, str, bytes, bytearray, list,
    tuple, dict, set, frozenset, complex, Decimal, UUID, date, time, datetime, timedelta and
    what was registered. Everything else is refused, subclasses of these too. Objects that
    appear several times in a value become several objects; sets may iterate in another order.

    ``max_bytes`` limits the payload, ``max_depth`` the nesting of containers, ``max_length``
    the elements of one container. Instances can be pickled if the registered functions can,
    and used from any thread once everything is registered.
    """

    def __init__(
        self, *, max_bytes: int = 64 << 20, max_depth: int = 64, max_length: int = 16 << 20
    ) -> None:
        if not (max_bytes > 0 and max_length > 0 and 0 < max_depth <= _DEPTH_LIMIT):
            raise ValueError(f"limits must be positive, max_depth at most {_DEPTH_LIMIT}")
        self.max_bytes = max_bytes
        self.max_depth = max_depth
        self.max_length = max_length
        self.classes: dict[type, Registered] = {}
        self.names: dict[tuple[int, str], Registered] = {}

    def register(
        self,
        cls: type[T],
        encode: Callable[[T], object] | None = None,
        decode: Callable[[Any], T] | None = None,
    ) -> MsgpackCodec:
        """Let instances of exactly ``cls`` travel, and return this codec.

        Dataclasses and enums need no functions: dataclasses travel field by field, enums by the
        name of the member, and neither ``__init__`` nor ``__post_init__`` is called. Exceptions
        need none either: followers may then raise them, and they travel in results by args and
        attributes. Any other class needs both: ``encode`` returns something that this codec
        takes, from which ``decode`` makes an equal instance. All processes must register the
        same; a class is known by module and qualified name, so one defined in a function works
        only if no other has that name.

        Raises:
            TypeError: ``cls`` is no class, or a function is missing.
            ValueError: another class has this name, the type is built in, or instances keep
                more than their attributes (a dataclass that extends ``dict``).
        """
        if not issubclass(type(cls), type):  # isinstance takes list[int] for a class in 3.10
            raise TypeError(f"register takes a class, not {show(cls)}")
        if cls in _NATIVE:
            raise ValueError(f"{type_name(cls)} needs no registration")
        known = describe(cls, encode, decode)
        for other in self.classes.values():
            if other.cls is not cls and identity(other.cls) == identity(cls):
                raise ValueError(f"another class {identity(cls)} is registered: rename one")
        self.classes[cls] = known
        self.names[known.code, identity(cls)] = known
        return self

    def exception_class(self, name: str) -> type[Exception] | None:
        """Return the exception registered as ``name`` (see ``identity``), or None."""
        known = self.names.get((EXCEPTION, name)) or self.names.get((OTHER, name))
        return known.cls if known and issubclass(known.cls, Exception) else None

    def encode(self, value: object) -> bytes:
        """Return the payload for ``value``.

        Raises:
            ResultNotShareable: something in it would not come back as it is, or it is too
                large, too deep or contains itself. The path leads there.
        """
        return self.encode_within(value, self.max_bytes)

    def encode_within(self, value: object, max_bytes: int) -> bytes:
        """Do what ``encode`` does with a lower limit."""
        encoding = _Encoding(self, max_bytes)
        try:
            data = keys.pack(encoding.root(value), encoding.leaf)
            if len(data) <= max_bytes:
                return data
            detail = f"it takes {len(data)} bytes, more than {max_bytes}"
        except Refused as refusal:
            path, cause = refusal.path("$"), refusal.__cause__  # a user's encode raised it
            raise ResultNotShareable(refusal.name, path, refusal.detail) from cause
        except _TooLarge:
            detail = f"it takes more than {max_bytes} bytes"
        except Exception as error:
            kind = type_name(type(value))
            raise ResultNotShareable(kind, "$", f"encoding it raised {show(error)}") from error
        raise ResultTooLarge(type_name(type(value)), "$", detail)

    def decode(self, payload: memoryview | bytes) -> object:
        """Return the value that ``encode`` made ``payload`` from.

        Raises:
            ValueError: the payload is damaged, or names a class that is not registered here or
                whose fields differ; the cause says which. Memory stays in proportion to the
                size of the payload.
        """
        decoding = _Decoding(self.names)
        try:
            if len(payload) > self.max_bytes:
                raise ValueError(f"{len(payload)} bytes are over max_bytes")
            value = keys.unpack(payload, decoding.extension, decoding.array, self.max_length)
            if decoding.marks:
                raise ValueError("the mark of a container is not at its start")
        except Exception as error:
            raise ValueError(f"the payload cannot be decoded: {show(error, 200)}") from error
        return value
