/* Flights whose leader abandons, dies, or outlives its lease, and flights forgotten. */
#include "rig.h"

/* ---- abandon and takeover --------------------------------------------------------- */

static void exactly_one_waiter_takes_over_what_was_abandoned(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("late");
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer first = ask(&one, ACT_BEGIN, "k"), second = ask(&two, ACT_BEGIN, "k");
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    CHECK_INT(poll_now(&rig, &one, &first.flight), UF_LEADERLESS);
    CHECK_INT(poll_now(&rig, &two, &second.flight), UF_LEADERLESS);
    CHECK_INT(take_over(&two), UF_LEADER); /* not only the first may */
    CHECK_INT(take_over(&one), UF_PENDING);
    CHECK_INT(poll_now(&rig, &one, &first.flight), UF_PENDING);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_FENCED);
    CHECK_INT(finish(&two, "mine"), UF_OK);
    CHECK(strcmp(fetch(&one), "mine") == 0);
    CHECK_INT(totals_of(&rig).takeovers, 1);
    actor_exit(&one);
    actor_exit(&two);
    rig_end(&rig);
    (void)unused;
}

static void the_first_waiter_is_posted_when_the_leader_abandons(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct actor one = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    tell_wait(&one, 30 * SECOND);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    CHECK_INT(hear(&one).status, UF_LEADERLESS);
    CHECK_INT(take_over(&one), UF_LEADER);
    CHECK_INT(finish(&one, "v"), UF_OK);
    actor_exit(&one);
    rig_end(&rig);
    (void)unused;
}

static void a_newcomer_leads_an_orphan_and_the_waiters_stay(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    struct uf_flight flight;
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    struct answer newcomer = ask(&two, ACT_BEGIN, "k");
    CHECK_INT(newcomer.status, UF_LEADER);
    CHECK_INT(newcomer.flight.generation, flight.generation);
    CHECK_INT(newcomer.flight.takeovers, 1);
    CHECK_INT(take_over(&one), UF_PENDING);
    CHECK_INT(finish(&two, "v"), UF_OK);
    CHECK(strcmp(fetch(&one), "v") == 0);
    actor_exit(&one);
    actor_exit(&two);
    rig_end(&rig);
    (void)unused;
}

static void the_death_of_a_leader_is_seen_by_a_sleeping_waiter(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor leader = actor_process(&rig.table), one = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    tell_wait(&one, 30 * SECOND);
    actor_kill(&leader);
    CHECK_INT(hear(&one).status, UF_LEADERLESS);
    struct answer taken = ask(&one, ACT_TAKEOVER, "");
    CHECK_INT(taken.status, UF_LEADER);
    CHECK_INT(taken.flight.takeovers, 1);
    CHECK_INT(finish(&one, "v"), UF_OK);
    actor_exit(&one);
    rig_end(&rig);
    (void)unused;
}

static void the_death_of_leader_and_first_waiter_together_is_seen_by_the_second(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor leader = actor_process(&rig.table), first = actor_process(&rig.table);
    struct actor second = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    CHECK_INT(begin(&first, "k"), UF_FOLLOWER);
    CHECK_INT(begin(&second, "k"), UF_FOLLOWER);
    tell_wait(&second, 30 * SECOND);
    actor_kill(&first);
    actor_kill(&leader);
    CHECK_INT(hear(&second).status, UF_LEADERLESS);
    CHECK_INT(take_over(&second), UF_LEADER);
    CHECK_INT(finish(&second, ""), UF_OK);
    actor_exit(&second);
    rig_end(&rig);
    (void)unused;
}

static void the_end_of_a_leading_thread_is_a_death_too(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor leader = actor_thread(&rig.table), one = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    ask(&leader, ACT_EXIT, ""); /* without releasing its record */
    CHECK(pthread_join(leader.thread, NULL) == 0);
    CHECK_INT(await(&one), UF_LEADERLESS);
    CHECK_INT(take_over(&one), UF_LEADER);
    CHECK_INT(finish(&one, "v"), UF_OK);
    actor_exit(&one);
    rig_end(&rig);
    (void)unused;
}

