#include "support.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "../../shm/digest.h"

/* ---- tables ----------------------------------------------------------------------- */

void *shared_memory(size_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    return base;
}

void table_create(struct uf_table *table, uint32_t flights, uint32_t waiters, uint32_t threads,
                  uint32_t inline_bytes)
{
    struct uf_limits limits = {flights, waiters, threads, inline_bytes, 1 << 20};
    uint64_t bytes = uf_segment_bytes(&limits);
    CHECK(bytes != 0);
    void *base = shared_memory(bytes);
    uf_table_create(base, &limits, (const uint8_t *)"0123456789abcdef");
    CHECK_INT(uf_table_attach(table, base, bytes), UF_ATTACHED);
}

struct uf_caller caller_of(uint64_t owner)
{
    return (struct uf_caller){owner, UF_NO_LEASE, 3, UF_WAIT, NULL};
}

uint64_t claim(struct uf_table *table)
{
    uint64_t owner = 0;
    CHECK_INT(uf_thread_claim(table, &owner), UF_OK);
    return owner;
}

struct uf_key key_of(const char *text)
{
    return (struct uf_key){text, (uint32_t)strlen(text)};
}

struct uf_result value_of(const char *text)
{
    return (struct uf_result){.kind = UF_PAYLOAD_VALUE, .data = text, .bytes = strlen(text)};
}

uint32_t group_of_key(const struct uf_table *table, const char *key)
{
    return (uint32_t)uf_siphash(table->hash_key, key, strlen(key)) & (table->groups - 1);
}

void check_all(struct uf_table *table)
{
    struct uf_fault fault;
    for (uint32_t i = 0; i < table->groups; i++) {
        CHECK_INT(uf_group_lock(table, i, UF_WAIT), UF_OK);
        if (!uf_group_check_locked(table, i, &fault)) {
            fprintf(stderr, "group %u slot %u: %s\n", i, fault.slot, fault.what);
            _exit(1);
        }
        uf_group_unlock(table, i);
    }
}

void reap_all(struct uf_table *table)
{
    for (uint32_t i = 0; i < table->groups; i++)
        CHECK_INT(uf_reap(table, i, UF_WAIT), UF_OK);
}

void check_empty(struct uf_table *table)
{
    struct uf_usage usage;
    check_all(table);
    uf_usage(table, &usage);
    CHECK_INT(usage.slots, 0);
    CHECK_INT(usage.cells, 0);
    for (uint32_t i = 0; i < table->groups; i++)
        CHECK_INT(UF_LOAD(uf_group(table, i)->attached), 0);
}

/* ---- processes that sleep --------------------------------------------------------- */

void forbid_calls(int error, unsigned int one, unsigned int other)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, one, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, other, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned int)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

unsigned int sleepers_of(sem_t *semaphore)
{
    return UF_LOAD(((_Atomic unsigned int *)semaphore)[1]);
}

/* As the kernel has it in /proc/PID/stat: 'R' for running, 'S' for asleep ... */
static char state_of(pid_t pid)
{
    char path[32], state = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    CHECK(fscanf(file, "%*d (%*[^)]) %c", &state) == 1);
    fclose(file);
    return state;
}

void await_sleep_on(sem_t *semaphore, pid_t pid)
{
    uint64_t end_ns = uf_now_ns() + 20 * SECOND;
    /* A sleeper is counted a little before it sleeps. */
    while (sleepers_of(semaphore) == 0 || state_of(pid) != 'S') {
        if (uf_now_ns() > end_ns) {
            fprintf(stderr, "not within 20 s: process %d, of state '%c', sleeps on a semaphore\n",
                    (int)pid, state_of(pid));
            _exit(1);
        }
        usleep(1000);
    }
}

/* ---- the actor's side ------------------------------------------------------------- */

struct role {
    struct uf_table *table;
    int fd;
    uint64_t owner;
    struct uf_flight flight;
};

