/* Interleavings that need somebody to act in the middle of an operation, and what happens
 * when a stopped process holds the lock.  The linker wraps pthread_mutex_trylock and
 * sem_post (see Makefile), so that a test can act just before or after one of them. */
#include "rig.h"

int __real_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex);
int __real_sem_post(sem_t *semaphore);
int __wrap_sem_post(sem_t *semaphore);

static struct plan {
    void *object;      /* the mutex or semaphore to wait for */
    int passes;        /* so many calls pass first */
    bool after;        /* act after the call, not before */
    void (*step)(void *argument);
    void *argument;
} plan;

static bool is_due(void *object, bool after)
{
    return plan.step && plan.object == object && plan.after == after && plan.passes-- == 0;
}

static void act_now(void)
{
    void (*step)(void *) = plan.step;
    plan.step = NULL;
    step(plan.argument);
}

int __wrap_pthread_mutex_trylock(pthread_mutex_t *mutex)
{
    if (is_due(mutex, false))
        act_now();
    int error = __real_pthread_mutex_trylock(mutex);
    if (is_due(mutex, true))
        act_now();
    return error;
}

int __wrap_sem_post(sem_t *semaphore)
{
    if (is_due(semaphore, false))
        act_now();
    int error = __real_sem_post(semaphore);
    if (is_due(semaphore, true))
        act_now();
    return error;
}

static void kill_actor(void *actor)
{
    actor_kill(actor);
}

static void scene_end(struct rig *rig)
{
    CHECK(plan.step == NULL); /* the planned moment came */
    rig_reap_and_end(rig);
}

static void *life_of(struct rig *rig, uint64_t owner)
{
    return &uf_thread_of(&rig->table, owner)->life;
}

/* ---- deaths in the middle of somebody's operation --------------------------------- */

static void joining_a_flight_whose_leader_dies_during_the_sweep_for_a_cell_is_sound(void *unused)
{
    struct rig rig = rig_of(1); /* one cell, and a dead waiter has it */
    struct uf_flight other, flight;
    struct actor leader = actor_process(&rig.table), waiter = actor_process(&rig.table);
    CHECK_INT(rig.table.cells, 1);
    CHECK_INT(rig_begin(&rig, "other", &other), UF_LEADER);
    CHECK_INT(begin(&waiter, "other"), UF_FOLLOWER);
    actor_kill(&waiter);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    /* Alive when begin asks, dead when the sweep asks, which frees the flight. */
    plan = (struct plan){life_of(&rig, leader.owner), 1, false, kill_actor, &leader};
    enum uf_status status = rig_begin(&rig, "k", &flight);
    check_all(&rig.table);
    if (status == UF_FOLLOWER)
        CHECK_INT(uf_poll(&rig.table, &flight, rig.me.owner, uf_now_ns()), UF_LEADERLESS);
    else
        CHECK_INT(status, UF_LEADER);
    CHECK(!uf_is_damaged(&rig.table));
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    CHECK_INT(uf_abandon(&rig.table, &other, UF_WAIT), UF_OK);
    scene_end(&rig);
    (void)unused;
}

static void a_leader_that_dies_while_it_is_looked_at_is_replaced_at_once(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    struct actor leader = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    plan = (struct plan){life_of(&rig, leader.owner), 0, true, kill_actor, &leader};
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    scene_end(&rig);
    (void)unused;
}

static void a_waiter_that_dies_while_it_is_being_counted_does_not_keep_the_flight(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    struct uf_remains remains;
    struct actor waiter = actor_process(&rig.table);
    struct uf_result result = value_of("v");
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&waiter, "k"), UF_FOLLOWER);
    plan = (struct plan){life_of(&rig, waiter.owner), 0, true, kill_actor, &waiter};
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    scene_end(&rig);
    (void)unused;
}

static void the_next_waiter_may_die_just_when_it_is_chosen(void *unused)
{
    struct rig rig = rig_of(8);
    struct actor leader = actor_process(&rig.table), next = actor_process(&rig.table);
    struct actor last = actor_process(&rig.table);
    struct uf_flight flight;
    struct uf_remains remains;
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_FOLLOWER);
    CHECK_INT(begin(&next, "k"), UF_FOLLOWER);
    CHECK_INT(begin(&last, "k"), UF_FOLLOWER);
    CHECK_INT(ask(&leader, ACT_ABANDON, "").status, UF_OK);
    tell_wait(&last, 30 * SECOND);
    plan = (struct plan){life_of(&rig, next.owner), 0, true, kill_actor, &next};
    CHECK_INT(uf_leave(&rig.table, &flight, rig.me.owner, UF_LEAVING_TIMED_OUT, UF_WAIT, &remains), UF_OK);
    CHECK_INT(hear(&last).status, UF_LEADERLESS);
    CHECK_INT(take_over(&last), UF_LEADER);
    CHECK_INT(finish(&last, ""), UF_OK);
    actor_exit(&leader);
    actor_exit(&last);
    scene_end(&rig);
    (void)unused;
}

