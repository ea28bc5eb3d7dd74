/* Waiting, leaving, and who is posted when. */
#include "rig.h"

/* ---- waiting and leaving ---------------------------------------------------------- */

static void waiting_ends_at_the_deadline_and_the_flight_goes_on_without(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor one = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    tell_wait(&one, 0);
    CHECK_INT(hear(&one).status, UF_TIMED_OUT);
    tell_wait(&one, 3 * MILLISECOND);
    CHECK_INT(hear(&one).status, UF_TIMED_OUT);
    struct order order = order_of(ACT_LEAVE, "");
    order.timed_out = true;
    tell(&one, &order);
    CHECK_INT(hear(&one).status, UF_OK);
    CHECK_INT(totals_of(&rig).timeouts, 1);
    CHECK_INT(totals_of(&rig).followers, 0);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(remains.followers, 0);
    actor_exit(&one);
    rig_end(&rig);
    (void)unused;
}

static void whoever_leaves_an_orphan_wakes_the_next_and_the_last_one_frees_it(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    CHECK_INT(begin(&two, "k"), UF_FOLLOWER);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    CHECK_INT(leave(&one).status, UF_OK);
    CHECK_INT(await(&two), UF_LEADERLESS);
    CHECK_INT(leave(&two).status, UF_OK);
    actor_exit(&one);
    actor_exit(&two);
    rig_end(&rig);
    (void)unused;
}

static void waiters_may_leave_from_the_front_the_middle_and_the_end(void *unused)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                     {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor actors[3];
    for (int i = 0; i < 3; i++)
        actors[i] = actor_process(&rig.table);
    for (int round = 0; round < 24; round++) {
        int leaving = round / 6; /* so many leave before the end, the others after it */
        CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
        for (int i = 0; i < 3; i++)
            CHECK_INT(begin(&actors[i], "k"), UF_FOLLOWER);
        for (int i = 0; i < leaving; i++)
            CHECK_INT(leave(&actors[orders[round % 6][i]]).status, UF_OK);
        CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
        CHECK_INT(remains.followers, 3 - leaving);
        for (int i = leaving; i < 3; i++)
            CHECK(strcmp(fetch(&actors[orders[round % 6][i]]), "v") == 0);
        check_empty(&rig.table);
    }
    for (int i = 0; i < 3; i++)
        actor_exit(&actors[i]);
    rig_end(&rig);
    (void)unused;
}

static void leaving_twice_or_after_a_takeover_does_nothing(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    CHECK_INT(leave(&one).status, UF_OK);
    CHECK_INT(begin(&two, "k"), UF_FOLLOWER); /* gets the same cell */
    CHECK_INT(leave(&one).status, UF_OK);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    CHECK_INT(take_over(&two), UF_LEADER);
    CHECK_INT(leave(&two).status, UF_OK);
    CHECK_INT(finish(&two, ""), UF_OK);
    actor_exit(&one);
    actor_exit(&two);
    rig_end(&rig);
    (void)unused;
}

static void dead_waiters_do_not_keep_a_flight(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    for (int order = 0; order < 3; order++) { /* the living one is first, middle, last */
        struct actor actors[3];
        CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
        for (int i = 0; i < 3; i++) {
            actors[i] = actor_process(&rig.table);
            CHECK_INT(begin(&actors[i], "k"), UF_FOLLOWER);
        }
        CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
        for (int i = 0; i < 3; i++)
            if (i != order)
                actor_kill(&actors[i]);
        CHECK(strcmp(fetch(&actors[order]), "v") == 0);
        actor_exit(&actors[order]);
        reap_all(&rig.table);
        check_empty(&rig.table);
    }
    rig_end(&rig);
    (void)unused;
}

static void finish_does_not_count_waiters_that_died(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result bare = {.kind = UF_PAYLOAD_VALUE};
    struct actor one = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    actor_kill(&one);
    CHECK_INT(rig_finish(&rig, &flight, &bare, &remains), UF_OK);
    rig_end(&rig);
    (void)unused;
}