static void a_dead_leader_without_waiters_is_replaced_by_a_fresh_flight(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct actor leader = actor_process(&rig.table);
    struct answer begun = ask(&leader, ACT_BEGIN, "k");
    actor_kill(&leader);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(flight.slot, begun.flight.slot);
    CHECK(flight.generation != begun.flight.generation);
    CHECK_INT(flight.takeovers, 0);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    rig_end(&rig);
    (void)unused;
}

static void waiters_give_up_when_too_many_leaders_died(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct actor patient = actor_process(&rig.table), leaders[3];
    for (int i = 0; i < 3; i++)
        leaders[i] = actor_process(&rig.table);
    CHECK_INT(begin(&leaders[0], "k"), UF_LEADER);
    struct answer joined = ask(&patient, ACT_BEGIN, "k");
    struct order order = order_of(ACT_TAKEOVER, "");
    order.max_takeovers = 2;
    for (int i = 1; i < 3; i++) {
        CHECK_INT(begin(&leaders[i], "k"), UF_FOLLOWER);
        actor_kill(&leaders[i - 1]);
        tell(&leaders[i], &order);
        CHECK_INT(hear(&leaders[i]).status, UF_LEADER);
    }
    actor_kill(&leaders[2]);
    CHECK_INT(poll_now(&rig, &patient, &joined.flight), UF_LEADERLESS);
    tell(&patient, &order);
    CHECK_INT(hear(&patient).status, UF_DONE);
    CHECK_INT(await(&patient), UF_DONE);
    struct answer seen = ask(&patient, ACT_VIEW, "");
    CHECK_INT(seen.kind, UF_PAYLOAD_DIED);
    CHECK_INT(seen.deaths, 2);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER); /* a new call starts afresh */
    CHECK(flight.slot != joined.flight.slot);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    CHECK_INT(leave(&patient).status, UF_OK);
    actor_exit(&patient);
    rig_end(&rig);
    (void)unused;
}

static void abandoning_does_not_count_as_a_death(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    struct actor *leader = &one, *waiter = &two;
    struct order order = order_of(ACT_TAKEOVER, "");
    order.max_takeovers = 0;
    CHECK_INT(begin(leader, "k"), UF_LEADER);
    for (int i = 0; i < 5; i++) {
        CHECK_INT(begin(waiter, "k"), UF_FOLLOWER);
        CHECK_INT(ask(leader, ACT_ABANDON, "").status, UF_OK);
        tell(waiter, &order);
        CHECK_INT(hear(waiter).status, UF_LEADER);
        struct actor *other = leader;
        leader = waiter, waiter = other;
    }
    CHECK_INT(finish(leader, ""), UF_OK);
    actor_exit(&one);
    actor_exit(&two);
    rig_end(&rig);
    (void)unused;
}

static void a_newcomer_ends_a_flight_whose_leaders_died_too_often(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct actor leader = actor_process(&rig.table), one = actor_process(&rig.table);
    rig.me.max_takeovers = 0;
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    tell_wait(&one, 30 * SECOND);
    actor_kill(&leader);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(flight.takeovers, 0);
    struct answer woken = hear(&one);
    CHECK(woken.status == UF_DONE || woken.status == UF_LEADERLESS);
    CHECK_INT(take_over(&one), UF_DONE);
    CHECK_INT(ask(&one, ACT_VIEW, "").kind, UF_PAYLOAD_DIED);
    CHECK_INT(leave(&one).status, UF_OK);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    actor_exit(&one);
    rig_end(&rig);
    (void)unused;
}

/* ---- lease ------------------------------------------------------------------------ */

