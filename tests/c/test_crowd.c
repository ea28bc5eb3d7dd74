/* More waiters than the leader posts itself: the others are posted by those. */
#include "rig.h"

#define CROWD (UF_FIRST_WAKES + 4)

struct crowd {
    struct rig rig;
    struct uf_flight flight; /* led by the rig */
    struct actor actor[CROWD];
    struct answer joined[CROWD]; /* in this order; until it waits, a post to it can be seen */
    bool has_left[CROWD], is_dead[CROWD];
};

static struct crowd crowd_that_waits(void)
{
    struct crowd crowd = {.rig = rig_of(64)};
    CHECK_INT(rig_begin(&crowd.rig, "k", &crowd.flight), UF_LEADER);
    for (uint32_t i = 0; i < CROWD; i++) {
        crowd.actor[i] = actor_process(&crowd.rig.table);
        crowd.joined[i] = ask(&crowd.actor[i], ACT_BEGIN, "k");
        CHECK_INT(crowd.joined[i].status, UF_FOLLOWER);
    }
    return crowd;
}

static struct crowd crowd_of_a_flight_that_is_done(void)
{
    struct crowd crowd = crowd_that_waits();
    struct uf_result result = value_of("v");
    struct uf_remains remains;
    CHECK_INT(rig_finish(&crowd.rig, &crowd.flight, &result, &remains), UF_OK);
    CHECK_INT(remains.followers, CROWD);
    return crowd;
}

static bool is_posted(struct crowd *crowd, uint32_t i)
{
    return tokens(&crowd->rig, &crowd->joined[i]) > 0;
}

static uint32_t count_posted(struct crowd *crowd)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < CROWD; i++)
        count += is_posted(crowd, i);
    return count;
}

static void leave_crowd(struct crowd *crowd, uint32_t i, bool timed_out)
{
    struct order order = order_of(ACT_LEAVE, "");
    order.timed_out = timed_out;
    tell(&crowd->actor[i], &order);
    CHECK_INT(hear(&crowd->actor[i]).status, UF_OK);
    crowd->has_left[i] = true;
    check_all(&crowd->rig.table);
}

static void crowd_end(struct crowd *crowd)
{
    for (uint32_t i = 0; i < CROWD; i++)
        if (!crowd->is_dead[i] && !crowd->has_left[i])
            leave_crowd(crowd, i, false);
    for (uint32_t i = 0; i < CROWD; i++)
        if (!crowd->is_dead[i])
            actor_exit(&crowd->actor[i]);
    rig_reap_and_end(&crowd->rig);
}

static void the_leader_posts_the_first_and_each_of_these_one_or_two(void *unused)
{
    struct crowd crowd = crowd_of_a_flight_that_is_done();
    CHECK_INT(count_posted(&crowd), UF_FIRST_WAKES);
    CHECK(is_posted(&crowd, UF_FIRST_WAKES - 1) && !is_posted(&crowd, UF_FIRST_WAKES));
    CHECK_INT(await(&crowd.actor[3]), UF_DONE);
    CHECK(is_posted(&crowd, UF_FIRST_WAKES) && !is_posted(&crowd, UF_FIRST_WAKES + 1));
    leave_crowd(&crowd, 3, false);
    CHECK(is_posted(&crowd, UF_FIRST_WAKES + 1) && !is_posted(&crowd, UF_FIRST_WAKES + 2));
    CHECK_INT(await(&crowd.actor[0]), UF_DONE);
    leave_crowd(&crowd, 0, false);
    CHECK(is_posted(&crowd, CROWD - 1));
    crowd_end(&crowd);
    (void)unused;
}

static void who_is_next_and_gives_up_breaks_no_chain(void *unused)
{
    struct crowd crowd = crowd_of_a_flight_that_is_done();
    leave_crowd(&crowd, UF_FIRST_WAKES, true); /* its timeout came after the end */
    CHECK(is_posted(&crowd, UF_FIRST_WAKES + 1));
    CHECK_INT(await(&crowd.actor[0]), UF_DONE);
    CHECK(is_posted(&crowd, UF_FIRST_WAKES + 2));
    crowd_end(&crowd);
    (void)unused;
}

static void who_is_next_and_dead_is_dropped_from_the_chain(void *unused)
{
    struct crowd crowd = crowd_of_a_flight_that_is_done();
    actor_kill(&crowd.actor[UF_FIRST_WAKES]);
    crowd.is_dead[UF_FIRST_WAKES] = true;
    reap_all(&crowd.rig.table);
    check_all(&crowd.rig.table);
    CHECK_INT(await(&crowd.actor[0]), UF_DONE);
    CHECK(is_posted(&crowd, UF_FIRST_WAKES + 1));
    crowd_end(&crowd);
    (void)unused;
}

static void a_repair_posts_everybody(void *unused)
{
    struct crowd crowd = crowd_of_a_flight_that_is_done();
    struct actor holder = actor_process(&crowd.rig.table);
    struct order order = order_of(ACT_LOCK_AND_DIE, "");
    tell(&holder, &order);
    actor_reap(&holder);
    reap_all(&crowd.rig.table);
    CHECK_INT(count_posted(&crowd), CROWD);
    crowd_end(&crowd);
    (void)unused;
}

/* The one that it was to post finds the end by itself. */
static void who_dies_before_it_posts_leaves_the_next_to_its_look(void *unused)
{
    struct crowd crowd = crowd_of_a_flight_that_is_done();
    struct order arm = order_of(ACT_ARM, "");
    struct answer none;
    arm.point = UF_AT_PASS_UNLOCKED;
    arm.action = UF_CRASH_KILL;
    tell(&crowd.actor[0], &arm);
    CHECK_INT(hear(&crowd.actor[0]).status, UF_OK);
    tell_wait(&crowd.actor[0], SECOND);
    CHECK(!try_hear(&crowd.actor[0], &none));
    actor_reap(&crowd.actor[0]);
    crowd.is_dead[0] = true;
    CHECK(!is_posted(&crowd, UF_FIRST_WAKES));
    CHECK_INT(await(&crowd.actor[UF_FIRST_WAKES]), UF_DONE);
    CHECK(is_posted(&crowd, UF_FIRST_WAKES + 1)); /* and passes on to the one after it */
    crowd_end(&crowd);
    (void)unused;
}

int main(void)
{
    RUN(the_leader_posts_the_first_and_each_of_these_one_or_two);
    RUN(who_is_next_and_gives_up_breaks_no_chain);
    RUN(who_is_next_and_dead_is_dropped_from_the_chain);
    RUN(a_repair_posts_everybody);
    RUN(who_dies_before_it_posts_leaves_the_next_to_its_look);
    return report();
}
