"""How each crash point is reached, with those around who have to live with it.

A scenario gets a stage and a strike, brings a victim to the point, and afterwards lets the others
finish what they do. It states there what only it knows: who leads, whose value arrives. What holds
everywhere is in ``test_crash``. Actors named ``first`` and ``second`` wait in that order.
"""

from __future__ import annotations

import signal
from typing import Any

from crash_worker import EXTRA, SMALL
from stage import Actor, Stage, until

KEY = "key"
# Seconds a caller waits beside a stopped victim: enough for the others to come meanwhile.
SHORT = 1.5


class Strike:
    """Kill or stop, at a point."""

    def __init__(self, point: str, action: str) -> None:
        self.point = point
        self.action = action
        self.victim: Actor | None = None

    @property
    def kills(self) -> bool:
        return self.action == "kill"

    @property
    def patience(self) -> dict[str, Any]:
        """Options of a survivor: the dead are replaced, the stopped are waited for no longer."""
        return {} if self.kills else {"timeout": SHORT, "on_timeout": "run"}

    def when(self, moment: str) -> list[str]:
        """For ``Actor.call(arm=…)``."""
        return [self.point, self.action, moment]

    def arm(self, victim: Actor) -> None:
        victim.ask("arm", point=self.point, action=self.action)

    def hits(self, victim: Actor) -> None:
        """Wait until the victim is struck. Nothing but the armed point does that to it."""
        self.victim = victim
        if self.kills:
            victim.dies()
        else:
            victim.stops()


def both_have(source: dict[str, Any], *outcomes: dict[str, Any]) -> None:
    """All of them followed that very execution."""
    for outcome in outcomes:
        assert outcome.get("role") == "follower", outcome
        assert outcome["execution"] == source["execution"]


def one_takes_over(stage: Stage, strike: Strike, *actors: Actor, after: int = 1) -> None:
    """One of the waiting leads, the others have its value; beside the stopped all have one.

    ``after`` is how many executions there were before.
    """
    outcomes = [actor.outcome() for actor in actors]
    assert all(outcome["what"] == "return" for outcome in outcomes), outcomes
    if strike.kills:
        roles = sorted(outcome["role"] for outcome in outcomes)
        assert roles == ["follower"] * (len(actors) - 1) + ["leader"], outcomes
        assert len({outcome["execution"] for outcome in outcomes}) == 1
        assert len(stage.executions(KEY)) == after + 1


# ---- thread records ------------------------------------------------------------------------


def claims_the_record_of_a_dead_leader(stage: Stage, strike: Strike) -> None:
    leader, first, victim = stage.enter("leader", "first", "victim")
    leader.leads(KEY, gate=str(stage.gate()))
    first.call(KEY, options=strike.patience)
    stage.followers(2)
    first.stop()
    leader.kill()
    victim.call("another key", arm=strike.when("before"))
    strike.hits(victim)
    first.go_on()
    one_takes_over(stage, strike, first)


# ---- begin ---------------------------------------------------------------------------------


def begins_a_flight(stage: Stage, strike: Strike) -> None:
    first, second, victim = stage.enter("first", "second", "victim")
    victim.call(KEY, arm=strike.when("before"))
    strike.hits(victim)
    gate = stage.gate()
    first.call(KEY, gate=str(gate), options=strike.patience)
    if strike.kills:
        first.expect("execute")
        second.call(KEY)
        stage.followers(2)
    else:
        second.call(KEY, options=strike.patience)
    gate.open()
    one_takes_over(stage, strike, first, second, after=0)


def begins_in_place_of_a_dead_leader(stage: Stage, strike: Strike) -> None:
    leader, first, victim = stage.enter("leader", "first", "victim")
    leader.leads(KEY, gate=str(stage.gate()))
    leader.kill()
    victim.call(KEY, arm=strike.when("before"))
    strike.hits(victim)
    first.call(KEY, options=strike.patience)
    one_takes_over(stage, strike, first)


# ---- join ----------------------------------------------------------------------------------


def joins_between_two_others(stage: Stage, strike: Strike) -> None:
    leader, first, second, victim = stage.enter("leader", "first", "second", "victim")
    gate = stage.gate()
    source = leader.leads(KEY, gate=str(gate))
    first.call(KEY, options=strike.patience)
    stage.followers(2)
    victim.call(KEY, arm=strike.when("before"))
    strike.hits(victim)
    second.call(KEY, options=strike.patience)
    if strike.kills:
        dead = strike.point == "JOIN_WAITING"  # its cell is swept when somebody needs it
        stage.followers(3 + dead)
    gate.open()
    assert leader.outcome()["role"] == "leader"
    if strike.kills:
        both_have(source, first.outcome(), second.outcome())
        assert len(stage.executions(KEY)) == 1
    else:
        one_takes_over(stage, strike, first, second)