struct probe {
    struct uf_thread *thread;
    bool locked;
};

static void hold_as_a_prober_does(void *argument)
{
    struct probe *probe = argument;
    int error = __real_pthread_mutex_trylock(&probe->thread->life);
    if (error == EOWNERDEAD)
        error = pthread_mutex_consistent(&probe->thread->life);
    probe->locked = error == 0;
}

static void a_look_that_meets_another_look_at_the_dead_is_not_misled(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    struct actor leader = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_FOLLOWER);
    actor_kill(&leader);
    struct probe probe = {uf_thread_of(&rig.table, leader.owner), false};
    plan = (struct plan){life_of(&rig, leader.owner), 0, false, hold_as_a_prober_does, &probe};
    CHECK_INT(uf_takeover(&rig.table, &rig.me, &flight), UF_LEADER);
    CHECK(probe.locked);
    pthread_mutex_unlock(&probe.thread->life);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    scene_end(&rig);
    (void)unused;
}

/* ---- posts that come late --------------------------------------------------------- */

struct late {
    struct rig *rig;
    struct actor *waiter;
    struct actor *leader;
};

static void leave_and_join_another_flight(void *argument)
{
    struct late *late = argument;
    CHECK(strcmp(fetch(late->waiter), "v") == 0);
    struct answer joined = ask(late->waiter, ACT_BEGIN, "other");
    CHECK_INT(joined.status, UF_FOLLOWER);
    CHECK(plan.object == &uf_cell(&late->rig->table, 0, joined.flight.cell)->semaphore);
    tell_wait(late->waiter, 30 * SECOND);
}

static void a_post_for_the_cells_former_owner_does_not_end_the_next_ones_wait(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor waiter = actor_process(&rig.table), leader = actor_process(&rig.table);
    struct late late = {&rig, &waiter, &leader};
    CHECK_INT(begin(&leader, "other"), UF_LEADER);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer joined = ask(&waiter, ACT_BEGIN, "k");
    sem_t *semaphore = &uf_cell(&rig.table, 0, joined.flight.cell)->semaphore;
    plan = (struct plan){semaphore, 0, false, leave_and_join_another_flight, &late};
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK);
    CHECK_INT(finish(&leader, "other's"), UF_OK);
    CHECK_INT(hear(&waiter).status, UF_DONE);
    CHECK(strcmp(fetch(&waiter), "other's") == 0);
    actor_exit(&waiter);
    actor_exit(&leader);
    scene_end(&rig);
    (void)unused;
}

/* Dead but for the fact that nobody has looked yet: the lock of a process that was killed
 * between its unlock and its posts is free, and nothing tells of the missing posts. */
static void waiters_wake_by_themselves_when_the_poster_died(void *unused)
{
    struct rig rig = rig_of(8);
    struct actor leader = actor_process(&rig.table), first = actor_process(&rig.table);
    struct actor second = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    struct answer a = ask(&first, ACT_BEGIN, "k"), b = ask(&second, ACT_BEGIN, "k");
    CHECK_INT(finish(&leader, "v"), UF_OK);
    actor_kill(&leader);
    sem_init(&uf_cell(&rig.table, 0, a.flight.cell)->semaphore, 1, 0); /* the posts are lost */
    sem_init(&uf_cell(&rig.table, 0, b.flight.cell)->semaphore, 1, 0);
    CHECK(strcmp(fetch(&first), "v") == 0);
    CHECK(strcmp(fetch(&second), "v") == 0);
    actor_exit(&first);
    actor_exit(&second);
    scene_end(&rig);
    (void)unused;
}

/* ---- a stopped process holds the lock --------------------------------------------- */

static struct actor stopper_of(struct rig *rig)
{
    struct actor stopper = actor_process(&rig->table);
    struct order order = order_of(ACT_LOCK_AND_STOP, "");
    tell(&stopper, &order);
    actor_await_stop(&stopper);
    return stopper;
}

static void stopper_end(struct actor *stopper)
{
    actor_continue(stopper);
    hear(stopper);
    actor_exit(stopper);
}

