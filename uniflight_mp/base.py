"""What every kind of Merger does with a flight, whatever it sleeps on.

A call goes through these steps, and a kind of Merger adds only how it runs the function and how
it sleeps until the flight has news:

    _begin(key) ----> Lead     run the function, then _complete() or _fail()
    _enter(...) ----> Follow   sleep, then _advance() ----> Lead
                                                      ----> Landed   _deliver() to each follower
                                                      ----> None     sleep again
                ----> Solo     run the function alone
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeGuard, TypeVar

from .codec import Codec, MsgpackCodec, RawCodec, check_codec
from .core import Follow, Lead, Table, give_back, shm
from .errors import (
    FlightTimeout,
    LeaderDied,
    ResultNotDecodable,
    ResultNotShareable,
    ResultTooLarge,
    TableUnavailable,
    attempt,
    clip,
    show,
    type_name,
    warn,
)
from .failure import decode_failure, encode_failure
from .keys import encode_key
from .limits import Limits
from .options import UNSET, Options, Unset
from .outcome import Outcome, Role
from .results import Extra, map_extra, read_extra, write_extra
from .scopes import PerCore, PerHost, PerNuma, PerProcess, Scope, check_scope, is_divided
from .segment import (
    CARE_LOCK_SECONDS,
    UNAVAILABLE,
    PrivateSegment,
    Segment,
    existing_tables,
    open_segment,
)
from .shmfile import check_name
from .stats import FlightInfo, Stats, read_flights, read_stats

if TYPE_CHECKING:  # takes longer to import than all of this package
    from concurrent.futures import Executor

__all__ = ["BaseMerger", "Begun", "Landed", "Solo"]

Self = TypeVar("Self", bound="BaseMerger")

_ADVICE = {
    "table_full": "more keys are in flight than the table holds: raise Limits.flights",
    "too_many_waiters": "more callers wait than the table holds: raise Limits.waiters",
    "too_many_threads": "more threads use the table than it holds: raise Limits.threads; or this "
    "thread uses more than 1,024 tables: close Mergers",
    "lock_timeout": "a process that holds a lock of the table is stopped: continue or kill it",
    "damaged": "the table's memory holds what this library never writes; it is being replaced",
}


_RETRY_NS = 100_000_000  # before a partition whose table cannot be opened is tried again
_NO_LIMIT_OF_ITS_OWN = 1 << 40  # bytes; for the codec: what holds is the table's result_bytes


class Solo(NamedTuple):
    """Why a call runs its function alone; one of ``Stats.solo``."""

    reason: str


Begun: TypeAlias = Lead | Follow | Solo | int | None
"""What a table answers to a call that begins; a number or None is a case for ``_enter``."""


class Landed(NamedTuple):
    """What a flight left for its followers: taken once, given to each that waited with it."""

    value: object = None
    followers: int = 0
    takeovers: int = 0
    leader_pid: int = 0
    failure: bytes | None = None  # an encoded exception; each follower raises one of its own
    solo: str | None = None  # why the followers run the function themselves
    problem: Exception | None = None  # what a strict follower raises instead
    died: bool = False

    def has_value(self) -> bool:
        """Whether the leader's value is there for its followers."""
        return self.failure is None and self.solo is None and not self.died


# What __init__ sets, in that order, and a view has as well.
_ATTRIBUTES = (
    "_name",
    "_scope",
    "_options",
    "_limits",
    "_codec",
    "_segment",
    "_views",
    "_retry_ns",
)


class _ClosedSegment:
    """Stands where the segment was; any use of it says so."""

    segment = name = ""

    @property
    def table(self) -> Any:
        raise RuntimeError("this Merger is closed: make a new one with the same name")

    def care(self) -> bool:
        return False


class _NoSegment:
    """Stands where the segment of a partition would be that cannot be opened at the moment."""

    segment = ""

    def __init__(self, home: Table) -> None:
        self._home = home
        self.table: Any = self

    def begin(self, key: object, *_: object) -> Solo:
        encode_key(key)  # what cannot be a key is an error here, too
        self._home.count_solo(shm.SOLO_REASONS.index("unavailable"))
        return Solo("unavailable")

    def care(self) -> bool:
        return False


