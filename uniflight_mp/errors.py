"""The exceptions of uniflight-mp.

Each carries what happened in fields of its own, says in its text what was wrong and what to
do about it, and survives pickling and copying (workers of ``multiprocessing`` and Celery send
exceptions home by pickle). The fields are also ``args``, in the order of the constructor.
"""

from __future__ import annotations

import reprlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

__all__ = [
    "FlightTimeout",
    "LeaderDied",
    "LeaderPanicked",
    "ResultNotDecodable",
    "ResultNotShareable",
    "ResultTooLarge",
    "TableCorrupt",
    "TableMismatch",
    "TableUnavailable",
    "UniflightError",
]

_TEXT_LIMIT = 500
_PACKAGE = __name__.partition(".")[0] + "."


def attempt(action: Callable[[], Any], otherwise: Any) -> Any:
    """Return what ``action`` does, or ``otherwise`` if it raises anything but Ctrl-C.

    For actions that run methods of strangers' values, classes and exceptions. They may raise
    ``SystemExit`` as well; nobody's process is to end for being asked what it has.
    """
    try:
        return action()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return otherwise


def clip(text: str, limit: int) -> str:
    """Return ``text``, cut to ``limit`` characters with an ellipsis, as an exact ``str``.

    The methods of ``str`` are used unbound: a ``__repr__`` may return a subclass of ``str``.
    """
    if str.__len__(text) <= limit:
        return str.__getitem__(text, slice(None))
    return str.__getitem__(text, slice(limit - 1)) + "…"


def show(value: object, limit: int = 80) -> str:
    """Return a printable, bounded ``repr`` of ``value``; never raise for a hostile one.

    Long strings and wide tuples are cut before they are rendered, so that a key of a
    gigabyte costs nothing here.
    """
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = limit
    shortener.maxtuple = 8

    def render() -> str:
        if type(value) is int and value.bit_length() > 4096:
            return f"<int of {value.bit_length()} bits>"  # repr would be slow, or refused
        short = value[:limit] if isinstance(value, (bytes, bytearray)) else value
        return clip(shortener.repr(short), limit)

    text: str = attempt(render, "") or f"<{type_name(type(value), limit)}: no repr>"
    return text if text.isprintable() else clip(repr(text)[1:-1], limit)


def type_name(cls: type, limit: int = 200) -> str:
    """Return ``module.Qualname`` of a class (builtins without the module), bounded.

    A metaclass can make either attribute anything; then the result says so.
    """

    def render() -> str:
        module, name = cls.__module__, cls.__qualname__
        return clip(name if module == "builtins" else f"{module}.{name}", limit)

    text: str = attempt(render, "<type without a name>")
    return text


def warn(text: str) -> None:
    """Warn, at the line of the caller outside this package.

    Never raises: where a filter makes warnings errors (``python -W error``), the warning is shown
    instead. It is about how a call comes by its result, and must not cost that result.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    try:
        warnings.warn(text, RuntimeWarning, stacklevel=level)
    except RuntimeWarning as error:
        place = frame.f_code.co_filename, frame.f_lineno
        warnings.showwarning(error, RuntimeWarning, *place)


class UniflightError(Exception):
    """Base of every exception of this package that is about a flight or its table."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(show, self.args))})"


class LeaderPanicked(UniflightError):
    """The leader's function raised; this caller's function was not called.

    Raised itself where the leader's exception cannot be rebuilt here, else the ``__cause__``
    of the rebuilt one. ``exc_type`` is ``module.Qualname``; ``traceback`` is the end of the
    leader's traceback. Both, and ``message``, are shortened when long.
    """

    def __init__(self, message: str, exc_type: str, traceback: str, leader_pid: int) -> None:
        super().__init__(message, exc_type, traceback, leader_pid)
        self.message = message
        self.exc_type = exc_type
        self.traceback = traceback
        self.leader_pid = leader_pid

    def __str__(self) -> str:
        return (
            f"the leader (pid {self.leader_pid}) raised {self.exc_type}: "
            f"{clip(self.message, _TEXT_LIMIT)}. Its traceback is in .traceback. To catch the "
            "class itself here, import it in this process or register it with the codec, and "
            "make it rebuildable from its args"
        )


class LeaderDied(UniflightError):
    """Every leader of a flight died, and it was taken over as often as is allowed."""

    def __init__(self, key: object, takeovers: int, leader_pid: int) -> None:
        super().__init__(key, takeovers, leader_pid)
        self.key = key
        self.takeovers = takeovers
        self.leader_pid = leader_pid

    def __str__(self) -> str:
        return (
            f"every leader of key {show(self.key)} died, the last one with pid "
            f"{self.leader_pid}, after {self.takeovers} takeovers. The function probably kills "
            "its process: look for the OOM killer, a worker timeout or a crash. The next call "
            "starts afresh; max_takeovers sets how many processes are risked"
        )