static void nobody_waits_for_a_stopped_holder_longer_than_the_limit(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    bool found;
    struct uf_key key = key_of("k");
    struct actor stopper = stopper_of(&rig);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LOCK_TIMEOUT);
    CHECK_INT(uf_forget(&rig.table, &key, UF_WAIT, &found), UF_LOCK_TIMEOUT);
    CHECK_INT(uf_reap(&rig.table, 0, UF_WAIT), UF_LOCK_TIMEOUT);
    CHECK_INT(uf_reap(&rig.table, 0, UF_TRY), UF_BUSY);
    rig.me.patience = UF_TRY;
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_BUSY);
    stopper_end(&stopper);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_TRY), UF_OK);
    scene_end(&rig);
    (void)unused;
}

static void an_attempt_that_does_not_wait_resigns_nothing(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor waiter = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer joined = ask(&waiter, ACT_BEGIN, "k");
    struct actor stopper = stopper_of(&rig);
    CHECK_INT(uf_finish(&rig.table, &flight, &result, UF_TRY, &remains), UF_BUSY);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_TRY), UF_BUSY);
    CHECK_INT(uf_leave(&rig.table, &joined.flight, waiter.owner, UF_LEAVING_SERVED, UF_TRY, &remains), UF_BUSY);
    CHECK_INT(poll_now(&rig, &waiter, &joined.flight), UF_PENDING);
    stopper_end(&stopper);
    CHECK_INT(uf_finish(&rig.table, &flight, &result, UF_TRY, &remains), UF_OK);
    CHECK(strcmp(fetch(&waiter), "v") == 0);
    actor_exit(&waiter);
    scene_end(&rig);
    (void)unused;
}

/* finish (0) or abandon (1) of a leader that cannot get the lock. */
static void a_leader_resigns(bool abandons)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight, again;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor waiter = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&waiter, "k"), UF_FOLLOWER);
    struct actor stopper = stopper_of(&rig);
    CHECK_INT(abandons ? uf_abandon(&rig.table, &flight, UF_WAIT)
                       : rig_finish(&rig, &flight, &result, &remains),
              UF_LOCK_TIMEOUT);
    CHECK_INT(await(&waiter), UF_LEADERLESS);
    CHECK_INT(take_over(&waiter), UF_LOCK_TIMEOUT); /* the cell is kept */
    stopper_end(&stopper);
    CHECK_INT(take_over(&waiter), UF_LEADER);
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_FENCED);
    CHECK_INT(rig_begin(&rig, "k", &again), UF_FOLLOWER); /* no self-join: it leads no more */
    CHECK_INT(finish(&waiter, "w"), UF_OK);
    CHECK_INT(uf_wait(&rig.table, &again, rig.me.owner, UF_NO_DEADLINE), UF_DONE);
    CHECK_INT(uf_leave(&rig.table, &again, rig.me.owner, UF_LEAVING_SERVED, UF_WAIT, &remains), UF_OK);
    actor_exit(&waiter);
    scene_end(&rig);
}

static void a_leader_that_cannot_publish_resigns_and_is_replaced(void *unused)
{
    a_leader_resigns(false);
    (void)unused;
}

static void a_leader_that_cannot_abandon_resigns_and_is_replaced(void *unused)
{
    a_leader_resigns(true);
    (void)unused;
}

static void a_leader_that_resigned_may_lead_the_same_key_again(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight, again;
    struct actor stopper;
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    stopper = stopper_of(&rig);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_LOCK_TIMEOUT);
    stopper_end(&stopper);
    CHECK_INT(rig_begin(&rig, "k", &again), UF_LEADER);
    CHECK_INT(again.takeovers, 0); /* nobody waited: swept, and a fresh flight */
    CHECK_INT(uf_abandon(&rig.table, &again, UF_WAIT), UF_OK);
    scene_end(&rig);
    (void)unused;
}

static void a_late_resignation_does_not_touch_the_slots_next_flight(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight old;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor leader = actor_process(&rig.table), waiter = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &old), UF_LEADER);
    CHECK_INT(uf_abandon(&rig.table, &old, UF_WAIT), UF_OK);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    struct answer joined = ask(&waiter, ACT_BEGIN, "k");
    CHECK_INT(joined.flight.slot, old.slot);
    struct actor stopper = stopper_of(&rig);
    CHECK_INT(rig_finish(&rig, &old, &result, &remains), UF_LOCK_TIMEOUT);
    CHECK_INT(poll_now(&rig, &waiter, &joined.flight), UF_PENDING);
    stopper_end(&stopper);
    CHECK_INT(finish(&leader, "v"), UF_OK);
    CHECK(strcmp(fetch(&waiter), "v") == 0);
    actor_exit(&leader);
    actor_exit(&waiter);
    scene_end(&rig);
    (void)unused;
}