static void do_view(struct role *role, struct answer *answer)
{
    struct uf_view view;
    answer->status = uf_view(role->table, &role->flight, &view);
    if (answer->status != UF_OK)
        return;
    answer->kind = view.kind;
    answer->value = view.value;
    answer->followers = view.followers;
    answer->deaths = view.deaths;
    if (view.data) {
        CHECK(view.bytes < sizeof answer->text);
        memcpy(answer->text, view.data, view.bytes);
        answer->sum_is_right = uf_checksum(view.data, view.bytes) == view.sum;
    }
}

static void do_finish(struct role *role, const struct order *order, struct answer *answer)
{
    struct uf_result result = {.kind = order->kind,
                               .data = order->text[0] ? order->text : NULL,
                               .bytes = strlen(order->text),
                               .value = order->with_object ? &role->flight : NULL};
    answer->status =
        uf_finish(role->table, &role->flight, &result, UF_WAIT, &answer->remains);
}

static void act(struct role *role, const struct order *order, struct answer *answer)
{
    struct uf_table *table = role->table;
    struct uf_key key = key_of(order->key);
    struct uf_caller caller = {role->owner, order->lease_ns, order->max_takeovers, UF_WAIT, NULL};
    switch (order->act) {
    case ACT_BEGIN:
        answer->status = uf_begin(table, &caller, &key, &role->flight);
        break;
    case ACT_WAIT:
        answer->status =
            uf_wait(table, &role->flight, role->owner, uf_now_ns() + order->timeout_ns);
        break;
    case ACT_VIEW:
        do_view(role, answer);
        break;
    case ACT_FINISH:
        do_finish(role, order, answer);
        break;
    case ACT_ABANDON:
        answer->status = uf_abandon(table, &role->flight, UF_WAIT);
        break;
    case ACT_LEAVE:
        answer->status = uf_leave(table, &role->flight, role->owner,
                                  order->timed_out ? UF_LEAVING_TIMED_OUT : UF_LEAVING_SERVED, UF_WAIT,
                                  &answer->remains);
        break;
    case ACT_TAKEOVER:
        answer->status = uf_takeover(table, &caller, &role->flight);
        break;
    case ACT_FORGET:
        answer->status = uf_forget(table, &key, UF_WAIT, &answer->found);
        break;
    case ACT_REAP:
        answer->status = uf_reap(table, order->group, UF_WAIT);
        break;
    case ACT_CLAIM:
        answer->status = uf_thread_claim(table, &role->owner);
        answer->owner = role->owner;
        break;
    case ACT_RELEASE:
        uf_thread_release(table, role->owner);
        break;
    case ACT_ARM:
#ifdef UNIFLIGHT_CRASH_POINTS
        uf_crash_arm(order->point, (enum uf_crash_action)order->action);
#else
        CHECK(!"built without crash points");
#endif
        break;
    case ACT_LOCK_AND_STOP:
        answer->status = uf_group_lock(table, order->group, UF_WAIT);
        raise(SIGSTOP);
        uf_group_unlock(table, order->group);
        break;
    case ACT_LOCK_AND_DIE:
        answer->status = uf_group_lock(table, order->group, UF_WAIT);
        raise(SIGKILL);
        break;
    case ACT_EXIT:
        break;
    }
    answer->flight = role->flight;
}

static void perform(struct role *role)
{
    struct order order;
    for (;;) {
        if (recv(role->fd, &order, sizeof order, 0) != sizeof order)
            return;
        struct answer answer = {.status = UF_OK};
        act(role, &order, &answer);
        if (send(role->fd, &answer, sizeof answer, MSG_NOSIGNAL) != sizeof answer ||
            order.act == ACT_EXIT)
            return;
    }
}

static void *perform_in_thread(void *argument)
{
    struct role role = *(struct role *)argument;
    free(argument);
    perform(&role);
    close(role.fd);
    return NULL;
}

/* ---- the director's side ---------------------------------------------------------- */

static void claim_for(struct actor *actor)
{
    struct answer answer = ask(actor, ACT_CLAIM, "");
    CHECK_INT(answer.status, UF_OK);
    actor->owner = answer.owner;
}

