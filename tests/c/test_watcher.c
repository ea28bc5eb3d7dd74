/* The thread that watches leaders for a process's event loops. */
#include <dirent.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "../../shm/futex.h"
#include "../../shm/watcher.h"
#include "loop.h"
#include "rig.h"

/* Who would be rung would have been by then: another loop that waited for the same was. */
static bool is_quiet(const struct loop *loop)
{
    return !is_rung_within(loop, 20);
}

static bool watches(struct rig *rig, const struct actor *leader, const struct loop *loop)
{
    return uf_watcher_add(&rig->table, leader->owner, loop->doorbell);
}

static int threads(void)
{
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks);
    while (readdir(tasks))
        count++;
    closedir(tasks);
    return count - 2; /* . and .. */
}

static bool comes_to(int (*number)(void), int expected)
{
    for (int i = 0; i < 10000 && number() != expected; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10 * MILLISECOND}, NULL);
    return number() == expected;
}

static void a_loop_is_rung_when_its_leader_is_killed(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop loop = loop_of(1);
    for (int i = 0; i < 50; i++) {
        struct actor leader = actor_process(&rig.table);
        CHECK(watches(&rig, &leader, &loop));
        CHECK(watches(&rig, &leader, &loop));
        actor_kill(&leader);
        CHECK(is_rung(&loop));
        CHECK(!watches(&rig, &leader, &loop));
    }
    rig_end(&rig);
    (void)unused;
}

static void a_loop_is_rung_when_its_leader_releases_its_record(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop loop = loop_of(1);
    for (int i = 0; i < 50; i++) {
        struct actor leader = i % 2 ? actor_process(&rig.table) : actor_thread(&rig.table);
        CHECK(watches(&rig, &leader, &loop));
        actor_exit(&leader);
        CHECK(is_rung(&loop));
    }
    rig_end(&rig);
    (void)unused;
}

static void only_the_loops_that_wait_for_a_leader_are_rung(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop one = loop_of(1), two = loop_of(2), both = loop_of(3);
    struct actor first = actor_process(&rig.table), second = actor_process(&rig.table);
    CHECK(watches(&rig, &first, &one) && watches(&rig, &first, &both));
    CHECK(watches(&rig, &second, &two) && watches(&rig, &second, &both));
    actor_kill(&first);
    CHECK(is_rung(&one) && is_rung(&both));
    CHECK(is_quiet(&two));
    actor_kill(&second);
    CHECK(is_rung(&two) && is_rung(&both));
    CHECK(is_quiet(&one));
    rig_end(&rig);
    (void)unused;
}

static void a_loop_that_waits_no_more_is_not_rung(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop gone = loop_of(1), waiting = loop_of(2);
    struct actor leader = actor_process(&rig.table);
    CHECK(watches(&rig, &leader, &gone) && watches(&rig, &leader, &waiting));
    uf_watcher_forget_loop(gone.doorbell);
    actor_kill(&leader);
    CHECK(is_rung(&waiting));
    CHECK(is_quiet(&gone));
    uf_watcher_forget_loop(gone.doorbell);
    rig_end(&rig);
    (void)unused;
}

static void leaders_in_memory_that_goes_are_forgotten(void *unused)
{
    struct rig rig = rig_of(16), other = rig_of(16);
    struct loop loop = loop_of(1), waiting = loop_of(2);
    struct actor going = actor_process(&rig.table), staying = actor_process(&other.table);
    CHECK(watches(&rig, &going, &loop) && watches(&other, &staying, &waiting));
    uf_watcher_forget_memory(rig.table.base, rig.table.bytes);
    actor_kill(&going);
    actor_kill(&staying);
    CHECK(is_rung(&waiting));
    CHECK(is_quiet(&loop));
    rig_end(&rig);
    rig_end(&other);
    (void)unused;
}

/* As a table that is closed; the thread may sleep on a word in it at that moment. */
static void memory_goes_while_the_watcher_sleeps_on_it(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop loop = loop_of(1);
    for (int i = 0; i < 200; i++) {
        struct uf_table going;
        table_create(&going, 64, 16, 16, 256);
        struct actor leader = actor_process(&going), other = actor_process(&rig.table);
        CHECK(uf_watcher_add(&going, leader.owner, loop.doorbell));
        actor_kill(&leader);
        uf_watcher_forget_memory(going.base, going.bytes);
        void *base = going.base;
        size_t bytes = going.bytes;
        uf_table_detach(&going);
        CHECK(munmap(base, bytes) == 0);
        uf_take_rings(loop.fd); /* it may have been told in time */
        CHECK(watches(&rig, &other, &loop));
        actor_kill(&other);
        CHECK(is_rung(&loop));
    }
    rig_end(&rig);
    (void)unused;
}

