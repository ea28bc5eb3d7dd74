/* Death at every instruction; crash points only try the places that somebody thought of.
 *
 *     kill_sweep [SECONDS | --full]
 *
 * A child is single-stepped (ptrace) through an operation once, to learn the path and which
 * instructions change what outlives the child: the shared table, and the list of robust
 * mutexes by which the kernel cleans up.  Then, for every one of those, a new child runs up
 * to a breakpoint behind it and is killed there.  Between two of them all deaths are the
 * same, so the instructions in between need not be tried; --full tries them nevertheless.
 * When SECONDS (default 20) do not suffice, every n-th is tried, from a changing start. */
#include <stddef.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>

#include "support.h"

#if !defined(__x86_64__)
int main(void)
{
    printf("SKIP kill_sweep: its breakpoints are written for x86-64\n"
           "0 passed, 0 failed, 1 skipped\n");
    return 0;
}
#else

#define MOST_STEPS 200000

/* A system call is one step. The vDSO's clock is a loop that starts again after each tick of the
 * kernel, so that on a busy machine, where a step takes long, it would never come to its end. */
int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *now)
{
    return (int)syscall(SYS_clock_gettime, clock, now);
}

struct stage {
    struct uf_table table;
    struct actor sibling, leader;
    uint64_t *robust_head; /* shared: where the child's kernel keeps its list of mutexes */
};

struct operation {
    const char *name;
    /* In the director: before the child exists, and while it is stopped at its marker. */
    void (*before)(struct stage *stage);
    void (*meanwhile)(struct stage *stage);
    /* In the child: up to the first marker, and from there to the second. */
    void (*lead_in)(struct uf_table *table, struct uf_caller *me, struct uf_flight *flight);
    void (*step)(struct uf_table *table, struct uf_caller *me, struct uf_flight *flight);
    bool sibling_waits; /* for "k" */
    bool leader_leads;  /* "k", and lives to finish it */
};

/* ---- the child --------------------------------------------------------------------- */

static void begin_k(struct uf_table *table, struct uf_caller *me, struct uf_flight *flight)
{
    struct uf_key key = key_of("k");
    uf_begin(table, me, &key, flight);
}

static void finish_k(struct uf_table *table, struct uf_caller *me, struct uf_flight *flight)
{
    struct uf_remains remains;
    struct uf_result result = value_of("the child's");
    uf_finish(table, flight, &result, me->patience, &remains);
}

static void abandon_k(struct uf_table *table, struct uf_caller *me, struct uf_flight *flight)
{
    uf_abandon(table, flight, me->patience);
}

static void leave_k(struct uf_table *table, struct uf_caller *me, struct uf_flight *flight)
{
    struct uf_remains remains;
    uf_leave(table, flight, me->owner, UF_LEAVING_SERVED, me->patience, &remains);
}

static void take_over_k(struct uf_table *table, struct uf_caller *me, struct uf_flight *flight)
{
    uf_takeover(table, me, flight);
}

static void reap(struct uf_table *table, struct uf_caller *me, struct uf_flight *flight)
{
    uf_reap(table, 0, me->patience);
    (void)flight;
}

static void nothing(struct uf_table *table, struct uf_caller *me, struct uf_flight *flight)
{
    (void)table, (void)me, (void)flight;
}

static void claim_and_release(struct uf_table *table, struct uf_caller *me,
                              struct uf_flight *flight)
{
    uint64_t owner;
    if (uf_thread_claim(table, &owner) == UF_OK)
        uf_thread_release(table, owner);
    (void)me, (void)flight;
}

static void child(struct stage *stage, const struct operation *operation)
{
    struct uf_table table = stage->table;
    struct uf_flight flight;
    table.pid = (uint32_t)getpid();
    struct uf_caller me = caller_of(claim(&table));
    operation->lead_in(&table, &me, &flight);
    size_t length;
    void *head = NULL;
    syscall(SYS_get_robust_list, 0, &head, &length);
    *stage->robust_head = (uint64_t)(uintptr_t)head;
    raise(SIGSTOP);
    operation->step(&table, &me, &flight);
    raise(SIGSTOP);
}

/* ---- the director ------------------------------------------------------------------ */

static void nobody(struct stage *stage)
{
    (void)stage;
}