# ---- finish --------------------------------------------------------------------------------


def publishes(stage: Stage, strike: Strike, size: int, moment: str, committed: bool) -> None:
    victim, first, second = stage.enter("victim", "first", "second")
    gate = stage.gate()
    source = victim.leads(KEY, gate=str(gate), size=size, arm=strike.when(moment))
    first.call(KEY, size=size, options=strike.patience)
    stage.followers(2)
    second.call(KEY, size=size, options=strike.patience)
    stage.followers(3)
    gate.open()
    strike.hits(victim)
    if committed:
        both_have(source, first.outcome(), second.outcome())
        assert len(stage.executions(KEY)) == 1
    else:
        one_takes_over(stage, strike, first, second)


def finishes_before_publishing(stage: Stage, strike: Strike) -> None:
    publishes(stage, strike, SMALL, "function", committed=False)


def publishes_inline_in_vain(stage: Stage, strike: Strike) -> None:
    publishes(stage, strike, SMALL, "encode", committed=False)


def publishes_inline(stage: Stage, strike: Strike) -> None:
    publishes(stage, strike, SMALL, "encode", committed=True)


def publishes_extra_in_vain(stage: Stage, strike: Strike) -> None:
    publishes(stage, strike, EXTRA, "encode", committed=False)


def publishes_extra(stage: Stage, strike: Strike) -> None:
    publishes(stage, strike, EXTRA, "encode", committed=True)


def passes_the_wake_up_on(stage: Stage, strike: Strike) -> None:
    """It has posted the first, and taken it on itself to post the second."""
    victim, *others = stage.enter("victim", "first", "second", "third")
    gate = stage.gate()
    source = victim.leads(KEY, gate=str(gate), arm=strike.when("before"))
    for other in others:
        other.call(KEY)
    stage.followers(1 + len(others))
    for other in others:
        other.stop()  # or they could post each other before the victim comes to it
    gate.open()
    strike.hits(victim)
    for other in others:
        other.go_on()
    both_have(source, *[other.outcome() for other in others])


def publishes_an_exception(stage: Stage, strike: Strike) -> None:
    victim, first = stage.enter("victim", "first")
    gate = stage.gate()
    victim.leads(KEY, gate=str(gate), then="raise", arm=strike.when("before"))
    first.call(KEY, options=strike.patience)
    stage.followers(2)
    gate.open()
    strike.hits(victim)
    outcome = first.outcome()
    assert outcome.get("error") == "LookupError", outcome


def finishes_unheard(stage: Stage, strike: Strike) -> None:
    victim, first = stage.enter("victim", "first")
    victim.call(KEY, arm=strike.when("before"))
    strike.hits(victim)
    first.call(KEY, options=strike.patience)
    one_takes_over(stage, strike, first)


# ---- abandon -------------------------------------------------------------------------------


def abandons(stage: Stage, strike: Strike) -> None:
    victim, first, second = stage.enter("victim", "first", "second")
    gate = stage.gate()
    victim.leads(KEY, gate=str(gate), then="abandon", arm=strike.when("before"))
    first.call(KEY, options=strike.patience)
    stage.followers(2)
    second.call(KEY, options=strike.patience)
    stage.followers(3)
    gate.open()
    strike.hits(victim)
    one_takes_over(stage, strike, first, second)


# ---- leave ---------------------------------------------------------------------------------


def leaves_with_the_value(stage: Stage, strike: Strike, size: int = SMALL) -> None:
    leader, victim, second = stage.enter("leader", "victim", "second")
    gate = stage.gate()
    source = leader.leads(KEY, size=size, gate=str(gate))
    victim.call(KEY, size=size, arm=strike.when("before"))
    stage.followers(2)
    second.call(KEY, size=size, options=strike.patience)
    stage.followers(3)
    second.stop()  # or it may be out before the victim
    gate.open()
    assert leader.outcome()["role"] == "leader"
    strike.hits(victim)
    second.go_on()
    both_have(source, second.outcome())


def leaves_with_an_extra_value(stage: Stage, strike: Strike) -> None:
    leaves_with_the_value(stage, strike, EXTRA)


