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
"""

from __future__ import annotations

import os
import secrets
import socket
import time
import weakref
from collections.abc import Callable
from typing import Any, Final, Protocol

from .base import BaseMerger, Landed, Solo
from .core import Follow, Lead, Table, shm
from .errors import show
from .keys import encode_key

__all__ = ["RETRY", "Desk", "Desks", "LocalFlight", "Reactor", "Retry", "Ticket", "Timer"]

_ADDRESS: Final = b"\0uniflight-"
_FIRST_LOOK: Final = 0.0005  # seconds; as the first waiter of a young flight


class Retry:
    """Type of ``RETRY``."""


RETRY: Final = Retry()


class Ticket(Protocol):
    """What a local follower sleeps on; ``asyncio.Future`` is one."""

    def set_result(self, result: Any, /) -> None: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def result(self) -> Any: ...


class Timer(Protocol):
    """A call that is yet to come."""

    def cancel(self) -> None: ...


class Reactor(Protocol):
    """What a desk needs of the event loop that is running when it is asked.

    It holds no loop, so neither does a desk.
    """

    def ticket(self) -> Ticket: ...
    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer: ...
    def add_reader(self, fd: int, callback: Callable[[], None]) -> None: ...
    def remove_reader(self, fd: int) -> None: ...
    def caller(self) -> object: ...


class LocalFlight:
    """One flight, as far as one loop is concerned: led from here, or waited for from here."""

    __slots__ = ("__weakref__", "caller", "due_ns", "follow", "lead", "name", "table", "tickets")

    def __init__(self, name: object, lease_ns: int | None, table: Table) -> None:
        self.name = name
        self.table = table
        self.due_ns = None if lease_ns is None else time.monotonic_ns() + lease_ns
        self.lead: Lead | None = None
        self.follow: Follow | None = None
        self.caller: object = None  # the task that leads
        # In order of arrival: by whose options to lead, and who is to lead.
        self.tickets: dict[Ticket, tuple[BaseMerger, object]] = {}

    def is_joinable(self) -> bool:
        """Whether the shared flight still takes callers; else a newcomer would get a result
        that is older than its call, or one that nobody else will ever see."""
        handle = self.lead or self.follow
        return handle is not None and handle.joinable


class Desk:
    """The local flights of one loop on one table. Not for other threads than the loop's."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self._flights: dict[object, LocalFlight] = {}
        self._waited: dict[LocalFlight, None] = {}  # those that need looking after
        self._doorbell = secrets.token_bytes(shm.DOORBELL_BYTES)
        self._socket: socket.socket | None = None  # only while a shared flight is waited for
        self._timer: Timer | None = None

    # ---- for callers --------------------------------------------------------------------

    def enter(self, merger: BaseMerger, key: object) -> tuple[LocalFlight, Lead | Ticket | Solo]:
        """Join a local flight, or take part in a shared one for this loop.

        Raises what ``BaseMerger._enter`` raises; RuntimeError too if the task leads this key.
        """
        caller = self.reactor.caller()
        name = key if key.__class__ is str else encode_key(key)
        flight = self._flights.get(name)
        if flight is not None:
            if flight.is_joinable():
                if flight.caller is caller and flight.lead is not None:
                    raise RuntimeError(
                        f"this task already leads the flight of key {show(key)}: waiting for it "
                        "here would never end. Call the function directly, or use another key"
                    )
                return flight, self._join(flight, merger, caller)
            del self._flights[name]
        options = merger._options
        table = merger._segment.table
        step: Lead | Follow | Solo | int | None = table.begin(
            key, options.lease_ns, options.max_takeovers, self._doorbell
        )
        flight = LocalFlight(name, options.lease_ns, table)
        if step.__class__ is not Lead:
            step = merger._enter(key, step, self._doorbell)  # type: ignore[arg-type]
        if isinstance(step, Solo):
            return flight, step
        self._flights[name] = flight
        if isinstance(step, Lead):
            flight.lead, flight.caller = step, caller
            return flight, step
        flight.follow = step
        return flight, self._join(flight, merger, caller)

    def finish(self, flight: LocalFlight, merger: BaseMerger, lead: Lead, value: object) -> None:
        """End the flight with its leader's value, here and elsewhere.

        Raises:
            ResultNotShareable: with ``strict``.
        """
        self._close(flight)
        try:
            merger._complete(lead, value)
        finally:
            if flight.tickets:
                # A leader that was superseded keeps its late value for itself.
                landed = Landed(
                    value=value,
                    followers=lead.followers + len(flight.tickets),
                    takeovers=lead.takeovers,
                    leader_pid=os.getpid(),
                )
                self._settle(flight, RETRY if lead.fenced else landed)

    def fail(
        self, flight: LocalFlight, merger: BaseMerger, lead: Lead, error: BaseException
    ) -> None:
        """End the flight with an Exception; with anything else, let another one lead."""
        if not isinstance(error, Exception):
            self._hand_over(flight, lead)
            return
        self._close(flight)
        merger._fail(lead, error)
        if flight.tickets:
            failure = merger._encode_failure(error)
            landed = Landed(failure=failure, takeovers=lead.takeovers, leader_pid=os.getpid())
            self._settle(flight, RETRY if lead.fenced else landed)

    def leave(self, flight: LocalFlight, ticket: Ticket, timed_out: bool = False) -> None:
        """Give a ticket back whose holder does not wait any more; frees its room at once."""
        if flight.tickets.pop(ticket, None) is None:
            # Settled already. If it was chosen to lead, somebody else has to be.
            result = ticket.result() if ticket.done() and not ticket.cancelled() else None
            if isinstance(result, Lead):
                self._hand_over(flight, result)
            return
        if not flight.tickets and flight.follow is not None:
            self._close(flight)
            follow, flight.follow = flight.follow, None
            follow.leave(shm.LEAVING_TIMED_OUT if timed_out else 0)

    # ---- inside -------------------------------------------------------------------------

    def _join(self, flight: LocalFlight, merger: BaseMerger, caller: object) -> Ticket:
        ticket = self.reactor.ticket()
        flight.tickets[ticket] = (merger, caller)
        # A leader of this very loop tells its followers itself, unless it is overdue.
        if flight not in self._waited and (flight.follow is not None or flight.due_ns is not None):
            self._waited[flight] = None
            self._listen(flight.follow is not None)
        return ticket

    def _close(self, flight: LocalFlight) -> None:
        """Forget a flight: those who come now start another one."""
        if self._flights.get(flight.name) is flight:
            del self._flights[flight.name]
        self._unwatch(flight)

    def _unwatch(self, flight: LocalFlight) -> None:
        if flight in self._waited:
            del self._waited[flight]
            if not self._waited:
                self._stop_listening()

    def _settle(self, flight: LocalFlight, result: Landed | Retry) -> None:
        self._close(flight)
        tickets, flight.tickets = flight.tickets, {}
        for ticket in tickets:
            if not ticket.done():
                ticket.set_result(result)

    def _hand_over(self, flight: LocalFlight, lead: Lead) -> None:
        """Give the lead to the first local follower; without one, to another process."""
        flight.lead = lead
        while flight.tickets:
            ticket = next(iter(flight.tickets))
            _, caller = flight.tickets.pop(ticket)
            if not ticket.done():
                flight.caller = caller
                ticket.set_result(lead)
                if flight.due_ns is None or not flight.tickets:
                    self._unwatch(flight)
                return
        self._close(flight)
        lead.abandon()

    def _look(self) -> None:
        """See which flights have news, act on them, and set the time of the next look."""
        self._timer = None
        followed = [flight for flight in self._waited if flight.follow is not None]
        ready, delay_ns = shm.look([flight.follow for flight in followed])  # type: ignore[misc]
        for index in ready:
            self._act(followed[index])
        now_ns = time.monotonic_ns()
        for flight in [flight for flight in self._waited if flight.lead is not None]:
            if not flight.is_joinable():
                self._settle(flight, RETRY)  # its leader is overdue, or was superseded
            elif flight.due_ns is not None:
                delay_ns = min(delay_ns, max(flight.due_ns - now_ns, 0))
        if self._waited and self._timer is None:
            self._timer = self.reactor.call_later(max(delay_ns / 1e9, _FIRST_LOOK), self._look)

    def _act(self, flight: LocalFlight) -> None:
        follow = flight.follow
        if follow is None or not flight.tickets:
            return
        merger, _ = next(iter(flight.tickets.values()))
        step = merger._advance(follow, follow.poll())
        if isinstance(step, Lead):
            flight.follow = None
            self._hand_over(flight, step)
        elif step is not None:
            flight.follow = None
            self._settle(flight, step)

    def _listen(self, with_bell: bool) -> None:
        if with_bell and self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.bind(_ADDRESS + self._doorbell)
            self.reactor.add_reader(self._socket.fileno(), self._rung)
        # The flight may have landed before the socket had its name; and a new flight wants
        # looking at sooner than what the timer is set to.
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.reactor.call_later(_FIRST_LOOK, self._look)

    def _stop_listening(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            self.reactor.remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _rung(self) -> None:
        bell = self._socket
        try:
            while bell is not None:
                bell.recv(1)
        except BlockingIOError:
            pass
        if self._timer is not None:
            self._timer.cancel()
        self._look()


class Desks:
    """Finds the desk of a loop on a segment."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._desks: weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[Any, Desk]]
        self._desks = weakref.WeakKeyDictionary()

    def of(self, segment: object, loop: object) -> Desk:
        """Return the loop's desk on that segment, made now if need be.

        A desk does not keep its loop alive, and goes with it.
        """
        loops = self._desks.setdefault(segment, weakref.WeakKeyDictionary())
        desk = loops.get(loop)
        if desk is None:
            desk = loops[loop] = Desk(self._reactor)
        return desk
