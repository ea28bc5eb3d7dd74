"""How the exception of a leader reaches its followers.

A failure travels as plain msgpack whatever codec the results have: its format, the leader's
pid, the name of the class, the message, the end of the traceback, and the encoded arguments
if the leader found that the class rebuilds from them. Everything is cut to size, so a failure
always fits into the table. What a follower raises is made of its own copy of the class, never
of code that came with the payload, and nothing is imported for it.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

from .codec import Codec, MsgpackCodec
from .errors import LeaderPanicked, attempt, clip
from .keys import identity

FAILURE_BYTES = 3072
"""No encoded failure is longer."""

_FORMAT = 1
_NAME_BYTES = 250
_MESSAGE_BYTES = 500
_TRACEBACK_BYTES = 1500
_TRACEBACK_FRAMES = 12
_OVERHEAD = 64  # the headers of the record and the numbers in it
_PLAIN = MsgpackCodec()


def encode_failure(exc: BaseException, codec: Codec, leader_pid: int) -> bytes:
    """Return at most ``FAILURE_BYTES`` that say what ``exc`` was; raise no ``Exception``.

    Calls ``str`` on the exception and its class on its own arguments, in the leader. Whatever
    they raise, except ``KeyboardInterrupt``, only makes the failure say less. Attributes that
    were set after construction, causes and contexts do not travel.
    """
    name = attempt(lambda: identity(type(exc)), "?:?")
    kind = _fit(name, _NAME_BYTES)
    message = _fit(attempt(lambda: str(exc), "<its message cannot be shown>"), _MESSAGE_BYTES)
    last_line = f"{_dotted(kind)}: {clip(message, 200)}"
    trace = attempt(lambda: _trace(exc), "") + last_line
    texts = [kind, message, _fit_end(trace, _TRACEBACK_BYTES)]
    room = FAILURE_BYTES - _OVERHEAD - sum(len(text.encode()) for text in texts)
    args = None
    if name == kind:  # a shortened name leads nowhere
        args = attempt(lambda: _rebuilding_args(exc, name, _args_codec(codec), room), None)
    return _PLAIN.encode([_FORMAT, leader_pid, *texts, args])


def decode_failure(payload: memoryview | bytes, codec: Codec) -> Exception:
    """Return the exception that a follower of the failed leader raises, made for it alone.

    It is of the leader's class, with ``LeaderPanicked`` as its cause, if that class is builtin,
    registered with ``codec`` or defined in a module that is imported already, and if it rebuilds
    from its arguments; else it is ``LeaderPanicked``.

    Raises:
        ValueError: the payload is damaged.
    """
    pid, name, message, trace, data = _read_record(_PLAIN.decode(payload))
    panicked = LeaderPanicked(message, _dotted(name), trace, pid)
    if data is None:
        return panicked
    exc: Exception = attempt(lambda: _rebuild(name, data, _args_codec(codec), panicked), panicked)
    return exc


def _read_record(record: Any) -> tuple[int, str, str, str, bytes | None]:
    kinds = list(map(type, record)) if type(record) is list else []
    if kinds[:5] != [int, int, str, str, str] or kinds[5:] not in ([bytes], [type(None)]):
        raise ValueError("the payload is no failure")
    if record[0] != _FORMAT:
        raise ValueError(f"the failure has format {record[0]}, not {_FORMAT}")
    return tuple(record[1:])


# Texts.


def _dotted(name: str) -> str:
    return name.replace(":", ".", 1)


def _fit(text: str, size: int) -> str:
    """Return ``text`` without lone surrogates, its start if it has more than ``size`` bytes."""
    data = clip(text, size).encode("utf-8", "backslashreplace")
    if len(data) <= size:
        return data.decode()
    return data[: size - 3].decode("utf-8", "ignore") + "…"


def _fit_end(text: str, size: int) -> str:
    """Do as ``_fit``, but keep the end, from the start of a line if possible."""
    data = text[-size:].encode("utf-8", "backslashreplace")
    if len(data) <= size and len(text) <= size:
        return data.decode()
    kept = data[3 - size :].decode("utf-8", "ignore")
    first, newline, rest = kept.partition("\n")
    return "…" + (rest if newline else first)


def _trace(exc: BaseException) -> str:
    # The last frames only, and not by traceback.format_exception: that renders every cause
    # and context, of which there may be thousands, and calls their methods.
    frames = traceback.extract_tb(exc.__traceback__, limit=-_TRACEBACK_FRAMES)
    return "Traceback (most recent call last):\n" + "".join(traceback.format_list(frames))


# Rebuilding.


def _args_codec(codec: Codec) -> MsgpackCodec:
    return codec if isinstance(codec, MsgpackCodec) else _PLAIN


def _find_class(name: str, codec: MsgpackCodec) -> type[Exception] | None:
    """Return the exception class of that name which this process already has, or None."""
    registered = codec.exception_class(name)
    if registered is not None:
        return registered
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        # Past any __getattr__, which may import a module only when it is asked for something.
        kind = type if issubclass(type(found), type) else object
        found = kind.__getattribute__(found, "__dict__").get(part)
    if issubclass(type(found), type) and issubclass(found, Exception) and identity(found) == name:
        return found  # type: ignore[no-any-return]
    return None


def _constructor_args(exc: BaseException) -> tuple[object, ...]:
    args: tuple[object, ...] = BaseException.args.__get__(exc)  # type: ignore[attr-defined]
    if isinstance(exc, OSError) and len(args) == 2 and exc.filename is not None:
        # The constructor moves the names of files from args to attributes.
        second = () if exc.filename2 is None else (None, exc.filename2)
        return (*args, exc.filename, *second)
    return args


def _rebuilding_args(exc: BaseException, name: str, codec: MsgpackCodec, room: int) -> bytes | None:
    """Return the encoded arguments from which followers can rebuild ``exc``, if there are."""
    cls = type(exc)
    if _find_class(name, codec) is not cls:
        return None
    args = _constructor_args(exc)
    data = codec.encode_within(args, room)
    again = cls(*args)
    # Compared as encoded: exact in types, and no __eq__ has a say.
    if type(again) is cls and codec.encode_within(_constructor_args(again), room) == data:
        return data
    return None


def _rebuild(name: str, data: bytes, codec: MsgpackCodec, panicked: LeaderPanicked) -> Exception:
    cls = _find_class(name, codec)
    args = codec.decode(data)
    if cls is None or type(args) is not tuple:
        return panicked
    exc = cls(*args)
    if type(exc) is not cls:
        return panicked
    exc.__cause__ = panicked
    return exc