static void a_leader_that_outlives_its_lease_is_superseded_and_fenced(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("too late");
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    rig.me.lease_ns = 3600 * SECOND;
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    CHECK_INT(begin(&two, "k"), UF_FOLLOWER);
    /* Only now: who begins after its end does not follow. */
    UF_STORE(uf_slot(&rig.table, flight.slot)->lease_end_ns, uf_now_ns() + 20 * MILLISECOND);
    CHECK_INT(await(&one), UF_LEADERLESS);
    CHECK_INT(take_over(&one), UF_LEADER);
    CHECK_INT(take_over(&two), UF_PENDING); /* the new leader has no lease */
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_FENCED);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_FENCED);
    CHECK_INT(finish(&one, "in time"), UF_OK);
    CHECK(strcmp(fetch(&two), "in time") == 0);
    CHECK_INT(totals_of(&rig).fenced, 1);
    actor_exit(&one);
    actor_exit(&two);
    rig_end(&rig);
    (void)unused;
}

static void a_leader_past_its_lease_finishes_in_peace_when_nobody_waits(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight, none;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    rig.me.lease_ns = 0;
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    reap_all(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &none), UF_SELF_JOIN);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    rig_end(&rig);
    (void)unused;
}

static void a_newcomer_supersedes_a_leader_past_its_lease(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor newcomer = actor_process(&rig.table);
    rig.me.lease_ns = 0;
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer begun = ask(&newcomer, ACT_BEGIN, "k");
    CHECK_INT(begun.status, UF_LEADER);
    CHECK_INT(begun.flight.generation, flight.generation);
    CHECK(begun.flight.epoch != flight.epoch);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_FENCED);
    CHECK_INT(finish(&newcomer, "v"), UF_OK);
    actor_exit(&newcomer);
    rig_end(&rig);
    (void)unused;
}

/* ---- forget ----------------------------------------------------------------------- */

static void after_forget_a_fresh_flight_runs_beside_the_old_one(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("old");
    struct uf_key key = key_of("k");
    bool found;
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    CHECK_INT(uf_forget(&rig.table, &key, UF_WAIT, &found), UF_OK);
    CHECK(!found);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    CHECK_INT(uf_forget(&rig.table, &key, UF_WAIT, &found), UF_OK);
    CHECK(found);
    CHECK_INT(uf_forget(&rig.table, &key, UF_WAIT, &found), UF_OK);
    CHECK(!found);
    CHECK_INT(begin(&two, "k"), UF_LEADER);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK(strcmp(fetch(&one), "old") == 0);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    CHECK_INT(finish(&two, "young"), UF_OK);
    CHECK(strcmp(fetch(&one), "young") == 0);
    actor_exit(&one);
    actor_exit(&two);
    rig_end(&rig);
    (void)unused;
}

static void a_forgotten_flight_can_be_taken_over_by_those_who_joined(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor leader = actor_process(&rig.table), one = actor_process(&rig.table);
    struct actor two = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    CHECK(ask(&two, ACT_FORGET, "k").found);
    actor_kill(&leader);
    CHECK_INT(begin(&two, "k"), UF_LEADER);
    CHECK_INT(await(&one), UF_LEADERLESS);
    CHECK_INT(take_over(&one), UF_LEADER);
    CHECK_INT(finish(&one, ""), UF_OK);
    CHECK_INT(finish(&two, ""), UF_OK);
    actor_exit(&one);
    actor_exit(&two);
    rig_end(&rig);
    (void)unused;
}

/* ---- sealed flights ---------------------------------------------------------------- */