static void sibling_joins(struct stage *stage)
{
    CHECK_INT(begin(&stage->sibling, "k"), UF_FOLLOWER);
}

static void leader_leads(struct stage *stage)
{
    CHECK_INT(begin(&stage->leader, "k"), UF_LEADER);
}

static void leader_leads_and_sibling_joins(struct stage *stage)
{
    leader_leads(stage);
    sibling_joins(stage);
}

static void somebody_dies_with_the_next_record(struct stage *stage)
{
    struct actor actor = actor_process(&stage->table);
    actor_kill(&actor);
}

static void leader_publishes(struct stage *stage)
{
    CHECK_INT(finish(&stage->leader, "v"), UF_OK);
}

static void sibling_joins_and_leader_abandons(struct stage *stage)
{
    sibling_joins(stage);
    CHECK_INT(ask(&stage->leader, ACT_ABANDON, "").status, UF_OK);
}

static void leader_is_killed(struct stage *stage)
{
    actor_kill(&stage->leader);
    stage->leader = actor_process(&stage->table);
}

static void sibling_joins_and_leader_is_killed(struct stage *stage)
{
    sibling_joins(stage);
    leader_is_killed(stage);
}

/* Leaves the lock to be repaired, and half a publication. */
static void a_publisher_died_with_the_lock(struct stage *stage)
{
    leader_leads_and_sibling_joins(stage);
    struct order order = order_of(ACT_ARM, "");
    struct answer answer;
    order.point = UF_AT_FINISH_COPIED;
    order.action = UF_CRASH_KILL;
    tell(&stage->leader, &order);
    hear(&stage->leader);
    order = order_of(ACT_FINISH, "");
    snprintf(order.text, sizeof order.text, "lost");
    tell(&stage->leader, &order);
    CHECK(!try_hear(&stage->leader, &answer));
    actor_reap(&stage->leader);
    stage->leader = actor_process(&stage->table);
}