static void threads_that_sleep_on_the_same_leader_are_woken_as_well(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop loop = loop_of(1);
    struct actor leader = actor_process(&rig.table), follower = actor_process(&rig.table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    struct answer joined = ask(&follower, ACT_BEGIN, "k");
    CHECK_INT(joined.status, UF_FOLLOWER);
    CHECK(watches(&rig, &leader, &loop));
    tell_wait(&follower, 30 * SECOND);
    uint32_t group = uf_group_of(joined.flight.slot);
    await_sleep_on(&uf_cell(&rig.table, group, joined.flight.cell)->semaphore, follower.pid);
    actor_kill(&leader);
    CHECK_INT(hear(&follower).status, UF_LEADERLESS);
    CHECK(is_rung(&loop));
    CHECK_INT(take_over(&follower), UF_LEADER);
    CHECK_INT(finish(&follower, ""), UF_OK);
    actor_exit(&follower);
    rig_reap_and_end(&rig);
    (void)unused;
}

/* Those that no loop waits for any more make room for others. */
static void as_many_leaders_are_watched_as_the_kernel_allows(void *unused)
{
    struct rig rig;
    table_create(&rig.table, 64, 16, 2 * UF_MOST_WATCHED + 2, 256);
    rig.me = caller_of(claim(&rig.table));
    struct loop loop = loop_of(1), other = loop_of(2);
    struct actor leaders[2 * UF_MOST_WATCHED];
    for (uint32_t i = 0; i < 2 * UF_MOST_WATCHED; i++)
        leaders[i] = actor_thread(&rig.table);
    for (uint32_t i = 0; i < 2 * UF_MOST_WATCHED; i++)
        CHECK(watches(&rig, &leaders[i], &loop) == (i < UF_MOST_WATCHED));
    CHECK(watches(&rig, &leaders[7], &other));
    uf_watcher_forget_loop(loop.doorbell);
    for (uint32_t i = UF_MOST_WATCHED; i < 2 * UF_MOST_WATCHED; i++)
        CHECK(watches(&rig, &leaders[i], &loop) == (i < 2 * UF_MOST_WATCHED - 1));
    for (uint32_t i = 0; i < UF_MOST_WATCHED; i++)
        actor_exit(&leaders[i]);
    CHECK(is_rung(&other));
    CHECK(is_quiet(&loop));
    actor_exit(&leaders[UF_MOST_WATCHED]);
    CHECK(is_rung(&loop));
    for (uint32_t i = UF_MOST_WATCHED + 1; i < 2 * UF_MOST_WATCHED; i++)
        actor_exit(&leaders[i]);
    rig_end(&rig);
    (void)unused;
}

/* How often the watcher has gone to sleep. */
static long sleeps_of_the_watcher(void)
{
    long sleeps = -1;
    struct dirent *task;
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks);
    while ((task = readdir(tasks))) {
        char path[300], line[200];
        snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
        FILE *status = atoi(task->d_name) == getpid() ? NULL : fopen(path, "r");
        while (status && fgets(line, sizeof line, status))
            sscanf(line, "voluntary_ctxt_switches: %ld", &sleeps);
        if (status)
            fclose(status);
    }
    closedir(tasks);
    return sleeps;
}

/* But by the end of its rounds. */
static void the_watcher_sleeps_on_while_loops_wait_for_leaders_that_it_knows(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop loop = loop_of(1);
    struct actor leaders[] = {actor_process(&rig.table), actor_process(&rig.table)};
    long before = 0;
    uint64_t start_ns = uf_now_ns();
    for (int i = 0; i < 60; i++) {
        CHECK(watches(&rig, &leaders[i % 2], &loop));
        uf_watcher_forget_loop(loop.doorbell);
        nanosleep(&(struct timespec){.tv_nsec = 2 * MILLISECOND}, NULL);
        while (i == 9 && (before = sleeps_of_the_watcher()) <= 0) /* it may start late */
            nanosleep(&(struct timespec){.tv_nsec = 2 * MILLISECOND}, NULL);
    }
    long rounds = (long)((uf_now_ns() - start_ns) / SECOND);
    CHECK(sleeps_of_the_watcher() - before < 25 + rounds);
    actor_kill(&leaders[0]);
    actor_kill(&leaders[1]);
    rig_end(&rig);
    (void)unused;
}

static void more_loops_than_can_be_watched_for_have_to_look(void *unused)
{
    struct rig rig = rig_of(16);
    unsigned char doorbell[UF_DOORBELL_BYTES] = {0};
    uint32_t added = 0;
    for (; doorbell[0] < 255 && uf_watcher_add(&rig.table, rig.me.owner, doorbell); added++)
        doorbell[0]++;
    CHECK_INT(added, 64);
    doorbell[0] = 5;
    uf_watcher_forget_loop(doorbell);
    doorbell[0] = 255;
    CHECK(uf_watcher_add(&rig.table, rig.me.owner, doorbell));
    rig_end(&rig);
    (void)unused;
}