def leaves_last(stage: Stage, strike: Strike, size: int = SMALL) -> None:
    leader, victim, first = stage.enter("leader", "victim", "first")
    gate = stage.gate()
    leader.leads(KEY, size=size, gate=str(gate))
    victim.call(KEY, size=size, arm=strike.when("before"))
    stage.followers(2)
    gate.open()
    assert leader.outcome()["role"] == "leader"
    strike.hits(victim)
    first.call(KEY, options=strike.patience)
    one_takes_over(stage, strike, first)


def leaves_last_an_extra_value(stage: Stage, strike: Strike) -> None:
    leaves_last(stage, strike, EXTRA)


def leaves_in_time(stage: Stage, strike: Strike) -> None:
    """The victim's time is up while the leader is still at work, and it is the first one."""
    leader, victim, second = stage.enter("leader", "victim", "second")
    gate = stage.gate()
    source = leader.leads(KEY, gate=str(gate))
    victim.call(KEY, arm=strike.when("before"), options={"timeout": SHORT})
    stage.followers(2)
    second.call(KEY, options=strike.patience)
    strike.hits(victim)
    gate.open()
    assert leader.outcome()["role"] == "leader"
    if strike.kills:
        both_have(source, second.outcome())
        assert len(stage.executions(KEY)) == 1
    else:
        one_takes_over(stage, strike, second)


def leaves_an_orphan(stage: Stage, strike: Strike) -> None:
    """The victim was chosen to lead, but a signal handler raises before it knows."""
    leader, victim, second = stage.enter("leader", "victim", "second")
    gate = stage.gate()
    leader.leads(KEY, gate=str(gate), then="abandon")
    victim.call(KEY, arm=strike.when("before"))
    stage.followers(2)
    second.call(KEY, options=strike.patience)
    stage.followers(3)
    victim.stop()
    gate.open()
    assert leader.outcome()["error"] == "SystemExit"
    victim.get_signal(signal.SIGINT)
    victim.go_on()
    strike.hits(victim)
    one_takes_over(stage, strike, second)


# ---- takeover ------------------------------------------------------------------------------


def takes_over_from_the_dead(stage: Stage, strike: Strike) -> None:
    leader, victim, second, third = stage.enter("leader", "victim", "second", "third")
    leader.leads(KEY, gate=str(stage.gate()))
    victim.call(KEY, arm=strike.when("before"))
    stage.followers(2)
    second.call(KEY, options=strike.patience)
    stage.followers(3)
    third.call(KEY, options=strike.patience)
    stage.followers(4)
    leader.kill()
    strike.hits(victim)
    one_takes_over(stage, strike, second, third)


def takes_over_a_sealed_flight(stage: Stage, strike: Strike) -> None:
    """Its leader ends between its function's return and its publishing."""
    leader, victim, second, third = stage.enter("leader", "victim", "second", "third")
    gate = stage.gate()
    leader.leads(KEY, gate=str(gate), size=EXTRA, arm=["EXTRA_CREATED", "stop", "encode"])
    victim.call(KEY, arm=strike.when("before"))
    stage.followers(2)
    second.call(KEY, options=strike.patience)
    stage.followers(3)
    gate.open()
    leader.stops()
    second.stop()  # or it may be faster than the newcomer
    leader.kill()
    strike.hits(victim)
    # A newcomer and a waiter: one of them leads, and the other one follows.
    third.call(KEY, options=strike.patience)
    second.go_on()
    one_takes_over(stage, strike, second, third)


def takes_over_an_orphan(stage: Stage, strike: Strike) -> None:
    leader, victim, second = stage.enter("leader", "victim", "second")
    gate = stage.gate()
    leader.leads(KEY, gate=str(gate), then="abandon")
    victim.call(KEY, arm=strike.when("before"))
    stage.followers(2)
    second.call(KEY, options=strike.patience)
    stage.followers(3)
    gate.open()
    assert leader.outcome()["error"] == "SystemExit"
    strike.hits(victim)
    one_takes_over(stage, strike, second)


def enters_an_orphan(stage: Stage, strike: Strike) -> None:
    """A newcomer is faster than the waiter that was chosen."""
    leader, victim, second = stage.enter("leader", "victim", "second")
    gate = stage.gate()
    leader.leads(KEY, gate=str(gate), then="abandon")
    second.call(KEY, options=strike.patience)
    stage.followers(2)
    second.stop()
    gate.open()
    assert leader.outcome()["error"] == "SystemExit"
    victim.call(KEY, arm=strike.when("before"))
    strike.hits(victim)
    second.go_on()
    one_takes_over(stage, strike, second)


