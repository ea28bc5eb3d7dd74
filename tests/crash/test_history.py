"""The judge of histories itself: it has to be able to convict."""

from __future__ import annotations

import pytest
from history import SECOND, judge


def history(*lines):
    """Make events of ``(at, life, what, {fields})``; times in seconds."""
    return [
        {"at": round(at * SECOND), "life": life, "what": what, **(rest[0] if rest else {})}
        for at, life, what, *rest in lines
    ]


def call(at, life, name, key="k", timeout=None, lease=None):
    return at, life, "call", {"call": name, "key": key, "timeout": timeout, "lease": lease}


def execute(at, life, name, key="k", leads=True):
    return at, life, "execute", {"call": name, "key": key, "execution": f"x{name}", "leads": leads}


def executed(at, life, name, failed=False):
    return at, life, "executed", {"call": name, "execution": f"x{name}", "failed": failed}


def returned(at, life, name, role="leader", source=None, key="k", intact=True):
    execution = f"x{source or name}"
    value = {"call": name, "role": role, "key": key, "execution": execution, "intact": intact}
    return at, life, "return", value


def raised(at, life, name, error="FlightTimeout"):
    return at, life, "raise", {"call": name, "error": error}


LED = [call(1, "A", "a"), execute(1.1, "A", "a"), executed(2, "A", "a"), returned(2.1, "A", "a")]
FOLLOWED = [*LED, call(1.5, "B", "b"), returned(2.2, "B", "b", "follower", "a")]
TAKEN_OVER = [
    call(1, "A", "a"),
    execute(1.1, "A", "a"),
    (1.5, "A", "kill"),
    (1.7, "A", "died", {"status": -9}),
    call(1.2, "B", "b"),
    execute(1.6, "B", "b"),
    executed(2, "B", "b"),
    returned(2, "B", "b"),
]

GOOD = {
    "one leader": LED,
    "a leader and a follower": FOLLOWED,
    "a takeover after a kill": TAKEN_OVER,
    "a death at one's own hand": [line for line in TAKEN_OVER if line[2] != "kill"],
    "a follower of a leader that died after publishing": [
        *LED[:3],
        (2.05, "A", "kill"),
        (2.1, "A", "died", {"status": -9}),
        call(1.5, "B", "b"),
        returned(2.4, "B", "b", "follower", "a"),
    ],
    "a solo call beside a leader": [
        *LED,
        call(1.2, "B", "b"),
        execute(1.3, "B", "b", leads=False),
        executed(1.4, "B", "b"),
        returned(1.4, "B", "b", "solo"),
    ],
    "a second leader after the lease, and the first one's own value": [
        call(1, "A", "a", lease=0.2),
        execute(1.1, "A", "a"),
        executed(2, "A", "a"),
        returned(2.1, "A", "a"),
        call(1.1, "B", "b", lease=0.2),
        execute(1.3, "B", "b"),
        executed(1.4, "B", "b"),
        returned(1.4, "B", "b"),
    ],
    "a leader that was stopped before its function began, and superseded": [
        call(0.5, "B", "b", lease=0.2),
        *LED,
        call(1.2, "C", "c"),
        execute(1.5, "B", "b"),
        executed(1.6, "B", "b"),
        returned(1.6, "B", "b"),
        returned(2.2, "C", "c", "follower", "a"),
    ],
    "a second leader after a forget": [
        *LED,
        (1.2, "B", "forget", {"key": "k", "forget": "f"}),
        (1.3, "B", "forgot", {"forget": "f"}),
        call(1.3, "B", "b"),
        execute(1.4, "B", "b"),
        executed(1.5, "B", "b"),
        returned(1.5, "B", "b"),
    ],
    "a second leader after a forget that was cut short": [
        (1.2, "C", "forget", {"key": "k", "forget": "f"}),
        (1.25, "C", "kill"),
        (1.3, "C", "died", {"status": -9}),
        *LED,
        call(1.3, "B", "b"),
        execute(1.4, "B", "b"),
        executed(1.5, "B", "b"),
        returned(1.5, "B", "b"),
    ],
    "a takeover in a flight that was forgotten": [
        call(0.9, "B", "b"),
        call(1.1, "A", "a"),
        execute(1.2, "A", "a"),
        executed(2, "A", "a"),
        returned(2.1, "A", "a"),
        (1.0, "C", "forget", {"key": "k", "forget": "f"}),
        (1.05, "C", "forgot", {"forget": "f"}),
        execute(1.5, "B", "b"),
        executed(1.8, "B", "b"),
        returned(1.8, "B", "b"),
    ],
    "a death at its own hand before it was killed": [
        (0.5, "A", "armed"),
        *[(1.9, *line[1:]) if line[2] == "kill" else line for line in TAKEN_OVER],
    ],
    "a call that was stopped itself": [
        *LED[:3],
        returned(2.1, "A", "a"),
        call(1.5, "B", "b", timeout=0.1),
        (1.55, "B", "stop"),
        (5, "B", "continue"),
        raised(5.1, "B", "b"),
    ],
    "a leader whose thread went": [
        *LED[:2],
        (1.4, "A", "gone", {"call": "a", "execution": "xa"}),
        call(1.2, "B", "b"),
        execute(1.5, "B", "b"),
        executed(1.6, "B", "b"),
        returned(1.6, "B", "b"),
    ],
    "an abort that was asked for": [
        (1, "A", "expect", {"signal": 6}),
        (2, "A", "died", {"status": -6}),
    ],
}