static void the_thread_ends_when_nobody_waits_and_comes_back(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop loop = loop_of(1);
    for (int i = 0; i < 2; i++) {
        struct actor leader = actor_process(&rig.table);
        CHECK_INT(threads(), 1);
        CHECK(watches(&rig, &leader, &loop));
        CHECK_INT(threads(), 2);
        if (i == 0) /* else the loop goes without a word */
            uf_watcher_forget_loop(loop.doorbell);
        CHECK(comes_to(threads, 1));
        CHECK(watches(&rig, &leader, &loop));
        actor_kill(&leader);
        CHECK(is_rung(&loop));
        uf_watcher_forget_loop(loop.doorbell);
        CHECK(comes_to(threads, 1));
    }
    rig_end(&rig);
    (void)unused;
}

static void a_forked_child_has_a_watcher_of_its_own(void *unused)
{
    pthread_atfork(uf_watcher_before_fork, uf_watcher_after_fork_in_parent,
                   uf_watcher_after_fork_in_child);
    struct rig rig = rig_of(16);
    struct loop parents = loop_of(1), childs = loop_of(2);
    struct actor leader = actor_process(&rig.table);
    CHECK(watches(&rig, &leader, &parents));
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        die_with_parent(parent);
        CHECK_INT(threads(), 1);
        CHECK(watches(&rig, &leader, &childs));
        CHECK_INT(threads(), 2);
        CHECK(kill(leader.pid, SIGKILL) == 0);
        _exit(is_rung(&childs) ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_INT(status, 0);
    CHECK(is_rung(&parents));
    actor_reap(&leader);
    rig_end(&rig);
    (void)unused;
}

static void count_it(int signal)
{
    (void)signal;
}

/* A signal that this thread blocks for a moment stays pending, and is nobody else's. */
static void signals_are_left_to_other_threads(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop loop = loop_of(1);
    sigset_t usr1, pending;
    CHECK(signal(SIGUSR1, count_it) != SIG_ERR);
    CHECK(uf_watcher_add(&rig.table, rig.me.owner, loop.doorbell));
    CHECK_INT(threads(), 2);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &usr1, NULL) == 0);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    nanosleep(&(struct timespec){.tv_nsec = 20 * MILLISECOND}, NULL);
    CHECK(sigpending(&pending) == 0);
    CHECK_INT(sigismember(&pending, SIGUSR1), 1);
    rig_end(&rig);
    (void)unused;
}

static void *add_for_ever(void *argument)
{
    struct rig *rig = argument;
    static _Atomic unsigned char numbers;
    unsigned char doorbell[UF_DOORBELL_BYTES] = {0xff, ++numbers};
    uint64_t end_ns = uf_now_ns() + SECOND;
    while (uf_now_ns() < end_ns) {
        uf_watcher_add(&rig->table, rig->me.owner, doorbell);
        uf_watcher_forget_loop(doorbell);
    }
    return NULL;
}

static void loops_of_several_threads_come_and_go_while_leaders_end(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop loop = loop_of(1);
    pthread_t others[3];
    for (int i = 0; i < 3; i++)
        CHECK(pthread_create(&others[i], NULL, add_for_ever, &rig) == 0);
    for (int i = 0; i < 100; i++) {
        struct actor leader = actor_thread(&rig.table);
        CHECK(watches(&rig, &leader, &loop));
        actor_exit(&leader);
        CHECK(is_rung(&loop));
    }
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(others[i], NULL) == 0);
    rig_end(&rig);
    (void)unused;
}

static void without_a_thread_loops_have_to_look(void *unused)
{
    struct rig rig = rig_of(16);
    struct loop loop = loop_of(1);
    forbid_calls(EAGAIN, SYS_clone, SYS_clone3); /* what a limit on threads answers */
    CHECK(!uf_watcher_add(&rig.table, rig.me.owner, loop.doorbell));
    CHECK(!uf_watcher_add(&rig.table, rig.me.owner, loop.doorbell));
    rig_end(&rig);
    (void)unused;
    _exit(0); /* the leak checker would need a thread */
}

/* With any argument: what ThreadSanitizer is to see, which has a thread itself. */
int main(int count, char **unused)
{
    (void)unused;
    RUN(loops_of_several_threads_come_and_go_while_leaders_end);
    if (count > 1)
        return report();
    RUN(a_loop_is_rung_when_its_leader_is_killed);
    RUN(a_loop_is_rung_when_its_leader_releases_its_record);
    RUN(only_the_loops_that_wait_for_a_leader_are_rung);
    RUN(a_loop_that_waits_no_more_is_not_rung);
    RUN(leaders_in_memory_that_goes_are_forgotten);
    RUN(memory_goes_while_the_watcher_sleeps_on_it);
    RUN(threads_that_sleep_on_the_same_leader_are_woken_as_well);
    RUN(as_many_leaders_are_watched_as_the_kernel_allows);
    RUN(the_watcher_sleeps_on_while_loops_wait_for_leaders_that_it_knows);
    RUN(more_loops_than_can_be_watched_for_have_to_look);
    RUN(the_thread_ends_when_nobody_waits_and_comes_back);
    RUN(a_forked_child_has_a_watcher_of_its_own);
    RUN(signals_are_left_to_other_threads);
    RUN(without_a_thread_loops_have_to_look);
    return report();
}