def moves_to_a_newer_flight(stage: Stage, strike: Strike) -> None:
    """The former leader ends before it has published; a newcomer's flight has begun meanwhile."""
    former, victim, second, newcomer, third = stage.enter(
        "former", "victim", "second", "newcomer", "third"
    )
    gates = [stage.gate(), stage.gate()]
    former.leads(KEY, gate=str(gates[0]), size=EXTRA, arm=["EXTRA_CREATED", "stop", "encode"])
    victim.call(KEY, arm=strike.when("before"))
    stage.followers(2)
    second.call(KEY, options=strike.patience)
    stage.followers(3)
    gates[0].open()
    former.stops()
    source = newcomer.leads(KEY, gate=str(gates[1]))
    third.call(KEY, options=strike.patience)
    stage.followers(4)
    former.kill()
    strike.hits(victim)
    if strike.kills:
        until(lambda: 0 in [row[1] for row in stage.peek()], "the second to move as well")
    gates[1].open()
    assert newcomer.outcome()["role"] == "leader"
    if strike.kills:
        both_have(source, second.outcome(), third.outcome())
        assert len(stage.executions(KEY)) == 2
    else:
        one_takes_over(stage, strike, second, third)


def gives_up(stage: Stage, strike: Strike) -> None:
    stage.options["max_takeovers"] = 0
    leader, victim, second = stage.enter("leader", "victim", "second")
    leader.leads(KEY, gate=str(stage.gate()))
    victim.call(KEY, arm=strike.when("before"))
    stage.followers(2)
    second.call(KEY, options=strike.patience)
    stage.followers(3)
    leader.kill()
    strike.hits(victim)
    assert second.outcome().get("error") == "LeaderDied"
    assert len(stage.executions(KEY)) == 1


# ---- forget, sweep, repair -----------------------------------------------------------------


def forgets(stage: Stage, strike: Strike) -> None:
    leader, first, second, victim = stage.enter("leader", "first", "second", "victim")
    gate = stage.gate()
    source = leader.leads(KEY, gate=str(gate))
    first.call(KEY, options=strike.patience)
    stage.followers(2)
    strike.arm(victim)
    victim.send("forget", key=KEY)
    strike.hits(victim)
    second.call(KEY, options=strike.patience)
    fresh = second.outcome()
    gate.open()
    assert leader.outcome()["role"] == "leader"
    if strike.kills:
        assert fresh["role"] == "leader"
        both_have(source, first.outcome())
    else:
        assert fresh["role"] == "solo"
        one_takes_over(stage, strike, first)


def sweeps_a_dead_waiter(stage: Stage, strike: Strike) -> None:
    leader, first, second, victim = stage.enter("leader", "first", "second", "victim")
    gate = stage.gate()
    source = leader.leads(KEY, gate=str(gate))
    first.call(KEY)
    stage.followers(2)
    second.call(KEY, options=strike.patience)
    stage.followers(3)
    first.kill()
    strike.arm(victim)
    victim.send("reap")
    strike.hits(victim)
    gate.open()
    assert leader.outcome()["role"] == "leader"
    if strike.kills:
        both_have(source, second.outcome())
        assert len(stage.executions(KEY)) == 1
    else:
        one_takes_over(stage, strike, second)


def sweeps_a_dead_leader(stage: Stage, strike: Strike) -> None:
    leader, first, victim = stage.enter("leader", "first", "victim")
    leader.leads(KEY, gate=str(stage.gate()))
    leader.kill()
    strike.arm(victim)
    victim.send("reap")
    strike.hits(victim)
    first.call(KEY, options=strike.patience)
    one_takes_over(stage, strike, first)


def repairs(stage: Stage, strike: Strike, first_point: str, committed: bool) -> None:
    """The victim repairs what a leader left, while two that wait know nothing of it yet."""
    leader, first, second, victim = stage.enter("leader", "first", "second", "victim")
    gate = stage.gate()
    source = leader.leads(KEY, gate=str(gate), arm=[first_point, "kill", "encode"])
    for count, actor in enumerate((first, second), 2):
        actor.call(KEY, options=strike.patience)
        stage.followers(count)
        actor.stop()
    gate.open()
    leader.dies()
    victim.call("another key", arm=strike.when("before"))
    strike.hits(victim)
    first.go_on()
    second.go_on()
    if committed:
        both_have(source, first.outcome(), second.outcome())
        assert len(stage.executions(KEY)) == 1
    else:
        one_takes_over(stage, strike, first, second)