class BaseMerger:
    """The table, the options and the steps of a call. Use ``Merger`` or ``AsyncMerger``."""

    def __init__(
        self,
        name: str,
        *,
        scope: Scope | None = None,
        codec: Codec | None = None,
        timeout: float | None = None,
        on_timeout: str = "raise",
        lease: float | None = None,
        max_takeovers: int = 3,
        strict: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._name = check_name(name)
        self._scope = self._default_scope if scope is None else check_scope(scope)
        self._options = Options(timeout, on_timeout, lease, max_takeovers, strict)
        self._limits = Limits() if limits is None else limits
        if not isinstance(self._limits, Limits):
            raise TypeError(f"limits must be Limits(...), not {type(limits).__name__}")
        self._codec: Codec = (
            MsgpackCodec(max_bytes=_NO_LIMIT_OF_ITS_OWN) if codec is None else codec
        )
        check_codec(self._codec)
        # The table of the caller's partition, which makes this an error at once if it is one.
        self._segment: Segment | PrivateSegment | _ClosedSegment | _NoSegment = open_segment(
            name, self._scope, self._scope.partition(), self._limits
        )
        self._views = {} if is_divided(self._scope) else None
        self._retry_ns = {}

    _default_scope: ClassVar[Scope] = PerHost()
    _views: dict[str, Any] | None  # by partition: Mergers like this one, on its table
    _retry_ns: dict[str, int]  # by partition, if its table could not be opened: when to try again
    _executor: tuple[int, Executor] | None = None  # of Merger.submit, and its process

    # ---- for users ----------------------------------------------------------------------

    @classmethod
    def per_host(cls: type[Self], name: str, **options: Any) -> Self:
        """Return a Merger whose table is shared by all processes of the host: the default."""
        return cls(name, scope=PerHost(), **options)

    @classmethod
    def per_numa(cls: type[Self], name: str, **options: Any) -> Self:
        """Return a Merger with a shared table for each NUMA node; see ``PerNuma``."""
        return cls(name, scope=PerNuma(), **options)

    @classmethod
    def per_process(cls: type[Self], name: str, **options: Any) -> Self:
        """Return a Merger whose table no other process shares; see ``PerProcess``."""
        return cls(name, scope=PerProcess(), **options)

    @classmethod
    def per_core(cls: type[Self], name: str, **options: Any) -> Self:
        """Return a Merger with a table for each CPU, in this process; see ``PerCore``."""
        return cls(name, scope=PerCore(), **options)

    def with_options(
        self: Self,
        *,
        timeout: float | Unset | None = UNSET,
        on_timeout: str | Unset = UNSET,
        lease: float | Unset | None = UNSET,
        strict: bool | Unset = UNSET,
    ) -> Self:
        """Return a view over the same table whose calls use other options.

        What is not given stays as it is here. Views are cheap; each is closed by itself.

        Raises:
            ValueError, TypeError: an option is out of range or of the wrong type.
        """
        changes = {"timeout": timeout, "on_timeout": on_timeout, "lease": lease, "strict": strict}
        return self._view(
            _options=self._options.updated(changes), _views=None if self._views is None else {}
        )

    def forget(self, key: object) -> bool:
        """Let the next call of ``key`` start a fresh flight; those who joined keep theirs.

        Returns whether there was a flight, in any partition of the scope. Also False if a table
        could not be asked (its lock is held by a stopped process): the next call runs alone
        then, and is fresh as well.

        Raises:
            TypeError: ``key`` cannot be a key.
            RuntimeError: this Merger is closed.
        """
        return True in [table.forget(key) for table in self._tables()]

    def flights(self) -> list[FlightInfo]:
        """List the flights of all the scope's tables, the oldest first; the dead's are swept.

        A picture of a moving thing: each entry was true at some moment during the call.
        """
        tables = self._tables()
        for table in tables:
            table.reap()
        return read_flights(*tables)

    def stats(self) -> Stats:
        """Return the counters of all the scope's tables since their creation, added up."""
        return read_stats(*self._tables())

    def close(self) -> None:
        """Let go of the table; it stays for others, and calls under way finish. Idempotent.

        Any other use afterwards raises RuntimeError.
        """
        self._segment = _ClosedSegment()
        self._views = None if self._views is None else {}

    @property
    def name(self) -> str:
        """The table's name."""
        return self._name

    @property
    def scope(self) -> Scope:
        """Who coalesces with whom."""
        return self._scope

    def __repr__(self) -> str:
        closed = ", closed" if isinstance(self._segment, _ClosedSegment) else ""
        return f"{type(self).__name__}({self._name!r}, scope={self._scope!r}{closed})"

    def __reduce__(self) -> tuple[Any, ...]:
        options = self._options
        arguments = {
            "scope": self._scope,
            "codec": self._codec,
            "timeout": options.timeout,
            "on_timeout": options.on_timeout,
            "lease": options.lease,
            "max_takeovers": options.max_takeovers,
            "strict": options.strict,
            "limits": self._limits,
        }
        return _reopen, (type(self), self._name, arguments)

    # ---- partitions ---------------------------------------------------------------------

    def _view(self: Self, **changes: Any) -> Self:
        view = object.__new__(type(self))
        # One by one, as __init__ does: attributes are found faster in an object whose __dict__
        # was never asked for.
        for name in _ATTRIBUTES:
            setattr(view, name, changes[name] if name in changes else getattr(self, name))
        return view

    def _here(self: Self) -> Self:
        """Return the Merger on the table of the caller's partition; only if there are several."""
        partition = self._scope.partition()
        try:
            here: Self = self._views[partition]  # type: ignore[index]  # not asked if it is None
        except KeyError:
            pass
        else:
            return here
        return self._open_here(partition)  # not in the handler: a KeyError is no context for it

    def _open_here(self: Self, partition: str) -> Self:
        views, home = self._views, self._segment.table  # if this Merger is closed, it says so
        now_ns = time.monotonic_ns()
        if now_ns >= self._retry_ns.get(partition, 0) or self._options.strict:
            try:
                # In the middle of a call, which must not hang for it.
                segment = open_segment(
                    self._name, self._scope, partition, self._limits, CARE_LOCK_SECONDS
                )
            except UNAVAILABLE as error:
                if self._options.strict:
                    raise
                self._retry_ns[partition] = now_ns + _RETRY_NS
                text = f"calls in partition {partition!r} run alone: {error}"
                _warn_once(text, self._name, partition)
            else:
                view = self._view(_segment=segment, _views=None)
                return view if views is None else views.setdefault(partition, view)
        return self._view(_segment=_NoSegment(home), _views=None)

    def _tables(self) -> list[Table]:
        """Return the tables of all partitions that have one."""
        home = self._segment.table
        if self._views is None:
            return [home]
        # Not only those that this Merger has met: other processes may be in others.
        tables = existing_tables(self._name, self._scope)
        return [home, *(table for table in tables if not _is_same(table, home))]

    # ---- steps of a call ----------------------------------------------------------------

    def _begin(self, key: object, *doorbell: bytes) -> Begun:
        """Ask the table once: mostly a Lead or a Follow."""
        options = self._options
        return self._segment.table.begin(key, options.lease_ns, options.max_takeovers, *doorbell)

    def _enter(self, key: object, step: Begun, *doorbell: bytes) -> Lead | Follow | Solo:
        """Make of the answer of ``_begin`` what the call is to do: lead, follow or run alone.

        Raises:
            TypeError: ``key`` cannot be a key.
            RuntimeError: the calling thread leads this very flight, or the Merger is closed.
            TableUnavailable: with ``strict``, instead of running alone.
        """
        try:
            if step is None or step == shm.DAMAGED:
                # Care is asked for ten times a second at most, so the next answer is a real one;
                # unless the table is damaged, and cannot be replaced at the moment.
                self._segment.care()
                step = self._begin(key, *doorbell)
                if step is None:  # caring took so long that it is asked for again
                    step = self._begin(key, *doorbell)
                if step == shm.DAMAGED and self._segment.care():
                    step = self._begin(key, *doorbell)
            if isinstance(step, (Lead, Follow, Solo)):
                return step
        except BaseException:  # of a signal handler; who keeps the exception keeps this frame
            give_back(step)
            raise
        if step == shm.SELF_JOIN:
            raise RuntimeError(
                f"this thread already leads the flight of key {show(key)} in table "
                f"{self._name!r}: waiting for it here would never end. Call the function "
                "directly, or use another key"
            )
        return self._solo(_reason(step), self._segment.table)

    def _solo(self, reason: str, table: Table) -> Solo:
        """Count a call that runs alone, or refuse it if the caller is strict."""
        if self._options.strict and reason in _ADVICE:
            raise TableUnavailable(reason, _ADVICE[reason], self._name)
        table.count_solo(shm.SOLO_REASONS.index(reason))
        return Solo(reason)

    def _complete(self, lead: Lead, value: object) -> None:
        """End a flight with its leader's value; encode it only if another process waits.

        Raises:
            ResultNotShareable: with ``strict``, if the value cannot be shared exactly.
        """
        strict = self._options.strict
        if strict:
            lead.seal()  # the function has returned; encoding takes its time
        elif lead.finish(value):
            return
        try:
            if self._is_payload(value):
                self._publish(lead, value, value)
            else:
                self._publish(lead, value, self._encode(value, lead.result_bytes))
        except ResultNotShareable as error:
            too_large = isinstance(error, ResultTooLarge)
            kind = shm.PAYLOAD_TOO_LARGE if too_large else shm.PAYLOAD_UNSHAREABLE
            lead.publish(kind, self._encode_failure(error), value)
            if strict:
                raise
            _warn_of(self._name, error)

    def _encode(self, value: object, most: int) -> memoryview:
        try:
            codec = self._codec
            if type(codec) is MsgpackCodec:  # may say early that it is too large
                return memoryview(codec.encode_within(value, min(most, codec.max_bytes)))
            return memoryview(codec.encode(value)).cast("B")
        except ResultNotShareable:
            raise
        except Exception as error:  # of the user's codec, or of a registered function
            raise ResultNotShareable(
                type_name(type(value)), "$", f"the codec failed: {show(error, 200)}"
            ) from error

    def _is_payload(self, value: object) -> TypeGuard[bytes]:
        """Tell whether ``value`` need not be encoded, as the codec gives it back as it is."""
        codec = self._codec
        if type(value) is not bytes:
            return False
        if type(codec) is MsgpackCodec:
            return len(value) <= codec.max_bytes
        return type(codec) is RawCodec

    def _encode_failure(self, error: BaseException) -> bytes:
        return encode_failure(error, self._codec, os.getpid())

    def _publish(self, lead: Lead, value: object, payload: bytes | memoryview) -> None:
        try:
            if len(payload) > lead.result_bytes:
                raise OSError(f"the table's limit, result_bytes, is {lead.result_bytes:,}")
            if lead.table.path is None:
                lead.finish(value)  # nobody but threads of this process can follow
            elif len(payload) > lead.inline_bytes:
                self._publish_extra(lead, value, payload)
            else:
                # Followers do not decode what has not been encoded.
                kind = shm.PAYLOAD_BYTES if payload is value else shm.PAYLOAD_VALUE
                lead.publish(kind, payload, value)
        except OSError as error:
            raise ResultTooLarge(
                type_name(type(value)),
                "$",
                f"its {len(payload):,} encoded bytes cannot be shared: {error}",
            ) from error

    def _publish_extra(self, lead: Lead, value: object, payload: bytes | memoryview) -> None:
        extra = Extra.of(lead, lead.epoch)
        kind = shm.PAYLOAD_EXTRA_BYTES if payload is value else shm.PAYLOAD_EXTRA
        try:
            lead.publish(kind, write_extra(extra, memoryview(payload)), value)
        finally:
            # Fenced, everybody left meanwhile, or an exception before it was published.
            if lead.followers == 0:
                extra.remove()

    def _fail(self, lead: Lead, error: BaseException) -> None:
        """End a flight whose function raised: an Exception is everybody's, the rest nobody's."""
        if not issubclass(type(error), Exception):  # whatever its __class__ says, as in except
            lead.abandon()  # cancelled, interrupted, exiting: a follower leads
        elif not lead.fail():
            lead.publish(shm.PAYLOAD_ERROR, self._encode_failure(error), None)

    def _advance(self, follow: Follow, status: int) -> Lead | Landed | None:
        """Act on what a sleeper woke up to: lead, land, or (None) sleep again."""
        if status == shm.LEADERLESS:
            options = self._options
            step = follow.takeover(options.lease_ns, options.max_takeovers)
            if isinstance(step, Lead):
                return step
            status = step
        if status == shm.DONE:
            return self._take(follow)
        if status == shm.PENDING:
            return None
        follow.leave()
        return Landed(solo=_reason(status))

    def _take(self, follow: Follow) -> Landed:
        """Take what the leader left, and leave the flight."""
        kind, payload, local, epoch, who = follow.take()
        is_extra = kind in (shm.PAYLOAD_EXTRA, shm.PAYLOAD_EXTRA_BYTES)
        extra = Extra.of(follow, epoch) if is_extra else None
        landed = Landed(None, *who, solo="damaged")  # unless something better is found
        try:
            landed = self._open(kind, payload, local, extra, who)
        except Exception as error:
            problem = self._not_decodable(error, landed.leader_pid)
            landed = Landed(None, *who, solo="not_decodable", problem=problem)
        finally:
            last = follow.leave(shm.LEAVING_SERVED if landed.solo is None else 0)
            if last and extra:
                extra.remove()
        return landed

    def _open(
        self,
        kind: int,
        payload: Any,
        local: tuple[object] | None,
        extra: Extra | None,
        who: tuple[int, int, int],
    ) -> Landed:
        """Return what the leader published; ``who``: followers, takeovers, the leader's pid."""
        if local is not None:
            return Landed(local[0], *who)
        if kind in (shm.PAYLOAD_BYTES, shm.PAYLOAD_EXTRA_BYTES):
            content = payload if extra is None else read_extra(extra, payload)
            if not self._is_payload(content):
                raise ValueError("it is bytes, and this process has another codec, or limit")
            return Landed(content, *who)
        if kind == shm.PAYLOAD_VALUE:
            return Landed(self._codec.decode(memoryview(payload)), *who)
        if kind == shm.PAYLOAD_EXTRA and extra is not None:
            return Landed(self._codec.decode(map_extra(extra, payload)), *who)
        if kind == shm.PAYLOAD_ERROR:
            return Landed(None, *who, failure=payload)
        if kind == shm.PAYLOAD_DIED:
            return Landed(None, *who, died=True)
        if kind in (shm.PAYLOAD_UNSHAREABLE, shm.PAYLOAD_TOO_LARGE):
            reason = "too_large" if kind == shm.PAYLOAD_TOO_LARGE else "not_shareable"
            problem = decode_failure(payload, self._codec)
            return Landed(None, *who, solo=reason, problem=problem)
        return Landed(None, *who, solo="damaged")

    def _not_decodable(self, error: Exception, leader_pid: int) -> ResultNotShareable:
        text = attempt(lambda: clip(str(error), 500), show(error))  # of the user's codec
        detail = f"published by pid {leader_pid}, read by pid {os.getpid()}: {text}"
        problem = ResultNotDecodable("result", "$", detail)
        problem.__cause__ = error
        if not self._options.strict:
            _warn_of(self._name, problem)
        return problem

    def _deliver(
        self, landed: Landed, key: object, waited: float, table: Table
    ) -> Outcome[Any] | Solo:
        """Give one follower what its flight left: a value, an exception, or leave to run alone.

        Raises:
            Exception: the leader's, or what stands for it.
            LeaderDied, ResultNotShareable, TableUnavailable: see ``Merger``.
        """
        if landed.failure is not None:
            try:
                error = decode_failure(landed.failure, self._codec)
            except ValueError as damage:
                problem = self._not_decodable(damage, landed.leader_pid)
                landed = landed._replace(failure=None, solo="not_decodable", problem=problem)
            else:
                try:
                    raise error  # its cause is set: LeaderPanicked
                finally:
                    del error  # or it and this frame would keep each other alive
        if landed.died:
            raise LeaderDied(key, landed.takeovers, landed.leader_pid)
        if landed.solo is not None:
            if landed.problem is not None and self._options.strict:
                # One for each task of a loop: raising it adds to its traceback.
                raise type(landed.problem)(*landed.problem.args) from landed.problem.__cause__
            return self._solo(landed.solo, table)
        return Outcome(
            landed.value,
            Role.FOLLOWER,
            landed.followers,
            waited,
            landed.takeovers,
            landed.leader_pid,
        )

    def _timed_out(self, key: object, waited: float, table: Table) -> Solo:
        """Say what a follower does whose timeout is over.

        Raises:
            FlightTimeout: unless ``on_timeout`` is ``"run"``.
        """
        if self._options.on_timeout == "raise":
            raise FlightTimeout(key, self._options.timeout or 0.0, waited)
        return self._solo("timeout", table)


def _is_same(one: Table, other: Table) -> bool:
    return one is other or (one.path is not None and one.identity == other.identity)


def _reason(status: int | None) -> str:
    """Name the reason for which the core sends a caller away."""
    reasons = {
        shm.NO_SLOT: "table_full",
        shm.NO_CELL: "too_many_waiters",
        shm.NO_THREAD: "too_many_threads",
        shm.LOCK_TIMEOUT: "lock_timeout",
    }
    return reasons.get(status, "damaged") if status is not None else "damaged"


_warned: set[tuple[str, ...]] = set()


def _warn_once(text: str, *about: str) -> None:
    """Say it, unless it has been said about these."""
    if about in _warned or len(_warned) >= 1000:
        return
    _warned.add(about)
    warn(text)


def _warn_of(table: str, problem: ResultNotShareable) -> None:
    """Say once per table, type and path that followers run the function themselves."""
    text = f"table {table!r}: followers run the function themselves. {problem}"
    _warn_once(text, table, problem.type_name, problem.path)


def _reopen(cls: Callable[..., Self], name: str, arguments: dict[str, Any]) -> Self:
    return cls(name, **arguments)