/* A leader whose function has returned, and which dies before it has encoded the value. */
static struct actor leader_that_sealed(struct rig *rig, struct actor *waiters, int count)
{
    struct actor leader = actor_process(&rig->table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    for (int i = 0; i < count; i++)
        CHECK_INT(begin(&waiters[i], "k"), UF_FOLLOWER);
    CHECK_INT(finish(&leader, ""), UF_NEEDS_PAYLOAD);
    return leader;
}

static void waiters_of_a_sealed_flight_move_to_a_newer_one_when_its_leader_dies(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor waiters[2] = {actor_process(&rig.table), actor_process(&rig.table)};
    struct actor newcomer = actor_process(&rig.table), third = actor_process(&rig.table);
    struct actor leader = leader_that_sealed(&rig, waiters, 2);
    struct answer newer = ask(&newcomer, ACT_BEGIN, "k");
    CHECK_INT(newer.status, UF_LEADER);
    CHECK_INT(begin(&third, "k"), UF_FOLLOWER);
    tell_wait(&waiters[0], 10 * SECOND);
    tell_wait(&waiters[1], 10 * SECOND);
    actor_kill(&leader);
    CHECK_INT(hear(&waiters[0]).status, UF_LEADERLESS);
    struct answer moved = ask(&waiters[0], ACT_TAKEOVER, "");
    CHECK_INT(moved.status, UF_PENDING);
    CHECK_INT(moved.flight.slot, newer.flight.slot);
    CHECK_INT(moved.flight.generation, newer.flight.generation);
    CHECK_INT(hear(&waiters[1]).status, UF_LEADERLESS); /* posted, or it would sleep for long */
    CHECK_INT(take_over(&waiters[1]), UF_PENDING);
    check_all(&rig.table);
    CHECK_INT(finish(&newcomer, "new"), UF_OK);
    CHECK(strcmp(fetch(&third), "new") == 0);
    CHECK(strcmp(fetch(&waiters[1]), "new") == 0);
    CHECK(strcmp(fetch(&waiters[0]), "new") == 0);
    CHECK_INT(totals_of(&rig).takeovers, 0);
    actor_exit(&waiters[0]);
    actor_exit(&waiters[1]);
    actor_exit(&newcomer);
    actor_exit(&third);
    rig_reap_and_end(&rig);
    (void)unused;
}

static void a_waiter_can_move_to_a_flight_whose_leader_is_gone_too(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor waiter = actor_process(&rig.table), newcomer = actor_process(&rig.table);
    struct actor third = actor_process(&rig.table);
    struct actor leader = leader_that_sealed(&rig, &waiter, 1);
    CHECK_INT(begin(&newcomer, "k"), UF_LEADER);
    CHECK_INT(begin(&third, "k"), UF_FOLLOWER);
    actor_kill(&leader);
    actor_kill(&newcomer);
    CHECK_INT(take_over(&waiter), UF_PENDING);
    CHECK_INT(await(&waiter), UF_LEADERLESS);
    CHECK_INT(take_over(&waiter), UF_LEADER);
    CHECK_INT(finish(&waiter, "v"), UF_OK);
    CHECK(strcmp(fetch(&third), "v") == 0);
    actor_exit(&waiter);
    actor_exit(&third);
    rig_reap_and_end(&rig);
    (void)unused;
}

static void waiters_of_a_sealed_flight_move_even_if_its_takeovers_are_used_up(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight newer;
    struct uf_remains remains;
    struct uf_result result = value_of("new");
    struct actor waiters[2] = {actor_process(&rig.table), actor_process(&rig.table)};
    struct actor leader = leader_that_sealed(&rig, waiters, 2);
    struct order order = order_of(ACT_TAKEOVER, "");
    order.max_takeovers = 0;
    CHECK_INT(rig_begin(&rig, "k", &newer), UF_LEADER);
    actor_kill(&leader);
    for (int i = 0; i < 2; i++) {
        tell(&waiters[i], &order);
        struct answer moved = hear(&waiters[i]);
        CHECK_INT(moved.status, UF_PENDING);
        CHECK_INT(moved.flight.slot, newer.slot);
        CHECK_INT(moved.flight.takeovers, 0);
    }
    CHECK_INT(rig_finish(&rig, &newer, &result, &remains), UF_OK);
    for (int i = 0; i < 2; i++) {
        CHECK(strcmp(fetch(&waiters[i]), "new") == 0);
        actor_exit(&waiters[i]);
    }
    rig_reap_and_end(&rig);
    (void)unused;
}

static void waiters_of_a_sealed_flight_give_up_where_none_is_newer(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor waiter = actor_process(&rig.table);
    struct actor leader = leader_that_sealed(&rig, &waiter, 1);
    struct order order = order_of(ACT_TAKEOVER, "");
    order.max_takeovers = 0;
    actor_kill(&leader);
    tell(&waiter, &order);
    CHECK_INT(hear(&waiter).status, UF_DONE);
    CHECK_INT(ask(&waiter, ACT_VIEW, "").kind, UF_PAYLOAD_DIED);
    CHECK_INT(leave(&waiter).status, UF_OK);
    actor_exit(&waiter);
    rig_reap_and_end(&rig);
    (void)unused;
}

static void a_sealed_flight_that_is_taken_over_takes_callers_again(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor waiter = actor_process(&rig.table), newcomer = actor_process(&rig.table);
    struct actor leader = leader_that_sealed(&rig, &waiter, 1);
    actor_kill(&leader);
    CHECK_INT(take_over(&waiter), UF_LEADER);
    CHECK_INT(begin(&newcomer, "k"), UF_FOLLOWER);
    CHECK_INT(finish(&waiter, "v"), UF_OK);
    CHECK(strcmp(fetch(&newcomer), "v") == 0);
    actor_exit(&waiter);
    actor_exit(&newcomer);
    rig_end(&rig);
    (void)unused;
}

static void a_forgotten_flights_waiters_do_not_move(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor leader = actor_process(&rig.table), waiter = actor_process(&rig.table);
    struct actor newcomer = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    CHECK_INT(begin(&waiter, "k"), UF_FOLLOWER);
    CHECK_INT(ask(&newcomer, ACT_FORGET, "k").status, UF_OK);
    CHECK_INT(finish(&leader, ""), UF_NEEDS_PAYLOAD); /* nothing to seal any more */
    CHECK_INT(begin(&newcomer, "k"), UF_LEADER);
    actor_kill(&leader);
    CHECK_INT(take_over(&waiter), UF_LEADER);
    CHECK_INT(finish(&waiter, ""), UF_OK);
    CHECK_INT(finish(&newcomer, ""), UF_OK);
    actor_exit(&waiter);
    actor_exit(&newcomer);
    rig_end(&rig);
    (void)unused;
}

int main(void)
{
    RUN(exactly_one_waiter_takes_over_what_was_abandoned);
    RUN(the_first_waiter_is_posted_when_the_leader_abandons);
    RUN(a_newcomer_leads_an_orphan_and_the_waiters_stay);
    RUN(the_death_of_a_leader_is_seen_by_a_sleeping_waiter);
    RUN(the_death_of_leader_and_first_waiter_together_is_seen_by_the_second);
    RUN(the_end_of_a_leading_thread_is_a_death_too);
    RUN(a_dead_leader_without_waiters_is_replaced_by_a_fresh_flight);
    RUN(waiters_give_up_when_too_many_leaders_died);
    RUN(abandoning_does_not_count_as_a_death);
    RUN(a_newcomer_ends_a_flight_whose_leaders_died_too_often);
    RUN(a_leader_that_outlives_its_lease_is_superseded_and_fenced);
    RUN(a_leader_past_its_lease_finishes_in_peace_when_nobody_waits);
    RUN(a_newcomer_supersedes_a_leader_past_its_lease);
    RUN(after_forget_a_fresh_flight_runs_beside_the_old_one);
    RUN(a_forgotten_flight_can_be_taken_over_by_those_who_joined);
    RUN(waiters_of_a_sealed_flight_move_to_a_newer_one_when_its_leader_dies);
    RUN(a_waiter_can_move_to_a_flight_whose_leader_is_gone_too);
    RUN(waiters_of_a_sealed_flight_move_even_if_its_takeovers_are_used_up);
    RUN(waiters_of_a_sealed_flight_give_up_where_none_is_newer);
    RUN(a_sealed_flight_that_is_taken_over_takes_callers_again);
    RUN(a_forgotten_flights_waiters_do_not_move);
    return report();
}