static const struct operation operations[] = {
    {"claim and release", leader_leads_and_sibling_joins, nobody, nothing, claim_and_release, true,
     true},
    {"claim from the dead", leader_leads_and_sibling_joins, somebody_dies_with_the_next_record,
     nothing, claim_and_release, true, true},
    {"begin", nobody, nobody, nothing, begin_k, false, false},
    {"finish alone", nobody, nobody, begin_k, finish_k, false, false},
    {"finish with a waiter", nobody, sibling_joins, begin_k, finish_k, true, false},
    {"abandon with a waiter", nobody, sibling_joins, begin_k, abandon_k, true, false},
    {"join", leader_leads_and_sibling_joins, nobody, nothing, begin_k, true, true},
    {"leave before the end", leader_leads, sibling_joins, begin_k, leave_k, true, true},
    {"leave as the last one", leader_leads, leader_publishes, begin_k, leave_k, false, false},
    {"take over an orphan", leader_leads, sibling_joins_and_leader_abandons, begin_k, take_over_k,
     true, false},
    {"take over from the dead", leader_leads, sibling_joins_and_leader_is_killed, begin_k,
     take_over_k, true, false},
    {"take over as a newcomer", leader_leads_and_sibling_joins, leader_is_killed, nothing, begin_k,
     true, false},
    {"repair", nobody, a_publisher_died_with_the_lock, nothing, reap, true, false},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

/* Whoever waits for "k" ends with a value, of whomever; a takeover happens at most once. */
static void judge_sibling(struct stage *stage, const struct operation *operation)
{
    struct actor *sibling = &stage->sibling;
    if (operation->leader_leads)
        CHECK_INT(finish(&stage->leader, "v"), UF_OK);
    enum uf_status status;
    while ((status = await(sibling)) != UF_DONE) {
        CHECK_INT(status, UF_LEADERLESS);
        status = ask(sibling, ACT_TAKEOVER, "").status;
        if (status == UF_LEADER) {
            CHECK(!operation->leader_leads);
            CHECK_INT(finish(sibling, "sibling's"), UF_OK);
            return;
        }
        CHECK(status == UF_PENDING || status == UF_DONE);
    }
    const char *text = fetch(sibling);
    CHECK(strcmp(text, operation->leader_leads ? "v" : "the child's") == 0);
}

/* The same path for the next child, whichever records this one has left to be inherited. */
static void tidy_records(struct uf_table *table)
{
    uint64_t owners[8];
    int count = 0;
    while (count < 8 && uf_thread_claim(table, &owners[count]) == UF_OK)
        count++;
    while (count > 0)
        uf_thread_release(table, owners[--count]);
}

static void judge(struct stage *stage, const struct operation *operation)
{
    if (operation->sibling_waits)
        judge_sibling(stage, operation);
    CHECK_INT(begin(&stage->leader, "k"), UF_LEADER); /* a newcomer works */
    CHECK_INT(begin(&stage->sibling, "k"), UF_FOLLOWER);
    CHECK_INT(finish(&stage->leader, "new"), UF_OK);
    CHECK(strcmp(fetch(&stage->sibling), "new") == 0);
    reap_all(&stage->table);
    check_empty(&stage->table);
    tidy_records(&stage->table);
}

/* ---- stepping ---------------------------------------------------------------------- */

struct path {
    long length;
    uint64_t pc[MOST_STEPS];      /* before the instruction */
    bool differs[MOST_STEPS];     /* from what the instruction before left behind */
};

static uint64_t where(pid_t pid)
{
    struct user_regs_struct registers;
    CHECK(ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0);
    return registers.rip;
}

/* The signal at which the child stops; 0 if it is gone. */
static int resume(pid_t pid, enum __ptrace_request how)
{
    int status;
    CHECK(ptrace(how, pid, NULL, NULL) == 0);
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFSTOPPED(status) ? WSTOPSIG(status) : 0;
}

/* A child that is stopped at its first marker. */
static pid_t start(struct stage *stage, const struct operation *operation)
{
    int status;
    pid_t parent = getpid();
    operation->before(stage);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        die_with_parent(parent);
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        child(stage, operation);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    operation->meanwhile(stage);
    return pid;
}

static void end(pid_t pid)
{
    int status;
    CHECK(kill(pid, SIGKILL) == 0);
    CHECK(waitpid(pid, &status, 0) == pid);
}

struct aftermath {
    long robust_list[3]; /* first mutex, offset, the mutex being locked or unlocked */
    unsigned char *table;
};

static bool aftermath_changed(struct stage *stage, pid_t pid, struct aftermath *seen)
{
    bool changed = memcmp(seen->table, stage->table.base, stage->table.bytes) != 0;
    memcpy(seen->table, stage->table.base, stage->table.bytes);
    for (int i = 0; i < 3 && *stage->robust_head; i++) {
        long word = ptrace(PTRACE_PEEKDATA, pid, *stage->robust_head + 8 * (uint64_t)i, NULL);
        changed |= word != seen->robust_list[i];
        seen->robust_list[i] = word;
    }
    return changed;
}

static void learn(struct stage *stage, const struct operation *operation, struct path *path)
{
    struct aftermath seen = {.table = calloc(1, stage->table.bytes)};
    CHECK(seen.table != NULL);
    pid_t pid = start(stage, operation);
    int stopped_by = SIGTRAP;
    for (path->length = 0; stopped_by == SIGTRAP; path->length++) {
        CHECK(path->length < MOST_STEPS);
        path->pc[path->length] = where(pid);
        path->differs[path->length] = aftermath_changed(stage, pid, &seen);
        stopped_by = resume(pid, PTRACE_SINGLESTEP);
    }
    CHECK_INT(stopped_by, SIGSTOP); /* the second marker */
    end(pid);
    free(seen.table);
}

static void poke_byte(pid_t pid, uint64_t address, unsigned char byte)
{
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, pid, address, NULL);
    CHECK(errno == 0);
    CHECK(ptrace(PTRACE_POKETEXT, pid, address, (word & ~0xffL) | byte) == 0);
}

static void step_back(pid_t pid)
{
    struct user_regs_struct registers;
    CHECK(ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0);
    registers.rip--;
    CHECK(ptrace(PTRACE_SETREGS, pid, NULL, &registers) == 0);
}

/* Lets the child run until it is about to execute the instruction at `pc` for the
 * `passes`+1st time. False if it came to its end before. */