static void the_extra_segment_of_a_flight_freed_by_a_sweep_is_reported_leaked(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = {.kind = UF_PAYLOAD_EXTRA, .bytes = 100000, .sum = 1};
    struct actor one = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&one, "k"), UF_FOLLOWER);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(UF_LOAD(rig.table.header->leaked), 0);
    actor_kill(&one);
    reap_all(&rig.table);
    CHECK_INT(UF_LOAD(rig.table.header->leaked), 1);
    rig_end(&rig);
    (void)unused;
}

static void ignore_signal(int number)
{
    (void)number;
}

static void an_interrupted_wait_says_so_and_can_go_on(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor leader = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    struct sigaction action = {.sa_handler = ignore_signal}; /* no SA_RESTART */
    sigaction(SIGUSR1, &action, NULL);
    pid_t me = getpid(), sender = fork();
    if (sender == 0) {
        die_with_parent(me);
        for (;;) /* until one arrives during the sleep: the sender cannot see that */
            kill(me, SIGUSR1);
    }
    struct uf_flight flight;
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_FOLLOWER);
    for (int i = 0; i < 3; i++)
        CHECK_INT(uf_wait(&rig.table, &flight, rig.me.owner, UF_NO_DEADLINE), UF_INTERRUPTED);
    kill(sender, SIGKILL);
    CHECK(waitpid(sender, NULL, 0) == sender);
    struct order order = order_of(ACT_FINISH, "");
    snprintf(order.text, sizeof order.text, "v");
    tell(&leader, &order);
    enum uf_status status;
    do
        status = uf_wait(&rig.table, &flight, rig.me.owner, UF_NO_DEADLINE);
    while (status == UF_INTERRUPTED);
    CHECK_INT(status, UF_DONE);
    CHECK_INT(hear(&leader).status, UF_OK);
    struct uf_remains remains;
    CHECK_INT(uf_leave(&rig.table, &flight, rig.me.owner, UF_LEAVING_SERVED, UF_WAIT, &remains), UF_OK);
    actor_exit(&leader);
    rig_end(&rig);
    (void)unused;
}

/* ---- posts ------------------------------------------------------------------------ */

static void the_end_of_a_flight_posts_every_waiter(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer a = ask(&one, ACT_BEGIN, "k"), b = ask(&two, ACT_BEGIN, "k");
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(tokens(&rig, &a), 1);
    CHECK_INT(tokens(&rig, &b), 1);
    actor_exit(&one);
    actor_exit(&two);
    rig_reap_and_end(&rig);
    (void)unused;
}

static void whoever_becomes_responsible_for_an_orphan_is_posted_and_nobody_else(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct actor actors[3];
    struct answer joined[3];
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    for (int i = 0; i < 3; i++) {
        actors[i] = actor_process(&rig.table);
        joined[i] = ask(&actors[i], ACT_BEGIN, "k");
    }
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    CHECK_INT(tokens(&rig, &joined[0]), 1);
    CHECK_INT(tokens(&rig, &joined[1]), 0);
    CHECK_INT(leave(&actors[0]).status, UF_OK);
    CHECK_INT(tokens(&rig, &joined[1]), 1);
    CHECK_INT(tokens(&rig, &joined[2]), 0);
    actor_kill(&actors[1]);
    reap_all(&rig.table);
    CHECK_INT(tokens(&rig, &joined[2]), 1);
    actor_exit(&actors[0]);
    actor_exit(&actors[2]);
    rig_reap_and_end(&rig);
    (void)unused;
}