static void a_late_resignation_does_not_undo_that_of_a_later_leader(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight old;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor leader = actor_process(&rig.table), waiter = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &old), UF_LEADER);
    CHECK_INT(uf_abandon(&rig.table, &old, UF_WAIT), UF_OK);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    struct answer joined = ask(&waiter, ACT_BEGIN, "k");
    struct actor stopper = stopper_of(&rig);
    CHECK_INT(finish(&leader, "v"), UF_LOCK_TIMEOUT);
    CHECK_INT(rig_finish(&rig, &old, &result, &remains), UF_LOCK_TIMEOUT);
    CHECK_INT(poll_now(&rig, &waiter, &joined.flight), UF_LEADERLESS);
    stopper_end(&stopper);
    CHECK_INT(take_over(&waiter), UF_LEADER);
    CHECK_INT(finish(&waiter, ""), UF_OK);
    actor_exit(&leader);
    actor_exit(&waiter);
    scene_end(&rig);
    (void)unused;
}

static void a_follower_that_cannot_leave_counts_as_gone(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result bare = {.kind = UF_PAYLOAD_VALUE};
    struct actor waiter = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&waiter, "k"), UF_FOLLOWER);
    struct actor stopper = stopper_of(&rig);
    CHECK_INT(leave(&waiter).status, UF_LOCK_TIMEOUT);
    stopper_end(&stopper);
    CHECK_INT(rig_finish(&rig, &flight, &bare, &remains), UF_OK);
    CHECK_INT(remains.followers, 0);
    check_empty(&rig.table); /* no sweep was needed */
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&waiter, "k"), UF_FOLLOWER); /* the cell is as good as new */
    CHECK_INT(rig_finish(&rig, &flight, &bare, &remains), UF_NEEDS_PAYLOAD);
    actor_exit(&waiter);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    scene_end(&rig);
    (void)unused;
}

/* A handle may be left by a finalizer, long after its thread ended and its cell was swept
 * and given to somebody else. */
static void a_late_leave_without_the_lock_does_not_evict_the_cells_next_owner(void *unused)
{
    struct rig rig = rig_of(1);
    struct uf_flight flight;
    struct uf_remains remains;
    struct actor old = actor_process(&rig.table), young = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct answer left = ask(&old, ACT_BEGIN, "k");
    uint64_t owner = old.owner;
    actor_exit(&old);
    reap_all(&rig.table);
    struct answer joined = ask(&young, ACT_BEGIN, "k");
    CHECK_INT(joined.flight.cell, left.flight.cell);
    struct actor stopper = stopper_of(&rig);
    CHECK_INT(uf_leave(&rig.table, &left.flight, owner, UF_LEAVING_SERVED, UF_WAIT, &remains), UF_LOCK_TIMEOUT);
    stopper_end(&stopper);
    reap_all(&rig.table);
    CHECK_INT(poll_now(&rig, &young, &joined.flight), UF_PENDING);
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    CHECK_INT(leave(&young).status, UF_OK);
    actor_exit(&young);
    scene_end(&rig);
    (void)unused;
}

/* ---- a holder dies with the lock -------------------------------------------------- */

static void the_lock_of_the_dead_is_repaired_and_given_to_the_next(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor waiter = actor_process(&rig.table), holder = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&waiter, "k"), UF_FOLLOWER);
    tell_wait(&waiter, 30 * SECOND);
    struct order order = order_of(ACT_LOCK_AND_DIE, "");
    tell(&holder, &order);
    actor_reap(&holder);
    CHECK_INT(uf_finish(&rig.table, &flight, &result, UF_TRY, &remains), UF_OK);
    CHECK_INT(hear(&waiter).status, UF_DONE);
    CHECK(strcmp(fetch(&waiter), "v") == 0);
    actor_exit(&waiter);
    scene_end(&rig);
    (void)unused;
}

static void whoever_waits_for_the_lock_gets_it_when_the_holder_dies(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    struct actor stopper = stopper_of(&rig);
    plan = (struct plan){&uf_group(&rig.table, 0)->lock, 0, true, kill_actor, &stopper};
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER); /* busy at first, then its heir */
    CHECK_INT(uf_abandon(&rig.table, &flight, UF_WAIT), UF_OK);
    scene_end(&rig);
    (void)unused;
}