static bool run_to(pid_t pid, uint64_t pc, long passes)
{
    unsigned char original = (unsigned char)ptrace(PTRACE_PEEKTEXT, pid, pc, NULL);
    for (; where(pid) != pc || passes-- > 0;) {
        int stopped_by = SIGTRAP;
        if (where(pid) == pc)
            stopped_by = resume(pid, PTRACE_SINGLESTEP);
        if (stopped_by == SIGTRAP && where(pid) != pc) {
            poke_byte(pid, pc, 0xcc); /* int3 */
            stopped_by = resume(pid, PTRACE_CONT);
            poke_byte(pid, pc, original);
            if (stopped_by == SIGTRAP)
                step_back(pid);
        }
        if (stopped_by != SIGTRAP)
            return false;
    }
    return true;
}

/* ---- the sweep --------------------------------------------------------------------- */

struct sweep {
    const struct operation *operation;
    uint64_t budget_ns; /* 0: no limit */
    bool everywhere;
};

static long passes_before(const struct path *path, long k)
{
    long passes = 0;
    for (long i = 0; i < k; i++)
        passes += path->pc[i] == path->pc[k];
    return passes;
}

static void no_instruction_is_a_bad_one_to_die_at(void *argument)
{
    const struct sweep *sweep = argument;
    static struct path path;
    struct stage stage;
    long targets = 0, tried = 0, missed = 0, stride = 1, next = 0;
    alarm(sweep->budget_ns ? WATCHDOG_SECONDS + 3 * (unsigned)(sweep->budget_ns / SECOND) : 3600);
    table_create(&stage.table, 64, 4, 8, 64);
    stage.robust_head = shared_memory(sizeof *stage.robust_head);
    stage.sibling = actor_process(&stage.table);
    stage.leader = actor_process(&stage.table);
    learn(&stage, sweep->operation, &path);
    judge(&stage, sweep->operation);
    for (long k = 0; k < path.length; k++)
        targets += path.differs[k] || sweep->everywhere;
    uint64_t start_ns = uf_now_ns();
    for (long k = 0, target = 0; k < path.length; k++) {
        if (!path.differs[k] && !sweep->everywhere)
            continue;
        if (target++ < next)
            continue;
        pid_t pid = start(&stage, sweep->operation);
        missed += !run_to(pid, path.pc[k], passes_before(&path, k));
        end(pid);
        judge(&stage, sweep->operation);
        tried++;
        if (sweep->budget_ns && tried == 8) { /* enough to know what one costs */
            uint64_t cost_ns = (uf_now_ns() - start_ns) / 8 * (uint64_t)targets;
            stride += (long)(cost_ns / sweep->budget_ns);
            next = target + (long)(start_ns % (uint64_t)stride);
        } else {
            next += stride;
        }
    }
    printf("%-24s %5ld instructions, %4ld matter, died at %ld (%ld missed), %.1f s\n",
           sweep->operation->name, path.length, targets, tried, missed,
           (double)(uf_now_ns() - start_ns) / 1e9);
    /* A loop that depends on the clock may not come by there again, once in a while. */
    CHECK(missed * 5 <= tried);
    actor_exit(&stage.sibling);
    actor_exit(&stage.leader);
    uf_table_detach(&stage.table);
}

/* NULL if a child can be single-stepped here, else why not. */
static const char *refusal(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(1);
        raise(SIGSTOP);
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return "no child to trace";
    if (!WIFSTOPPED(status))
        return "PTRACE_TRACEME is refused";
    bool steps = ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0 &&
                 waitpid(pid, &status, 0) == pid && WIFSTOPPED(status);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return steps ? NULL : "PTRACE_SINGLESTEP is refused";
}

int main(int count, char **arguments)
{
    bool full = count > 1 && strcmp(arguments[1], "--full") == 0;
    double seconds = count > 1 && !full ? strtod(arguments[1], NULL) : 20;
    const char *reason = refusal();
    if (reason) {
        printf("SKIP kill_sweep: %s\n0 passed, 0 failed, %d skipped\n", reason, OPERATIONS);
        return 0;
    }
    for (int i = 0; i < OPERATIONS; i++) {
        struct sweep sweep = {&operations[i], 0, full};
        if (!full)
            sweep.budget_ns = (uint64_t)(seconds * 1e9 / OPERATIONS) + 1;
        run_test(operations[i].name, no_instruction_is_a_bad_one_to_die_at, &sweep);
    }
    return report();
}
#endif
