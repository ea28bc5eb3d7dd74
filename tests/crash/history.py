"""Judges what processes did to a table, from what each of them wrote down while it lived.

A history is a list of events: dicts with ``what``, ``at`` (CLOCK_MONOTONIC in nanoseconds, the same
for all processes) and ``life`` (a process, by a name that is never used again). The processes write

    call      call, key, timeout | None, lease | None      before the call
    execute   call, key, execution, leads                   the function begins; as leader or alone
    executed  call, execution, failed                       the function ends, before any publishing
    return    call, role, key, execution, intact            the value's own key and execution
    raise     call, error                                   the exception's class
    gone      call, execution                               its thread ends or execs now
    forget    key, forget                                   before a key is forgotten
    forgot    forget                                        afterwards
    armed                                                   it may kill itself from now on

and the one who watches over them

    kill, continue                                          before SIGKILL and SIGCONT
    stop                                                    after SIGSTOP
    died      status                                        after the wait; negative: a signal
    expect    signal                                        a death by that signal will be our doing

A process can be killed between any two of its events, so every rule is worded such that a time
that was not written down can only excuse, never accuse.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Verdict", "judge"]

SECOND = 1_000_000_000
NEVER = 1 << 63
GRACE = 1.0  # seconds a call may take beyond its own timeout
EARLY = 0.001  # seconds a timeout may seem early: it is converted before the call is begun

Event = dict[str, Any]


@dataclass(eq=False)
class _Call:
    begun: Event
    ended: Event | None = None
    executions: list[_Execution] = field(default_factory=list)
    gone: bool = False

    @property
    def life(self) -> str:
        return self.begun["life"]


@dataclass(eq=False)
class _Execution:
    begun: Event
    call: _Call
    ended: Event | None = None
    over: int = NEVER  # nobody executes any more after this

    @property
    def key(self) -> Any:
        return self.begun["key"]

    @property
    def leads(self) -> bool:
        return self.begun["leads"]

    def is_finished(self, at: int) -> bool:
        return self.ended is not None and not self.ended["failed"] and self.ended["at"] <= at


@dataclass(eq=False)
class Verdict:
    """What was found: violations in words, and what there was to judge."""

    violations: list[str]
    counts: Counter[str]
    latest: float = 0.0  # seconds the latest call took beyond its timeout and its own function

    def __str__(self) -> str:
        numbers = ", ".join(f"{what} {count}" for what, count in sorted(self.counts.items()))
        return f"{numbers}; latest {self.latest:.3f} s after its deadline"


def judge(
    events: Iterable[Event], *, may_raise: Iterable[str] = ("FlightTimeout",), grace: float = GRACE
) -> Verdict:
    """Check a history against the contract; see ``_Judge`` for the rules."""
    return _Judge(sorted(events, key=lambda event: event["at"]), set(may_raise), grace).verdict()


class _Judge:
    def __init__(self, events: list[Event], may_raise: set[str], grace: float) -> None:
        self.events = events
        self.may_raise = may_raise
        self.grace = round(grace * SECOND)
        self.violations: list[str] = []
        self.counts: Counter[str] = Counter()
        self.late = 0
        self.calls: dict[str, _Call] = {}
        self.executions: dict[str, _Execution] = {}
        self.successors: dict[str, _Execution] = {}  # the next leader of the same key
        self.forgets: dict[Any, list[Event]] = defaultdict(list)
        self.forgot: dict[str, int] = {}
        self.killed: dict[str, int] = {}  # the first moment a life may have been over
        self.dead: dict[str, int] = {}  # the last one
        self.stops: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._read()

    def verdict(self) -> Verdict:
        self._nobody_died_of_us()
        self._one_leader_at_a_time()
        for call in self.calls.values():
            self._runs_its_function_once_at_most(call)
            if call.ended is None:
                self._is_dead(call)
            else:
                self._is_in_time(call)
                if call.ended["what"] == "return":
                    self._has_a_value_of_its_own_flight(call)
                else:
                    self._may_raise_that(call)
        return Verdict(self.violations, self.counts, self.late / SECOND)

    # ---- reading ------------------------------------------------------------------------

    def _read(self) -> None:
        last: dict[str, int] = {}
        armed: set[str] = set()
        expected: dict[str, set[int]] = defaultdict(lambda: {9})
        self.statuses: list[tuple[str, int, set[int]]] = []
        for event in self.events:
            life, what, at = event["life"], event["what"], event["at"]
            self.counts[what] += 1
            if what == "kill":
                self.killed.setdefault(life, at)
            elif what == "armed":
                armed.add(life)
            elif what == "expect":
                expected[life].add(event["signal"])
            elif what == "died":
                # Perhaps at its own hand, after the last thing it wrote.
                if life not in self.killed or life in armed:
                    self.killed[life] = last.get(life, 0)
                self.dead[life] = at
                self.statuses.append((life, event["status"], expected[life]))
            elif what == "stop":
                self.stops[life].append((at, NEVER))
            elif what == "continue" and self.stops[life]:
                self.stops[life][-1] = (self.stops[life][-1][0], at)
            else:
                last[life] = at
                self._read_own(event)
        for execution in self.executions.values():
            life = execution.call.life
            execution.over = min(execution.over, self.killed.get(life, NEVER))

    def _read_own(self, event: Event) -> None:
        what = event["what"]
        if what == "call":
            self.calls[event["call"]] = _Call(event)
        elif what == "execute":
            call = self.calls[event["call"]]
            execution = _Execution(event, call)
            call.executions.append(execution)
            self.executions[event["execution"]] = execution
        elif what == "executed":
            self.executions[event["execution"]].ended = event
            self.executions[event["execution"]].over = event["at"]
        elif what == "gone":
            self.executions[event["execution"]].over = event["at"]
            self.calls[event["call"]].gone = True
        elif what in ("return", "raise"):
            self.calls[event["call"]].ended = event
            self.counts[event.get("role") or event["error"]] += 1
        elif what == "forget":
            self.forgets[event["key"]].append(event)
        elif what == "forgot":
            self.forgot[event["forget"]] = event["at"]

    def _accuse(self, text: str, *events: Event) -> None:
        self.violations.append(" | ".join([text, *map(str, events)]))

    # ---- rules --------------------------------------------------------------------------

    def _nobody_died_of_us(self) -> None:
        for life, status, expected in self.statuses:
            if status != 0 and -status not in expected:
                self.violations.append(f"process {life} ended with status {status}")

    def _one_leader_at_a_time(self) -> None:
        by_key: dict[Any, list[_Execution]] = defaultdict(list)
        for execution in self.executions.values():
            if execution.leads:
                by_key[execution.key].append(execution)
        for leads in by_key.values():
            leads.sort(key=lambda execution: execution.begun["at"])
            for first, second in itertools.pairwise(leads):
                self.successors[first.begun["execution"]] = second
            under_way: list[_Execution] = []
            for second in leads:
                begins = second.begun["at"]
                under_way = [first for first in under_way if first.over > begins]
                for first in under_way:
                    if not self._may_overlap(first, second):
                        self._accuse("two leaders at once", first.begun, second.begun)
                under_way.append(second)

    def _may_overlap(self, first: _Execution, second: _Execution) -> bool:
        """Whether one of the two may have been superseded, or a forget set two flights apart."""
        at = second.begun["at"]
        if self._is_overdue(first, at) or self._is_overdue(second, first.begun["at"]):
            return True
        earliest = min(first.call.begun["at"], second.call.begun["at"])
        return any(
            forget["at"] <= at and self._forgot(forget) >= earliest
            for forget in self.forgets[first.key]
        )

    def _is_overdue(self, execution: _Execution, at: int) -> bool:
        """Whether its lease may be over: it runs from some moment after the call.

        That may be before the function begins, where a process is stopped in between.
        """
        begun = execution.call.begun
        return begun["lease"] is not None and at >= begun["at"] + round(begun["lease"] * SECOND)

    def _forgot(self, forget: Event) -> int:
        return self.forgot.get(forget["forget"], self.dead.get(forget["life"], NEVER))

    def _is_fenced(self, execution: _Execution) -> bool:
        """Whether another leader was at work for certain before this one's function ended."""
        successor = self.successors.get(execution.begun["execution"])
        if successor is None or execution.ended is None or self.forgets[execution.key]:
            return False
        if self._is_overdue(successor, execution.begun["at"]):
            return False  # the successor was superseded by this one, and begins late
        return successor.begun["at"] < execution.ended["at"]

    def _runs_its_function_once_at_most(self, call: _Call) -> None:
        if len(call.executions) > 1:
            self._accuse("a call ran its function twice", call.begun)

    def _is_dead(self, call: _Call) -> None:
        if call.life not in self.killed and not call.gone:
            self._accuse("a call never returned", call.begun)

    def _is_in_time(self, call: _Call) -> None:
        begun, ended, timeout = call.begun, call.ended, call.begun["timeout"]
        assert ended is not None
        took = ended["at"] - begun["at"]
        if timeout is None:
            return
        if ended.get("error") == "FlightTimeout" and took < round((timeout - EARLY) * SECOND):
            self._accuse("a timeout came early", begun, ended)
        excused = sum(
            max(0, min(end, ended["at"]) - max(start, begun["at"]))
            for start, end in self.stops[call.life]
        )
        excused += sum(
            (own.ended["at"] if own.ended else ended["at"]) - own.begun["at"]
            for own in call.executions
        )
        late = took - excused - round(timeout * SECOND)
        self.late = max(self.late, late)
        if late > self.grace:
            self._accuse(f"{late / SECOND:.3f} s past its deadline", begun, ended)

    def _has_a_value_of_its_own_flight(self, call: _Call) -> None:
        begun, ended = call.begun, call.ended
        assert ended is not None
        source = self.executions.get(ended["execution"])
        if not ended["intact"]:
            self._accuse("a torn value", begun, ended)
        elif source is None or not source.is_finished(ended["at"]):
            self._accuse("a value of no finished execution", begun, ended)
        elif ended["key"] != begun["key"] or source.key != begun["key"]:
            self._accuse("a value of another key", begun, ended, source.begun)
        elif ended["role"] == "follower":
            self._may_follow(call, source)
        elif source not in call.executions:
            self._accuse("a leader or solo call with another's value", begun, ended)
        elif source.leads != (ended["role"] == "leader"):
            self._accuse("not the role its function ran in", begun, ended)

    def _may_follow(self, call: _Call, source: _Execution) -> None:
        begun, ended = call.begun, call.ended
        assert ended is not None
        if call.executions:
            self._accuse("a follower ran its function", begun, ended)
        if not source.leads:
            self._accuse("a value of a solo execution", begun, ended)
        if self._is_fenced(source):
            self._accuse("a fenced leader's value", begun, source.begun, ended)
        published = (
            source.call.ended["at"] if source.call.ended else self.dead.get(source.call.life)
        )
        if published is not None and published < begun["at"]:
            self._accuse("a value older than the call", begun, source.begun, ended)

    def _may_raise_that(self, call: _Call) -> None:
        assert call.ended is not None
        if call.ended["error"] not in self.may_raise:
            self._accuse("not an exception the call may raise", call.begun, call.ended)