struct actor actor_process_unclaimed(struct uf_table *table)
{
    int fds[2];
    pid_t parent = getpid();
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
    struct actor actor = {.fd = fds[0]};
    actor.pid = fork();
    CHECK(actor.pid >= 0);
    if (actor.pid == 0) {
        die_with_parent(parent);
        close(fds[0]);
        struct uf_table own = *table;
        own.pid = (uint32_t)getpid();
        struct role role = {.table = &own, .fd = fds[1]};
        perform(&role);
        _exit(0);
    }
    close(fds[1]);
    return actor;
}

struct actor actor_process(struct uf_table *table)
{
    struct actor actor = actor_process_unclaimed(table);
    claim_for(&actor);
    return actor;
}

struct actor actor_thread(struct uf_table *table)
{
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0);
    struct actor actor = {.fd = fds[0]};
    struct role *role = calloc(1, sizeof *role);
    CHECK(role != NULL);
    *role = (struct role){.table = table, .fd = fds[1]};
    CHECK(pthread_create(&actor.thread, NULL, perform_in_thread, role) == 0);
    claim_for(&actor);
    return actor;
}

struct order order_of(enum act act, const char *key)
{
    struct order order = {.act = act, .kind = UF_PAYLOAD_VALUE, .timeout_ns = 30 * SECOND,
                          .lease_ns = UF_NO_LEASE, .max_takeovers = 3};
    snprintf(order.key, sizeof order.key, "%s", key);
    return order;
}

void tell(struct actor *actor, const struct order *order)
{
    CHECK(send(actor->fd, order, sizeof *order, MSG_NOSIGNAL) == sizeof *order);
}

bool try_hear(struct actor *actor, struct answer *answer)
{
    return recv(actor->fd, answer, sizeof *answer, 0) == sizeof *answer;
}

struct answer hear(struct actor *actor)
{
    struct answer answer;
    CHECK(try_hear(actor, &answer));
    return answer;
}

struct answer ask(struct actor *actor, enum act act, const char *key)
{
    struct order order = order_of(act, key);
    tell(actor, &order);
    return hear(actor);
}

enum uf_status begin(struct actor *actor, const char *key)
{
    return ask(actor, ACT_BEGIN, key).status;
}

enum uf_status finish(struct actor *actor, const char *text)
{
    struct order order = order_of(ACT_FINISH, "");
    snprintf(order.text, sizeof order.text, "%s", text);
    tell(actor, &order);
    return hear(actor).status;
}

void tell_wait(struct actor *actor, uint64_t timeout_ns)
{
    struct order order = order_of(ACT_WAIT, "");
    order.timeout_ns = timeout_ns;
    tell(actor, &order);
}

enum uf_status await(struct actor *actor)
{
    return ask(actor, ACT_WAIT, "").status;
}

const char *fetch(struct actor *actor)
{
    static char text[64];
    CHECK_INT(await(actor), UF_DONE);
    struct answer answer = ask(actor, ACT_VIEW, "");
    CHECK_INT(answer.status, UF_OK);
    CHECK_INT(answer.kind, UF_PAYLOAD_VALUE);
    CHECK(answer.sum_is_right);
    memcpy(text, answer.text, sizeof text);
    CHECK_INT(ask(actor, ACT_LEAVE, "").status, UF_OK);
    return text;
}

static void await_end(struct actor *actor, int *status)
{
    CHECK(waitpid(actor->pid, status, 0) == actor->pid);
    close(actor->fd);
}

void actor_exit(struct actor *actor)
{
    int status;
    ask(actor, ACT_RELEASE, "");
    ask(actor, ACT_EXIT, "");
    if (actor->pid == 0) {
        CHECK(pthread_join(actor->thread, NULL) == 0);
        close(actor->fd);
        return;
    }
    await_end(actor, &status);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void actor_kill(struct actor *actor)
{
    int status;
    CHECK(kill(actor->pid, SIGKILL) == 0);
    await_end(actor, &status);
}

void actor_reap(struct actor *actor)
{
    int status;
    await_end(actor, &status);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

void actor_await_stop(struct actor *actor)
{
    int status;
    CHECK(waitpid(actor->pid, &status, WUNTRACED) == actor->pid);
    CHECK(WIFSTOPPED(status));
}

void actor_continue(struct actor *actor)
{
    CHECK(kill(actor->pid, SIGCONT) == 0);
}