/* The others look rarely. */
static void whoever_becomes_the_first_waiter_is_posted_to_watch_the_leader(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result bare = {.kind = UF_PAYLOAD_VALUE};
    struct actor actors[5];
    struct answer joined[5];
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    for (int i = 0; i < 5; i++) {
        actors[i] = actor_process(&rig.table);
        joined[i] = ask(&actors[i], ACT_BEGIN, "k");
    }
    CHECK_INT(leave(&actors[0]).status, UF_OK); /* leaves */
    CHECK_INT(tokens(&rig, &joined[1]), 1);
    actor_kill(&actors[1]); /* dies, and a sweep notices */
    reap_all(&rig.table);
    CHECK_INT(tokens(&rig, &joined[2]), 1);
    actor_kill(&actors[2]); /* dies, and the leader notices, who goes on to encode */
    CHECK_INT(rig_finish(&rig, &flight, &bare, &remains), UF_NEEDS_PAYLOAD);
    CHECK_INT(tokens(&rig, &joined[3]), 1);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    CHECK_INT(take_over(&actors[3]), UF_LEADER); /* leads */
    CHECK(tokens(&rig, &joined[4]) >= 1);
    CHECK_INT(finish(&actors[3], "v"), UF_OK);
    for (int i = 0; i < 5; i++)
        if (i != 1 && i != 2)
            actor_exit(&actors[i]);
    rig_reap_and_end(&rig);
    (void)unused;
}

static void a_takeover_posts_the_next_living_waiter(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor actors[4];
    struct answer joined[4];
    struct uf_flight flight;
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    for (int i = 0; i < 4; i++) {
        actors[i] = actor_process(&rig.table);
        joined[i] = ask(&actors[i], ACT_BEGIN, "k");
    }
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    actor_kill(&actors[1]);
    CHECK_INT(take_over(&actors[0]), UF_LEADER);
    CHECK_INT(tokens(&rig, &joined[2]), 1);
    CHECK_INT(tokens(&rig, &joined[3]), 0);
    CHECK_INT(finish(&actors[0], "v"), UF_OK);
    for (int i = 0; i < 4; i++)
        if (i != 1)
            actor_exit(&actors[i]);
    rig_reap_and_end(&rig);
    (void)unused;
}

static void a_repair_posts_every_waiter(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    struct actor holder = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer a = ask(&one, ACT_BEGIN, "k"), b = ask(&two, ACT_BEGIN, "k");
    struct order order = order_of(ACT_LOCK_AND_DIE, "");
    tell(&holder, &order);
    actor_reap(&holder);
    check_all(&rig.table); /* takes the lock */
    CHECK(tokens(&rig, &a) >= 1);
    CHECK(tokens(&rig, &b) >= 1);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    actor_exit(&one);
    actor_exit(&two);
    rig_reap_and_end(&rig);
    (void)unused;
}

static void a_new_follower_starts_without_the_former_ones_posts(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor one = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer a = ask(&one, ACT_BEGIN, "k");
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(leave(&one).status, UF_OK); /* without having slept */
    CHECK_INT(tokens(&rig, &a), 1);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer b = ask(&one, ACT_BEGIN, "k");
    CHECK_INT(b.flight.cell, a.flight.cell);
    CHECK_INT(tokens(&rig, &b), 0);
    CHECK_INT(leave(&one).status, UF_OK);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    actor_exit(&one);
    rig_end(&rig);
    (void)unused;
}

int main(void)
{
    RUN(waiting_ends_at_the_deadline_and_the_flight_goes_on_without);
    RUN(whoever_leaves_an_orphan_wakes_the_next_and_the_last_one_frees_it);
    RUN(waiters_may_leave_from_the_front_the_middle_and_the_end);
    RUN(leaving_twice_or_after_a_takeover_does_nothing);
    RUN(dead_waiters_do_not_keep_a_flight);
    RUN(finish_does_not_count_waiters_that_died);
    RUN(the_extra_segment_of_a_flight_freed_by_a_sweep_is_reported_leaked);
    RUN(an_interrupted_wait_says_so_and_can_go_on);
    RUN(the_end_of_a_flight_posts_every_waiter);
    RUN(whoever_becomes_responsible_for_an_orphan_is_posted_and_nobody_else);
    RUN(whoever_becomes_the_first_waiter_is_posted_to_watch_the_leader);
    RUN(a_takeover_posts_the_next_living_waiter);
    RUN(a_repair_posts_every_waiter);
    RUN(a_new_follower_starts_without_the_former_ones_posts);
    return report();
}