static void a_leader_that_cannot_seal_resigns_and_publishes_to_no_newcomer(void *unused)
{
    struct rig rig = rig_of(8);
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("old");
    struct actor newcomer = actor_process(&rig.table);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    struct actor stopper = stopper_of(&rig);
    CHECK_INT(uf_seal(&rig.table, &flight, UF_WAIT), UF_LOCK_TIMEOUT);
    stopper_end(&stopper);
    CHECK_INT(begin(&newcomer, "k"), UF_LEADER); /* no follower of what has ended before */
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_FENCED);
    CHECK_INT(finish(&newcomer, "new"), UF_OK);
    actor_exit(&newcomer);
    scene_end(&rig);
    (void)unused;
}

/* ---- posts that come late ----------------------------------------------------------- */

struct change_of_tenant {
    struct rig *rig;
    struct actor *former;
    struct uf_flight flight; /* of a loop, which gets the former waiter's cell */
};

static void let_a_loop_have_the_cell(void *argument)
{
    static const unsigned char doorbell[UF_DOORBELL_BYTES] = {
        255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    struct change_of_tenant *change = argument;
    struct uf_caller loop = change->rig->me;
    struct uf_key key = key_of("other");
    CHECK_INT(leave(change->former).status, UF_OK);
    loop.doorbell = doorbell;
    CHECK_INT(uf_begin(&change->rig->table, &loop, &key, &change->flight), UF_FOLLOWER);
}

static void a_late_post_harms_neither_the_cells_next_owner_nor_the_poster(void *unused)
{
    struct rig rig = rig_of(1); /* one cell */
    struct uf_flight flight;
    struct uf_remains remains;
    struct uf_result result = value_of("v");
    struct actor former = actor_process(&rig.table), other = actor_process(&rig.table);
    CHECK_INT(begin(&other, "other"), UF_LEADER);
    CHECK_INT(rig_begin(&rig, "k", &flight), UF_LEADER);
    CHECK_INT(begin(&former, "k"), UF_FOLLOWER);
    struct uf_cell *cell = uf_cell(&rig.table, uf_group_of(flight.slot), 0);
    struct change_of_tenant change = {.rig = &rig, .former = &former};
    plan = (struct plan){&cell->semaphore, 0, false, let_a_loop_have_the_cell, &change};
    CHECK_INT(rig_finish(&rig, &flight, &result, &remains), UF_OK); /* aborts, or does not */
    for (int i = 0; i < (int)UF_DOORBELL_BYTES; i++)
        CHECK_INT(cell->doorbell[i], 255);
    CHECK_INT(finish(&other, ""), UF_NEEDS_PAYLOAD);
    CHECK_INT(uf_leave(&rig.table, &change.flight, rig.me.owner, UF_LEAVING_EMPTY, UF_WAIT,
                       &remains), UF_OK);
    CHECK_INT(finish(&other, "v"), UF_OK);
    actor_exit(&former);
    actor_exit(&other);
    scene_end(&rig);
    (void)unused;
}

int main(void)
{
    RUN(joining_a_flight_whose_leader_dies_during_the_sweep_for_a_cell_is_sound);
    RUN(a_leader_that_dies_while_it_is_looked_at_is_replaced_at_once);
    RUN(a_waiter_that_dies_while_it_is_being_counted_does_not_keep_the_flight);
    RUN(the_next_waiter_may_die_just_when_it_is_chosen);
    RUN(a_look_that_meets_another_look_at_the_dead_is_not_misled);
    RUN(a_post_for_the_cells_former_owner_does_not_end_the_next_ones_wait);
    RUN(waiters_wake_by_themselves_when_the_poster_died);
    RUN(nobody_waits_for_a_stopped_holder_longer_than_the_limit);
    RUN(an_attempt_that_does_not_wait_resigns_nothing);
    RUN(a_leader_that_cannot_publish_resigns_and_is_replaced);
    RUN(a_leader_that_cannot_abandon_resigns_and_is_replaced);
    RUN(a_leader_that_resigned_may_lead_the_same_key_again);
    RUN(a_late_resignation_does_not_touch_the_slots_next_flight);
    RUN(a_late_resignation_does_not_undo_that_of_a_later_leader);
    RUN(a_follower_that_cannot_leave_counts_as_gone);
    RUN(a_late_leave_without_the_lock_does_not_evict_the_cells_next_owner);
    RUN(the_lock_of_the_dead_is_repaired_and_given_to_the_next);
    RUN(whoever_waits_for_the_lock_gets_it_when_the_holder_dies);
    RUN(a_leader_that_cannot_seal_resigns_and_publishes_to_no_newcomer);
    RUN(a_late_post_harms_neither_the_cells_next_owner_nor_the_poster);
    return report();
}
