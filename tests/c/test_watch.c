/* Sleeping on a semaphore and on a leader's life at once, and what happens where that cannot be. */
#include <sys/syscall.h>
#include <time.h>

#include "../../shm/watch.h"
#include "rig.h"

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif

static int value_of_semaphore(sem_t *semaphore)
{
    int value;
    CHECK(sem_getvalue(semaphore, &value) == 0);
    return value;
}

/* Another process sleeps on `semaphore` and on `owner`'s life: it exits with 0 if it was woken
 * within thirty seconds, and with 3 if it was not. */
static pid_t watcher(struct uf_table *table, uint64_t owner, sem_t *semaphore)
{
    pid_t parent = getpid(), child = fork();
    if (child != 0)
        return child;
    die_with_parent(parent);
    struct uf_watch watch;
    CHECK(uf_watch_arm(table, owner, &watch));
    uint64_t end_ns = uf_now_ns() + 30 * SECOND;
    CHECK(uf_watch_sleep(&watch, semaphore, end_ns));
    _exit(uf_now_ns() < end_ns ? 0 : 3);
}

static int end_of(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

static void a_post_wakes_the_sleeper_and_is_taken(void *unused)
{
    struct rig rig = rig_of(16);
    sem_t *semaphore = shared_memory(sizeof *semaphore);
    CHECK(sem_init(semaphore, 1, 0) == 0);
    pid_t child = watcher(&rig.table, rig.me.owner, semaphore);
    await_sleep_on(semaphore, child);
    CHECK(sem_post(semaphore) == 0);
    CHECK_INT(end_of(child), 0);
    CHECK_INT(value_of_semaphore(semaphore), 0);
    CHECK_INT(sleepers_of(semaphore), 0);
    rig_end(&rig);
    (void)unused;
}

static void a_post_before_the_sleep_is_not_slept_over(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_watch watch;
    sem_t semaphore;
    CHECK(sem_init(&semaphore, 1, 1) == 0);
    CHECK(uf_watch_arm(&rig.table, rig.me.owner, &watch));
    uint64_t end_ns = uf_now_ns() + 30 * SECOND;
    CHECK(uf_watch_sleep(&watch, &semaphore, end_ns));
    CHECK(uf_now_ns() < end_ns);
    CHECK_INT(value_of_semaphore(&semaphore), 0);
    rig_end(&rig);
    (void)unused;
}

static void the_sleep_ends_at_its_time(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_watch watch;
    sem_t semaphore;
    CHECK(sem_init(&semaphore, 1, 0) == 0);
    CHECK(uf_watch_arm(&rig.table, rig.me.owner, &watch));
    uint64_t end_ns = uf_now_ns() + 5 * MILLISECOND;
    CHECK(uf_watch_sleep(&watch, &semaphore, end_ns));
    CHECK(uf_now_ns() >= end_ns);
    rig_end(&rig);
    (void)unused;
}

static void let_it_pass(int signal)
{
    (void)signal;
}

static void a_signal_ends_the_sleep_and_says_so(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_watch watch;
    sem_t semaphore;
    const struct sigaction action = {.sa_handler = let_it_pass};
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    const struct itimerspec soon = {.it_value = {.tv_nsec = 20 * MILLISECOND},
                                    .it_interval = {.tv_nsec = 20 * MILLISECOND}};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(sem_init(&semaphore, 1, 0) == 0);
    CHECK(uf_watch_arm(&rig.table, rig.me.owner, &watch));
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    CHECK(timer_settime(timer, 0, &soon, NULL) == 0);
    CHECK(!uf_watch_sleep(&watch, &semaphore, uf_now_ns() + 10 * SECOND));
    timer_delete(timer);
    CHECK_INT(sleepers_of(&semaphore), 0);
    rig_end(&rig);
    (void)unused;
}

/* One thread can lead several flights, one inside the other; the kernel wakes one sleeper. */
static void the_end_of_the_thread_wakes_everybody_who_watches_it(void *unused)
{
    enum { WATCHERS = 5 };
    struct rig rig = rig_of(16);
    struct actor leader = actor_process(&rig.table);
    sem_t *semaphores = shared_memory(WATCHERS * sizeof *semaphores);
    pid_t children[WATCHERS];
    for (int i = 0; i < WATCHERS; i++) {
        CHECK(sem_init(&semaphores[i], 1, 0) == 0);
        children[i] = watcher(&rig.table, leader.owner, &semaphores[i]);
    }
    for (int i = 0; i < WATCHERS; i++)
        await_sleep_on(&semaphores[i], children[i]);
    actor_kill(&leader);
    for (int i = 0; i < WATCHERS; i++)
        CHECK_INT(end_of(children[i]), 0);
    rig_end(&rig);
    (void)unused;
}

static void a_sleeper_that_is_killed_takes_nothing_with_it(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor leader = actor_process(&rig.table);
    sem_t *semaphores = shared_memory(2 * sizeof *semaphores);
    CHECK(sem_init(&semaphores[0], 1, 0) == 0 && sem_init(&semaphores[1], 1, 0) == 0);
    pid_t one = watcher(&rig.table, leader.owner, &semaphores[0]);
    await_sleep_on(&semaphores[0], one);
    CHECK(kill(one, SIGKILL) == 0);
    CHECK(WIFSIGNALED(end_of(one)));
    pid_t two = watcher(&rig.table, leader.owner, &semaphores[1]);
    await_sleep_on(&semaphores[1], two);
    actor_kill(&leader);
    CHECK_INT(end_of(two), 0);
    rig_end(&rig);
    (void)unused;
}

static void whoever_is_gone_is_not_watched(void *unused)
{
    struct rig rig = rig_of(16);
    struct actor one = actor_process(&rig.table), two = actor_process(&rig.table);
    struct uf_watch watch;
    uint64_t released = two.owner, former = rig.me.owner - (UINT64_C(1) << UF_OWNER_BITS);
    CHECK(uf_watch_arm(&rig.table, one.owner, &watch));
    actor_kill(&one);
    CHECK(!uf_watch_arm(&rig.table, one.owner, &watch)); /* nobody has taken its lock since */
    CHECK(!uf_is_alive(&rig.table, one.owner));
    CHECK(!uf_watch_arm(&rig.table, one.owner, &watch));
    actor_exit(&two);
    CHECK(!uf_watch_arm(&rig.table, released, &watch));
    CHECK(!uf_watch_arm(&rig.table, former, &watch));
    CHECK(!uf_watch_arm(&rig.table, 0, &watch));
    CHECK(!uf_watch_arm(&rig.table, 0xffff, &watch));
    rig_end(&rig);
    (void)unused;
}

/* Being watched leaves a mark in the word of the lock, which is libc's. */
static void a_life_lock_that_was_watched_can_be_released_and_claimed_again(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_watch watch;
    for (int i = 0; i < 100; i++) {
        struct actor one = actor_process(&rig.table);
        CHECK(uf_watch_arm(&rig.table, one.owner, &watch));
        CHECK(uf_is_alive(&rig.table, one.owner));
        if (i % 2)
            actor_exit(&one);
        else
            actor_kill(&one);
        CHECK(!uf_is_alive(&rig.table, one.owner));
    }
    rig_end(&rig);
    (void)unused;
}

/* What an older kernel, or a sandbox, answers. */
static void forbid_waiting_for_two_words(void)
{
    forbid_calls(ENOSYS, SYS_futex_waitv, SYS_futex_waitv);
}

static void where_the_kernel_cannot_watch_the_first_waiter_looks(void *unused)
{
    forbid_waiting_for_two_words();
    struct rig rig = rig_of(16);
    struct actor leader = actor_process(&rig.table), follower = actor_process(&rig.table);
    struct uf_watch watch;
    CHECK(!uf_watch_arm(&rig.table, rig.me.owner, &watch));
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    struct answer joined = ask(&follower, ACT_BEGIN, "k");
    CHECK_INT(joined.status, UF_FOLLOWER);
    tell_wait(&follower, 10 * SECOND);
    await_sleep_on(semaphore_of(&rig, &joined), follower.pid);
    actor_kill(&leader);
    CHECK_INT(hear(&follower).status, UF_LEADERLESS);
    CHECK_INT(take_over(&follower), UF_LEADER);
    CHECK_INT(finish(&follower, ""), UF_OK);
    actor_exit(&follower);
    rig_reap_and_end(&rig);
    (void)unused;
}

static void a_kernel_that_stops_to_watch_is_asked_once(void *unused)
{
    struct rig rig = rig_of(16);
    struct uf_watch watch;
    sem_t semaphore;
    CHECK(sem_init(&semaphore, 1, 0) == 0);
    CHECK(uf_watch_arm(&rig.table, rig.me.owner, &watch));
    forbid_waiting_for_two_words();
    CHECK(uf_watch_sleep(&watch, &semaphore, uf_now_ns() + 10 * SECOND)); /* at once */
    CHECK(!uf_watch_arm(&rig.table, rig.me.owner, &watch));
    CHECK_INT(sleepers_of(&semaphore), 0);
    rig_end(&rig);
    (void)unused;
}

int main(void)
{
    RUN(a_post_wakes_the_sleeper_and_is_taken);
    RUN(a_post_before_the_sleep_is_not_slept_over);
    RUN(the_sleep_ends_at_its_time);
    RUN(a_signal_ends_the_sleep_and_says_so);
    RUN(the_end_of_the_thread_wakes_everybody_who_watches_it);
    RUN(a_sleeper_that_is_killed_takes_nothing_with_it);
    RUN(whoever_is_gone_is_not_watched);
    RUN(a_life_lock_that_was_watched_can_be_released_and_claimed_again);
    RUN(where_the_kernel_cannot_watch_the_first_waiter_looks);
    RUN(a_kernel_that_stops_to_watch_is_asked_once);
    return report();
}