class FlightTimeout(UniflightError, TimeoutError):
    """No result came within this caller's timeout; the flight itself goes on."""

    def __init__(self, key: object, timeout: float, waited: float) -> None:
        # Not super(): OSError.__init__ would take three arguments for errno, text and file.
        Exception.__init__(self, key, timeout, waited)
        self.key = key
        self.timeout = timeout
        self.waited = waited

    def __str__(self) -> str:
        return (
            f"no result for key {show(self.key)} after {self.waited:.3f} s (timeout "
            f"{self.timeout:g} s). The leader is still at work: allow more time, use "
            'on_timeout="run" to run alone, or lease= to replace a stuck leader'
        )


class ResultNotShareable(UniflightError):
    """A result cannot be rebuilt in another process exactly as it is.

    ``path`` leads from the result, ``$``, to the part of type ``type_name`` that is in the way.
    """

    def __init__(self, type_name: str, path: str, detail: str = "") -> None:
        super().__init__(type_name, path, detail)
        self.type_name = type_name
        self.path = path
        self.detail = detail

    _advice = "Return plain data there, register the class with the codec"

    def __str__(self) -> str:
        why = f" ({self.detail})" if self.detail else ""
        return (
            f"the result cannot be shared: {self.path} is of type {self.type_name}{why}. "
            f"{self._advice}, or leave strict off to let every process compute its own"
        )


class ResultTooLarge(ResultNotShareable):
    """The result as a whole is over the limit, or there is no room for it."""

    _advice = "Return less, raise Limits.result_bytes or enlarge /dev/shm"


class ResultNotDecodable(ResultNotShareable):
    """A result was shared that this process cannot decode; ``detail`` says why."""

    def __str__(self) -> str:
        return (
            f"the leader's result cannot be decoded here: {self.detail}. Register the same "
            "classes with the codec in every process, and run one version of them; or leave "
            "strict off to let this process compute its own"
        )


class TableUnavailable(UniflightError):
    """A call could not be coordinated, and ``strict`` forbids running alone.

    ``reason`` is one word for programs, such as ``table_full``; ``detail`` says what to do.
    """

    def __init__(self, reason: str, detail: str = "", table: str = "") -> None:
        super().__init__(reason, detail, table)
        self.reason = reason
        self.detail = detail
        self.table = table

    def __str__(self) -> str:
        table = f"table {self.table!r}" if self.table else "the table"
        advice = self.detail or "run `uniflight-mp doctor`, or leave strict off to run alone"
        return f"{table} is unavailable: {self.reason}. What to do: {advice}"


class TableMismatch(UniflightError):
    """The table was made by something whose layout differs from ours."""

    def __init__(self, table: str, found: str, expected: str) -> None:
        super().__init__(table, found, expected)
        self.table = table
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        return (
            f"table {self.table!r} has another layout: found {self.found}, expected "
            f"{self.expected}. Let the processes of the other version end, then run "
            f"`uniflight-mp destroy {self.table}`, or use another name"
        )


class TableCorrupt(UniflightError):
    """The table contradicts itself: something wrote into it that is not uniflight-mp."""

    def __init__(self, table: str, detail: str) -> None:
        super().__init__(table, detail)
        self.table = table
        self.detail = detail

    def __str__(self) -> str:
        return (
            f"table {self.table!r} is damaged: {self.detail}. Call again; if it stays so, run "
            f"`uniflight-mp destroy {self.table}` and find out what writes into /dev/shm"
        )


class Refused(Exception):
    """Raised inside an encoder at the part that is refused; every level adds its step.

    ``deepest`` is the object at the limit of depth. A level that holds the same object has found
    a cycle; the steps are then cut down to one turn of it, starting at its first appearance.
    """

    def __init__(self, cls: type, detail: str = "", step: str = "", deepest: object = None) -> None:
        super().__init__(cls, detail)
        self.name = type_name(cls)
        self.detail = detail
        self.deepest = deepest
        self._steps = [step] if step else []
        self._turn = 0

    def at(self, step: str) -> None:
        """Note one step on the way back from the refused part to the root."""
        self._steps.append(step)

    def leave(self, value: object) -> None:
        """Note that ``value`` contains the refused part."""
        if value is self.deepest:
            if self._turn == 0:
                self._turn = len(self._steps)
                self.detail = "it contains itself"
            else:
                del self._steps[: self._turn]

    def path(self, root: str, limit: int = 300) -> str:
        """Return the way from ``root``; the middle of a long one is left out."""
        steps = self._steps[::-1]
        if sum(map(len, steps)) > limit:
            steps = [*steps[:4], "…", *steps[-4:]]
        return clip(root + "".join(steps), limit + len(root))
