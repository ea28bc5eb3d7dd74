"""How instances of registered classes are taken apart and put together.

``take`` gives what follows the name of the class on the wire, as pairs of a step (for paths)
and a value; ``make`` undoes it. Neither calls ``__init__``. The codes are those of ``codec``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from enum import Enum
from types import MemberDescriptorType
from typing import Any

from .errors import Refused, type_name
from .keys import identity

DATACLASS, ENUM, OTHER, EXCEPTION = range(5, 9)
_HEAP_TYPE = 1 << 9  # the flag of classes made by a class statement


_Parts = list[tuple[str, object]]


class Registered:
    """A registered class: its instances become what ``encode`` makes of them."""

    code = OTHER

    def __init__(self, cls: type, encode: Any = None, decode: Any = None) -> None:
        self.cls = cls
        self.encode = encode
        self.decode = decode

    def take(self, value: Any) -> _Parts:
        return [(".encode()", self.encode(value))]

    def make(self, parts: list[Any]) -> object:
        (state,) = parts
        value = self.decode(state)
        if type(value) is not self.cls:
            raise ValueError(f"decode of {identity(self.cls)} returned {type_name(type(value))}")
        return value


class _EnumClass(Registered):
    code = ENUM
    cls: type[Enum]

    def take(self, member: Any) -> _Parts:
        named = member._name_ in self.cls.__members__
        return [("", member._name_ if named else member._value_)]

    def make(self, parts: list[Any]) -> object:
        (name,) = parts
        return self.cls.__members__[name] if type(name) is str else self.cls(name)


class _PlainClass(Registered):
    """A class whose instances are their attributes (exceptions: and args), nothing else."""

    def __init__(self, cls: type) -> None:
        super().__init__(cls)
        members = [
            m for base in cls.__mro__ if base.__flags__ & _HEAP_TYPE for m in vars(base).values()
        ]
        self.slots = [m for m in members if type(m) is MemberDescriptorType]
        # What a base written in C keeps besides (the items of a dict, the errno of an OSError)
        # no attribute tells; but it takes room in every instance.
        root = BaseException if issubclass(cls, BaseException) else object
        pointers = len(self.slots) + (cls.__weakrefoffset__ > 0)
        pointers += cls.__dictoffset__ > 0 and root is object
        self.opaque = cls.__basicsize__ > root.__basicsize__ + 8 * pointers

    def attributes(self, value: object) -> dict[str, object]:
        found: dict[str, object] = {}
        if self.cls.__dictoffset__:
            found.update(object.__getattribute__(value, "__dict__"))
        for slot in self.slots:
            with suppress(AttributeError):  # it is not set
                found[slot.__name__] = slot.__get__(value)
        return found


class _Dataclass(_PlainClass):
    code = DATACLASS

    def __init__(self, cls: type) -> None:
        super().__init__(cls)
        if self.opaque:
            raise ValueError(f"{type_name(cls)} extends a type written in C: give both functions")
        self.names = [field.name for field in dataclasses.fields(cls)]

    def take(self, value: object) -> _Parts:
        found = self.attributes(value)
        if found.keys() != set(self.names):
            name = min(found.keys() ^ set(self.names))
            state = "is no field" if name in found else "is not set"
            raise Refused(self.cls, f"its attribute {name!r} {state}")
        return [("", " ".join(self.names)), *((f".{name}", found[name]) for name in self.names)]

    def make(self, parts: list[Any]) -> object:
        names, *values = parts
        if names != " ".join(self.names):  # such as in a rolling deploy
            raise ValueError(f"{identity(self.cls)} has other fields here")
        return _restore(object.__new__(self.cls), zip(self.names, values, strict=True))


class _ExceptionClass(_PlainClass):
    code = EXCEPTION

    def take(self, error: BaseException) -> _Parts:
        if self.opaque:
            raise Refused(self.cls, "it keeps more than args and attributes: register functions")
        if error.__cause__ is not None or error.__context__ is not None:
            raise Refused(self.cls, "its __cause__ and __context__ would be lost")
        return [(".args", error.args), (".__dict__", self.attributes(error))]

    def make(self, parts: list[Any]) -> object:
        args, attributes = parts
        builtin: Any = next(b for b in self.cls.__mro__ if not b.__flags__ & _HEAP_TYPE)
        error = builtin.__new__(self.cls)
        error.args = args
        return _restore(error, attributes.items())


def _restore(value: object, attributes: Iterable[tuple[str, object]]) -> object:
    for name, attribute in attributes:
        object.__setattr__(value, name, attribute)
    return value


def describe(cls: type, encode: object, decode: object) -> Registered:
    if (encode is None) != (decode is None):
        raise TypeError(f"{type_name(cls)} needs both functions, encode and decode, or neither")
    if encode is not None:
        if not (callable(encode) and callable(decode)):
            raise TypeError("encode and decode must be callable")
        return Registered(cls, encode, decode)
    if issubclass(cls, Enum):
        return _EnumClass(cls)
    if issubclass(cls, BaseException):
        return _ExceptionClass(cls)
    if dataclasses.is_dataclass(cls):
        return _Dataclass(cls)
    raise TypeError(f"{type_name(cls)} is no dataclass, enum or exception: give encode and decode")