def repairs_a_commit(stage: Stage, strike: Strike) -> None:
    repairs(stage, strike, "FINISH_DONE", committed=True)


def repairs_half_a_payload(stage: Stage, strike: Strike) -> None:
    repairs(stage, strike, "FINISH_HALF_COPIED", committed=False)


def repairs_a_join(stage: Stage, strike: Strike) -> None:
    """What is found is an owned cell in no list, and a leader that lives."""
    leader, first, dead, victim = stage.enter("leader", "first", "dead", "victim")
    gate = stage.gate()
    source = leader.leads(KEY, gate=str(gate))
    first.call(KEY, options=strike.patience)
    stage.followers(2)
    dead.call(KEY, arm=["JOIN_OWNED", "kill", "before"])
    dead.dies()
    victim.call("another key", arm=strike.when("before"))
    strike.hits(victim)
    gate.open()
    assert leader.outcome()["role"] == "leader"
    if strike.kills:
        both_have(source, first.outcome())
    else:
        one_takes_over(stage, strike, first)


_BEGIN = (begins_a_flight, begins_in_place_of_a_dead_leader)
_COMMITTED = (publishes_inline, publishes_extra)
_TAKEOVER = (takes_over_from_the_dead, takes_over_an_orphan)
_REPAIR = (repairs_a_commit, repairs_half_a_payload, repairs_a_join)

SCENARIOS = {
    "CLAIM_LOCKED": (claims_the_record_of_a_dead_leader,),
    "CLAIM_GENERATION": (claims_the_record_of_a_dead_leader,),
    "BEGIN_LOCKED": _BEGIN,
    "BEGIN_SLOT_FILLED": (begins_a_flight,),
    "BEGIN_RUNNING": (begins_a_flight,),
    "BEGIN_ATTACHED": _BEGIN,
    "BEGIN_LEADING": _BEGIN,
    "JOIN_CELL_FILLED": (joins_between_two_others,),
    "JOIN_OWNED": (joins_between_two_others,),
    "JOIN_LINKED": (joins_between_two_others,),
    "JOIN_WAITING": (joins_between_two_others,),
    "FINISH_LOCKED": (finishes_before_publishing, publishes_inline_in_vain),
    "FINISH_HALF_COPIED": (publishes_inline_in_vain,),
    "FINISH_COPIED": (publishes_inline_in_vain, publishes_extra_in_vain),
    "FINISH_DONE": (*_COMMITTED, publishes_an_exception),
    "FINISH_FREE": (finishes_unheard,),
    "FINISH_DETACHED": _COMMITTED,
    "FINISH_UNLOCKED": (finishes_before_publishing, *_COMMITTED),
    "POSTED_ONE": _COMMITTED,
    "PASS_UNLOCKED": (passes_the_wake_up_on,),
    "SEAL_MARKED": (finishes_before_publishing,),
    "SEAL_DETACHED": (finishes_before_publishing,),
    "UNSEAL_ATTACHED": (takes_over_a_sealed_flight,),
    "ABANDON_LOCKED": (abandons,),
    "ABANDON_ORPHANED": (abandons,),
    "LEAVE_LOCKED": (leaves_with_the_value, leaves_in_time, leaves_an_orphan),
    "LEAVE_UNLINKED": (leaves_with_an_extra_value, leaves_in_time, leaves_an_orphan),
    "LEAVE_UNOWNED": (leaves_with_the_value, leaves_in_time, leaves_an_orphan),
    "LEAVE_FREED": (leaves_last, leaves_last_an_extra_value),
    "TAKEOVER_LEFT": _TAKEOVER,
    "TAKEOVER_LEADER": (*_TAKEOVER, enters_an_orphan),
    "TAKEOVER_EPOCH": (*_TAKEOVER, enters_an_orphan),
    "TAKEOVER_RUNNING": (*_TAKEOVER, enters_an_orphan),
    "MOVE_UNLINKED": (moves_to_a_newer_flight,),
    "MOVE_NAMED": (moves_to_a_newer_flight,),
    "MOVE_LINKED": (moves_to_a_newer_flight,),
    "DIED_DONE": (gives_up,),
    "FORGET_DETACHED": (forgets,),
    "SWEEP_UNLINKED": (sweeps_a_dead_waiter,),
    "SWEEP_FREED": (sweeps_a_dead_leader,),
    "REPAIR_LISTS": _REPAIR,
    "REPAIR_REBUILT": _REPAIR,
    "REPAIR_POSTED": _REPAIR,
    "EXTRA_CREATED": (publishes_extra_in_vain,),
}
