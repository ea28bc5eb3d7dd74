"""Coalescing inside one thread: the tasks of an event loop, the greenlets of a hub.

They cannot block the thread they share, and for the table they are one caller. So those that want
the same key meet at their loop's desk first, and the process takes part in a flight once, however
many of them wait. The desk decides; how a task sleeps, and on what, is the reactor's business.

    enter() ---> Lead     the caller runs its function, then finish() or fail()
            ---> Ticket   the caller sleeps until the ticket has a result:
                            Lead      it has been chosen to lead
                            Landed    the flight is over
                            RETRY     the flight is not worth waiting for: enter again
                          or leave()s when it gives up
            ---> Solo     the caller runs its function alone

A desk is an attribute of its loop: nothing else keeps it, so a loop that is thrown away takes
along its desk and the tasks that still waited, and leaves nothing in the table.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from .base import BaseMerger, Begun, Landed, Solo
from .core import Follow, Lead, give_back, shm
from .errors import show
from .keys import encode_key

__all__ = ["RETRY", "Desk", "LocalFlight", "Reactor", "Retry", "Ticket", "Timer", "desk_of"]

_ADDRESS: Final = b"\0uniflight-"
_FIRST_LOOK: Final = 0.0005  # seconds; UF_WATCH_MIN_NS of shm/wait.h
_DEAF_LOOK: Final = 0.005  # seconds between two looks where there is no descriptor for a bell
# Looking at one flight takes 0.4 to 0.8 us, as its memory has left the caches in the meantime. With
# so many seconds between two looks for each that is waited for, a loop spends less than a percent
# of a core on looking, however many they are.
_REST: Final = 0.0001
_OVERDUE: Final = 1.0  # seconds
# Signals can come faster than a busy machine handles them: so many in a row strike one clean-up.
_STRIKES: Final = 5


class Retry:
    """Type of ``RETRY``."""


RETRY: Final = Retry()


class Ticket(Protocol):
    """What a local follower sleeps on; ``asyncio.Future`` is one."""

    def set_result(self, result: Any, /) -> None: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def result(self) -> Any: ...
    def __await__(self) -> Generator[Any, None, Any]: ...


class Timer(Protocol):
    """A call that is yet to come."""

    def cancel(self) -> None: ...


class Reactor(Protocol):
    """What a desk needs of its event loop."""

    def ticket(self) -> Ticket: ...
    def call_later(self, seconds: float, callback: Callable[[], None], /) -> Timer: ...
    def call_soon(self, callback: Callable[[], None], /) -> object: ...
    def add_reader(self, fd: int, callback: Callable[[], None], /) -> object: ...
    def remove_reader(self, fd: int, /) -> object: ...
    def caller(self) -> object: ...
    def is_closed(self) -> bool: ...


_NOBODY: Final[dict[Any, Any]] = {}  # of a flight that nobody has joined; stays empty


class LocalFlight:
    """One flight, as far as one loop is concerned: led from here, or waited for from here."""

    __slots__ = ("caller", "due_ns", "follow", "is_entered", "lead", "name", "segment", "tickets")

    def __init__(self, name: object, segment: Any, lead: Lead | None, caller: object) -> None:
        self.name = name
        # Kept while its Merger may be closed: the next Merger of that name is to find this desk.
        self.segment = segment
        self.lead = lead
        self.follow: Follow | None = None
        self.caller = caller  # the task that leads, or the ticket of one that is going to
        self.is_entered = False  # whether its leader's call has it
        self.due_ns: int | None = None  # when the lease of a leader of this loop is over
        # In order of arrival: by whose options to lead.
        self.tickets: dict[Ticket, BaseMerger] = _NOBODY


class Desk:
    """The local flights of one loop on one table. Not for other threads than the loop's."""

    def __init__(self, loop: object, reactor: Reactor) -> None:
        self.loop = loop
        self.reactor = reactor
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Know of no flight, as a new desk does and that of a forked child."""
        self._flights: dict[object, LocalFlight] = {}
        self._followed: dict[Follow, LocalFlight] = {}  # those led elsewhere
        self._leased: set[LocalFlight] = set()  # those led here that may be overdue one day
        self._doorbell = secrets.token_bytes(shm.DOORBELL_BYTES)
        self._socket: socket.socket | None = None  # only while a shared flight is waited for
        self._timer: Timer | None = None
        self._look_at = 0.0  # when the timer is due

    # ---- for callers --------------------------------------------------------------------

    def enter(self, merger: BaseMerger, key: object) -> tuple[LocalFlight, Lead | Ticket | Solo]:
        """Join a local flight, or take part in a shared one for this loop.

        Raises what ``BaseMerger._enter`` raises; RuntimeError too if the task leads this key.
        """
        name = key if type(key) is str else encode_key(key)
        flight = self._flights.get(name)
        if flight is not None:
            lead = flight.lead
            handle = flight.follow if lead is None else lead
            # Else a newcomer would get a result that is older than its call, or one that nobody
            # else will ever see.
            if handle is not None and handle.joinable:
                if lead is not None and flight.caller is self.reactor.caller():
                    raise RuntimeError(
                        f"this task already leads the flight of key {show(key)}: waiting for it "
                        "here would never end. Call the function directly, or use another key"
                    )
                return flight, self._join(flight, merger)
            del self._flights[name]
        step: Begun = None
        try:
            options, segment = merger._options, merger._segment
            step = segment.table.begin(key, options.lease_ns, options.max_takeovers, self._doorbell)
            if step.__class__ is not Lead:
                step = merger._enter(key, step, self._doorbell)
                if isinstance(step, Solo):
                    return LocalFlight(name, segment, None, None), step
                if isinstance(step, Follow):
                    flight = self._flights[name] = LocalFlight(name, segment, None, None)
                    flight.follow = step
                    self._followed[step] = flight  # from here on _act looks after it
                    self._listen(step)
                    return flight, self._join(flight, merger)
            flight = self._flights[name] = LocalFlight(name, segment, step, self.reactor.caller())
            if options.lease_ns is not None:
                flight.due_ns = time.monotonic_ns() + options.lease_ns
            flight.is_entered = True
            return flight, step
        except BaseException:  # of a signal handler; who keeps the exception keeps this frame
            give_back(step)
            raise

    def disown(self, key: object, flight: LocalFlight | None, entered: object) -> None:
        """Give back what a call had that an exception has left: a ticket, or the lead.

        Mostly that has been done, and this does nothing. But a signal handler can raise anywhere:
        also after ``enter`` has put a Lead away and before its caller has it (then ``flight`` is
        None), and before its caller sleeps on the ticket, or comes to the function.
        ``entered`` is what ``enter`` returned along with the flight.
        """
        struck: BaseException | None = None
        for _ in range(_STRIKES):
            try:
                self._disown(key, flight, entered)
            except BaseException as again:
                struck = again
            else:
                break
        if struck is not None:
            raise struck

    def _disown(self, key: object, flight: LocalFlight | None, entered: object) -> None:
        if flight is None:
            with suppress(TypeError):  # cannot be a key: nothing has begun
                flight = self._flights.get(key if type(key) is str else encode_key(key))
            if flight is None or flight.is_entered:  # an outer call's, which this one may not join
                return
        elif entered is not None and not isinstance(entered, (Lead, Solo)):
            self.leave(flight, entered)  # type: ignore[arg-type]  # a ticket
        if flight.caller is self.reactor.caller():
            lead = flight.lead
            if lead is not None and lead.active:
                self._hand_over(flight, lead)

    def finish(self, flight: LocalFlight, merger: BaseMerger, lead: Lead, value: object) -> int:
        """End the flight with its leader's value, here and elsewhere; return how many followed.

        Those of this loop count each, another loop counts once.

        Raises:
            ResultNotShareable: with ``strict``.
        """
        if not flight.tickets:
            if self._flights.get(flight.name) is flight:
                del self._flights[flight.name]
            # Almost every flight ends here: what ``_complete`` would do first, spelled out.
            if merger._options.strict or not lead.finish(value):
                merger._complete(lead, value)
            return lead.followers
        self._close(flight)
        local = sum(not ticket.done() for ticket in flight.tickets)
        try:
            merger._complete(lead, value)
        finally:
            # A leader that was superseded keeps its late value for itself.
            followers = 0 if lead.fenced else lead.followers + local
            landed = Landed(
                value=value,
                followers=followers,
                takeovers=lead.takeovers,
                leader_pid=os.getpid(),
            )
            self._settle(flight, RETRY if lead.fenced else landed)
        return followers

    def fail(
        self, flight: LocalFlight, merger: BaseMerger, lead: Lead, error: BaseException
    ) -> None:
        """End the flight with an Exception; with anything else, let another one lead."""
        if not issubclass(type(error), Exception):  # whatever its __class__ says, as in except
            self._hand_over(flight, lead)
            return
        self._close(flight)
        landed: Landed | Retry = RETRY  # if something keeps the exception from being encoded
        try:
            merger._fail(lead, error)
            if flight.tickets and not lead.fenced:
                failure = merger._encode_failure(error)
                landed = Landed(failure=failure, takeovers=lead.takeovers, leader_pid=os.getpid())
        finally:
            self._settle(flight, landed)

    def leave(self, flight: LocalFlight, ticket: Ticket, timed_out: bool = False) -> None:
        """Give a ticket back whose holder does not wait any more; frees its room at once."""
        waited = flight.tickets.pop(ticket, None) is not None
        result = ticket.result() if ticket.done() and not ticket.cancelled() else None
        if isinstance(result, Lead):
            if flight.caller is ticket and result.active:  # chosen to lead: somebody else has to
                self._hand_over(flight, result)
        elif waited and not flight.tickets:
            follow = flight.follow
            if follow is not None:
                self._close(flight)
                follow.leave(shm.LEAVING_TIMED_OUT if timed_out else 0)
            else:
                self._unwatch(flight)

    # ---- inside -------------------------------------------------------------------------

    def _join(self, flight: LocalFlight, merger: BaseMerger) -> Ticket:
        ticket = self.reactor.ticket()
        if flight.tickets is _NOBODY:
            flight.tickets = {}
        try:
            flight.tickets[ticket] = merger
            # A leader of this very loop tells its followers itself, unless it is overdue.
            if flight.due_ns is not None and flight not in self._leased:
                self._leased.add(flight)
                self._look_within(max(0.0, (flight.due_ns - time.monotonic_ns()) / 1e9))
        except BaseException:  # of a signal handler: nobody will sleep on it
            flight.tickets.pop(ticket, None)
            raise
        return ticket

    def _close(self, flight: LocalFlight) -> None:
        """Forget a flight: those who come now start another one."""
        if self._flights.get(flight.name) is flight:
            del self._flights[flight.name]
        if flight.follow is not None or flight.due_ns is not None:
            self._unwatch(flight)

    def _unwatch(self, flight: LocalFlight) -> None:
        follow, flight.follow = flight.follow, None
        if follow is not None:
            self._followed.pop(follow, None)
        self._leased.discard(flight)
        if not self._followed:
            self._rest_soon()

    def _settle(self, flight: LocalFlight, result: Landed | Retry) -> None:
        try:
            if not self.reactor.is_closed():
                for ticket in list(flight.tickets):
                    if not ticket.done():
                        ticket.set_result(result)
            flight.tickets = _NOBODY
            self._close(flight)
        except BaseException:  # of a signal handler: the rest must not wait for ever
            self.reactor.call_later(0, partial(self._settle, flight, result))
            raise

    def _hand_over(self, flight: LocalFlight, lead: Lead) -> None:
        """Let the first local follower lead instead; without one, another process."""
        heir = self._heir(flight)
        if heir is not None and flight.due_ns is None and heir[1]._options.lease_ns is None:
            self._appoint(flight, lead, heir[0])
            return
        # A lease runs from the beginning of its own leader: the next one begins anew.
        self._close(flight)
        lead.abandon()
        self._settle(flight, RETRY)

    def _heir(self, flight: LocalFlight) -> tuple[Ticket, BaseMerger] | None:
        """Return the first local follower that still waits, and by whose options it would lead."""
        if not self.reactor.is_closed():
            for entry in flight.tickets.items():
                if not entry[0].done():
                    return entry
        return None

    def _appoint(self, flight: LocalFlight, lead: Lead, heir: Ticket) -> None:
        # The ticket stands for the task that it wakes, until that task runs. In this order, an
        # exception between any two steps leaves one who leads, and who knows it.
        flight.lead, flight.caller = lead, heir
        heir.set_result(lead)
        flight.tickets.pop(heir, None)
        if lead.joinable:
            # It may have been sealed, and forgotten here, before it was taken over; or this loop
            # has come to it from an older flight of the key. Who calls now has to find it.
            self._flights[flight.name] = flight
        if not flight.tickets:
            self._unwatch(flight)

    def _look(self, bell: int = -1) -> None:
        """See which flights have news, act on them, and set the time of the next look.

        ``bell``: the descriptor, if it was rung.
        """
        delay = _FIRST_LOOK
        try:
            news, delay_ns = shm.look(self._followed, self._doorbell, bell)
            for follow, status in news:
                flight = self._followed.get(follow)
                if flight is not None:
                    self._act(flight, follow, status)
            if self._leased:
                delay_ns = min(delay_ns, self._look_at_leases())
            delay = max(delay_ns / 1e9, len(self._followed) * _REST, _FIRST_LOOK)
            if self._followed and self._socket is None:
                self._open_bell()  # and look once more: nobody could ring until now
                delay = min(delay, _DEAF_LOOK)
        finally:  # whatever a codec or a signal handler raised: those who wait are looked after
            self._set_timer(delay)

    def _act(self, flight: LocalFlight, follow: Follow, status: int) -> None:
        if not flight.tickets:  # an exception struck the one who was to wait
            self._close(flight)
            follow.leave()
            return
        heir = self._heir(flight)
        if heir is None:
            return  # all who wait are about to leave
        ticket, merger = heir
        step = merger._advance(follow, status)
        if isinstance(step, Lead):
            self._unwatch(flight)
            lease_ns = merger._options.lease_ns
            if lease_ns is not None:
                flight.due_ns = time.monotonic_ns() + lease_ns
                self._leased.add(flight)
            self._appoint(flight, step, ticket)
        elif step is not None:
            self._settle(flight, step)

    def _look_at_leases(self) -> int:
        """Send those away whose leader of this loop is overdue; return the ns to the next."""
        delay_ns, now_ns = 1 << 62, time.monotonic_ns()
        for flight in list(self._leased):
            rest_ns = (flight.due_ns or 0) - now_ns
            if rest_ns <= 0:
                self._settle(flight, RETRY)  # its leader is overdue; another may lead by now
            else:
                delay_ns = min(delay_ns, rest_ns)
        return delay_ns

    def _look_within(self, seconds: float) -> None:
        """Look sooner at a new flight, if the timer is set to a later time."""
        rest = self._look_at - time.monotonic()
        # A loop that comes to new flights all the time must not put off its looks for them. A timer
        # that is long overdue will not come: a signal handler has raised as its look began.
        if self._timer is None or not -_OVERDUE < rest <= seconds:
            self._set_timer(seconds)

    def _set_timer(self, seconds: float) -> None:
        former = self._timer
        if (self._followed or self._leased) and not self.reactor.is_closed():
            self._timer = self.reactor.call_later(seconds, self._look)
            self._look_at = time.monotonic() + seconds
            if former is not None:  # last: better two timers than none, if a signal handler raises
                former.cancel()
        else:
            self._look_at = 0.0  # a timer that is left is not counted on any more

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _listen(self, follow: Follow) -> None:
        if self._socket is None:
            self._open_bell()
        # The flight may have landed before the socket had its name.
        news, delay_ns = shm.look([follow], self._doorbell, -1)
        delay = 0.0 if news else delay_ns / 1e9
        self._look_within(delay if self._socket is not None else min(delay, _DEAF_LOOK))

    def _open_bell(self) -> None:
        """Make the descriptor that leaders ring; without one, the timer alone has to do."""
        bell = None
        try:
            bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            bell.setblocking(False)  # SOCK_NONBLOCK does not tell gevent's sockets
            bell.bind(_ADDRESS + self._doorbell)
            self.reactor.add_reader(bell.fileno(), self._rung)
        except OSError:  # no descriptor is to be had
            if bell is not None:
                bell.close()
        else:
            self._socket = bell

    def _rest_soon(self) -> None:
        """Rest behind those whose flight has landed: it takes 10 us, and they are to go on."""
        if self.reactor.is_closed():
            self._rest()
        elif self._socket is not None or self._timer is not None:
            self.reactor.call_soon(self._rest)

    def _rest(self) -> None:
        """Stop what only those who wait need: the timer, and the bell."""
        if self._followed:  # again
            return
        if not self._leased:
            self._stop_timer()
        bell, self._socket = self._socket, None
        shm.unwatch(self._doorbell)
        if bell is not None:
            if not self.reactor.is_closed():
                self.reactor.remove_reader(bell.fileno())
            bell.close()
            # A forked child may keep the address in use for a moment.
            self._doorbell = secrets.token_bytes(shm.DOORBELL_BYTES)

    def _rung(self) -> None:
        if self._socket is not None:
            self._look(self._socket.fileno())

    # ---- desks that outlived something --------------------------------------------------

    def drop(self) -> None:
        """Give up what tasks of a closed loop lead and wait for: they will never go on."""
        for flight in [*self._flights.values(), *self._followed.values()]:
            flight.tickets.clear()
            lead, follow = flight.lead, flight.follow
            self._close(flight)
            if lead is not None:
                lead.abandon()
            if follow is not None:
                follow.leave()
        self._rest()

    def forget_parent(self) -> None:
        """In a forked child: all flights are the parent's, and so is the bell.

        The socket is closed, and never taken from the loop: the child may share the parent's
        epoll, where that would take it from the parent's loop, too.
        """
        bell = self._socket
        self._begin_anew()
        if bell is not None:
            bell.close()


_ATTRIBUTE: Final = "_uniflight_desks"
_every_desk: weakref.WeakSet[Desk] = weakref.WeakSet()
_every_desk_lock = threading.Lock()


def desk_of(segment: object, loop: Any, make_reactor: Callable[[Any], Reactor]) -> Desk:
    """Return the loop's desk on that segment, made now if need be.

    Raises:
        AttributeError: the loop takes no attributes; those of asyncio, uvloop and gevent do.
    """
    desks: weakref.WeakKeyDictionary[object, Desk] | None = getattr(loop, _ATTRIBUTE, None)
    if desks is None:
        desks = weakref.WeakKeyDictionary()
        setattr(loop, _ATTRIBUTE, desks)
    desk = desks.get(segment)
    if desk is None:
        desk = desks[segment] = Desk(loop, make_reactor(loop))
        with _every_desk_lock:
            others = list(_every_desk)
            _every_desk.add(desk)
        for other in others:
            if other.reactor.is_closed():
                other.drop()
    return desk


def _forget_parents() -> None:
    global _every_desk_lock
    _every_desk_lock = threading.Lock()  # another thread of the parent may have held it
    for desk in list(_every_desk):
        desk.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)