SECOND_LEADER = [
    call(1.2, "B", "b"),
    execute(1.5, "B", "b"),
    executed(1.8, "B", "b"),
    returned(1.8, "B", "b"),
]

BAD = {
    "two leaders at once": [*LED, *SECOND_LEADER],
    "two leaders at once, though a third one died": [
        *LED,
        *SECOND_LEADER,
        (1.1, "C", "kill"),
        (1.2, "C", "died", {"status": -9}),
    ],
    "two leaders at once, before the lease": [
        call(1, "A", "a", lease=0.7),
        *LED[1:],
        *SECOND_LEADER,
    ],
    "two leaders at once, long after a forget": [
        (0.7, "B", "forget", {"key": "k", "forget": "f"}),
        (0.8, "B", "forgot", {"forget": "f"}),
        *LED,
        *SECOND_LEADER,
    ],
    "two leaders at once, the first of which is killed later": [
        *LED[:2],
        (1.9, "A", "kill"),
        (2, "A", "died", {"status": -9}),
        *SECOND_LEADER,
    ],
    "a torn value": [*LED[:3], returned(2.1, "A", "a", intact=False)],
    "a value of no finished execution": [
        *LED,
        call(1.5, "B", "b"),
        returned(2, "B", "b", "follower", "z"),
    ],
    "a value of no finished execution, but of a running one": [
        *LED,
        call(1.3, "B", "b"),
        returned(1.5, "B", "b", "follower", "a"),
    ],
    "a value of no finished execution, but of a failed one": [
        *LED[:2],
        executed(2, "A", "a", failed=True),
        returned(2.1, "A", "a"),
    ],
    "a value of another key": [
        *LED,
        call(1.5, "B", "b", key="other"),
        returned(2.2, "B", "b", "follower", "a"),
    ],
    "a value older than the call": [
        *LED,
        call(3, "B", "b"),
        returned(3, "B", "b", "follower", "a"),
    ],
    "a value older than the call, of a dead leader": [
        *LED[:3],
        (2.1, "A", "died", {"status": -9}),
        call(3, "B", "b"),
        returned(3, "B", "b", "follower", "a"),
    ],
    "a fenced leader's value": [
        call(1, "A", "a", lease=0.2),
        *LED[1:],
        *SECOND_LEADER,
        call(1.6, "C", "c"),
        returned(2.2, "C", "c", "follower", "a"),
    ],
    "a value of a solo execution": [
        call(1, "A", "a"),
        execute(1.1, "A", "a", leads=False),
        executed(2, "A", "a"),
        returned(2.1, "A", "a", "solo"),
        call(1.5, "B", "b"),
        returned(2.2, "B", "b", "follower", "a"),
    ],
    "a follower ran its function": [
        *LED,
        call(2, "B", "b"),
        execute(2.1, "B", "b", leads=False),
        executed(2.1, "B", "b"),
        returned(2.2, "B", "b", "follower", "a"),
    ],
    "a leader or solo call with another's value": [
        *LED,
        call(1.5, "B", "b"),
        returned(2.2, "B", "b", "solo", "a"),
    ],
    "not the role its function ran in": [*LED[:3], returned(2.1, "A", "a", "solo")],
    "a call ran its function twice": [
        call(1, "A", "a"),
        execute(1.1, "A", "a"),
        executed(1.2, "A", "a"),
        (1.3, "A", "execute", {"call": "a", "key": "k", "execution": "x2", "leads": True}),
        (1.4, "A", "executed", {"call": "a", "execution": "x2", "failed": False}),
        returned(2.1, "A", "a"),
    ],
    "a call never returned": LED[:3],
    "1.500 s past its deadline": [
        *LED,
        call(1.5, "B", "b", timeout=0.5),
        raised(3.5, "B", "b"),
    ],
    "a timeout came early": [call(1, "A", "a", timeout=0.5), raised(1.3, "A", "a")],
    "not an exception the call may raise": [call(1, "A", "a"), raised(1.3, "A", "a", "OSError")],
    "process A ended with status -11": [(1, "A", "died", {"status": -11})],
    "process A ended with status 1": [(1, "A", "died", {"status": 1})],
}


@pytest.mark.parametrize("lines", GOOD.values(), ids=GOOD.keys())
def test_a_good_history_is_acquitted(lines):
    assert judge(history(*lines)).violations == []


@pytest.mark.parametrize(("crime", "lines"), BAD.items(), ids=BAD.keys())
def test_a_bad_history_is_convicted_of_its_crime_and_of_no_other(crime, lines):
    (violation,) = judge(history(*lines)).violations
    assert violation.startswith(crime.partition(",")[0])


def test_what_a_call_may_raise_is_for_the_test_to_say():
    lines = history(call(1, "A", "a"), raised(1.3, "A", "a", "LeaderDied"))
    assert judge(lines).violations
    assert not judge(lines, may_raise=["LeaderDied"]).violations


def test_what_was_judged_is_counted():
    verdict = judge(history(*FOLLOWED, *TAKEN_OVER[2:4]))
    assert verdict.counts["call"] == 2
    assert verdict.counts["leader"] == verdict.counts["follower"] == 1
    assert verdict.counts["kill"] == 1
    assert "call 2" in str(verdict)
