/* The floors: what the mechanisms below the package cost without it, C to C.
 *
 *   floor mutex SAMPLES               a robust process-shared mutex: lock and unlock
 *   floor flight SAMPLES              the core: begin and finish of a flight nobody joins
 *   floor wake ROUNDS SLEEPERS BUSY   sem_post to each of some processes -> sem_wait has returned
 *                                     in the slowest; the poster spends the millisecond before
 *                                     it busily (1) or asleep (0)
 *   floor post ROUNDS SLEEPERS BUSY   the same, until the last has been posted
 *   floor datagram ROUNDS SLEEPERS BUSY  the same, by a datagram to each -> epoll_wait and recv
 *                                     have returned in the slowest
 *   floor memcpy SAMPLES BYTES FRESH  a copy of so many bytes; FRESH: to pages never touched (1)
 *                                     or to those of the copy before (0)
 *   floor takeover ROUNDS REAP BYTES  SIGKILL of a mutex's holder -> another process has the
 *                                     mutex; REAP is 0 or 1, BYTES are resident in the holder
 *
 * Prints one number of nanoseconds a line. Processes meet as they do in stage.py and wake_up.py:
 * who acts waits until the kernel says that the others sleep. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "flight.h"

#define CALLS 1000          /* per sample of what is too short to be timed alone */
#define HOLD_NS 1000000u    /* how long the others sleep before they are posted */
#define FLIGHT_NS 10000000u /* age of a flight whose leader is killed */
#define MOST_SLEEPERS 128

struct sleeper {
    sem_t wake;
    int sockets[2];         /* datagrams go from the first to the second, which is the sleeper's */
    pid_t pid;
    _Atomic long entered;   /* the round it is about to sleep in */
    _Atomic uint64_t ended; /* when it was awake */
    char pad[64];           /* a cache line of its own */
};

struct shared {
    pthread_mutex_t mutex;
    sem_t back;
    _Atomic uint64_t started; /* when the holder had the mutex; 0: not yet */
    struct sleeper sleepers[MOST_SLEEPERS];
};

static void *shared_memory(size_t bytes)
{
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    return base;
}

static struct shared *make_shared(void)
{
    struct shared *shared = shared_memory(sizeof *shared);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared->mutex, &attributes);
    sem_init(&shared->back, 1, 0);
    for (int i = 0; i < MOST_SLEEPERS; i++)
        sem_init(&shared->sleepers[i].wake, 1, 0);
    return shared;
}

/* Forks a process that dies with this one. What it returns goes into shared memory, if at
 * all, in the parent only: in the child it is 0. */
static pid_t start(void)
{
    pid_t pid = fork();
    if (pid < 0) {
        perror("fork");
        exit(1);
    }
    if (pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return pid;
}

static void stop(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static bool is_asleep(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = '\0';
    const char *end = strrchr(text, ')');
    return end && end[1] == ' ' && end[2] == 'S';
}

static void await_sleeper(const struct sleeper *sleeper, long round)
{
    while (sleeper->entered != round || !is_asleep(sleeper->pid))
        usleep(20);
}

static void hold_back(bool busy)
{
    uint64_t until_ns = uf_now_ns() + HOLD_NS;
    if (!busy)
        usleep(HOLD_NS / 1000);
    while (uf_now_ns() < until_ns)
        ;
}

/* ---- alone ------------------------------------------------------------------------ */

static void print_per_call(uint64_t started_ns)
{
    printf("%.1f\n", (double)(uf_now_ns() - started_ns) / CALLS);
}

static void measure_mutex(long samples)
{
    struct shared *shared = make_shared();
    for (long sample = 0; sample < samples; sample++) {
        uint64_t started_ns = uf_now_ns();
        for (int call = 0; call < CALLS; call++) {
            pthread_mutex_lock(&shared->mutex);
            pthread_mutex_unlock(&shared->mutex);
        }
        print_per_call(started_ns);
    }
}

static void fly(struct uf_table *table, const struct uf_caller *caller)
{
    const struct uf_key key = {.data = "\xa6sku:42", .bytes = 7};
    const struct uf_result result = {.kind = UF_PAYLOAD_VALUE};
    struct uf_flight flight;
    struct uf_remains remains;
    if (uf_begin(table, caller, &key, &flight) != UF_LEADER ||
        uf_finish(table, &flight, &result, UF_TRY, &remains) != UF_OK) {
        fprintf(stderr, "floor: the core refused a flight\n");
        exit(1);
    }
}

static void measure_flight(long samples)
{
    const struct uf_limits limits = {64, 64, 64, 64, 64};
    const uint8_t hash_key[16] = "sixteen bytes..";
    struct uf_table table;
    struct uf_caller caller = {.lease_ns = UF_NO_LEASE, .max_takeovers = 3, .patience = UF_TRY};
    size_t bytes = uf_segment_bytes(&limits);
    void *base = shared_memory(bytes);
    uf_table_create(base, &limits, hash_key);
    if (uf_table_attach(&table, base, bytes) != UF_ATTACHED ||
        uf_thread_claim(&table, &caller.owner) != UF_OK)
        exit(1);
    for (long sample = 0; sample < samples; sample++) {
        uint64_t started_ns = uf_now_ns();
        for (int call = 0; call < CALLS; call++)
            fly(&table, &caller);
        print_per_call(started_ns);
    }
}

/* ---- copies ----------------------------------------------------------------------- */

static void measure_memcpy(long samples, size_t bytes, bool fresh)
{
    char *from = shared_memory(bytes), *to = shared_memory(bytes);
    memset(from, 1, bytes);
    memset(to, 1, bytes);
    for (long sample = 0; sample < samples; sample++) {
        if (fresh) {
            munmap(to, bytes);
            to = shared_memory(bytes);
        }
        uint64_t started_ns = uf_now_ns();
        memcpy(to, from, bytes);
        printf("%llu\n", (unsigned long long)(uf_now_ns() - started_ns));
    }
}

/* ---- wake-up ---------------------------------------------------------------------- */

/* How a sleeper is woken, and when the waker's clock stops. */
struct means {
    const char *name;
    void (*wake)(struct sleeper *sleeper);
    void (*sleep)(struct sleeper *self);
    bool until_sent; /* when the last one has been sent for, else when the slowest is awake */
};

static void post(struct sleeper *sleeper)
{
    sem_post(&sleeper->wake);
}

static void wait_for_post(struct sleeper *self)
{
    sem_wait(&self->wake);
}

static void send_datagram(struct sleeper *sleeper)
{
    if (send(sleeper->sockets[0], "!", 1, 0) != 1)
        exit(1);
}

static void wait_for_datagram(struct sleeper *self)
{
    static int epoll = -1; /* of this process */
    struct epoll_event event = {.events = EPOLLIN};
    char byte;
    if (epoll < 0) {
        epoll = epoll_create1(0);
        epoll_ctl(epoll, EPOLL_CTL_ADD, self->sockets[1], &event);
    }
    epoll_wait(epoll, &event, 1, -1);
    if (recv(self->sockets[1], &byte, 1, 0) != 1)
        exit(1);
}

static const struct means MEANS[] = {
    {"wake", post, wait_for_post, false},
    {"post", post, wait_for_post, true},
    {"datagram", send_datagram, wait_for_datagram, false},
};

static const struct means *find_means(const char *name)
{
    for (size_t i = 0; i < sizeof MEANS / sizeof *MEANS; i++)
        if (strcmp(MEANS[i].name, name) == 0)
            return &MEANS[i];
    return NULL;
}

static void sleep_and_stamp(const struct means *by, struct shared *shared, struct sleeper *self)
{
    for (long round = 1;; round++) {
        self->entered = round;
        by->sleep(self);
        self->ended = uf_now_ns();
        sem_post(&shared->back);
    }
}

static uint64_t wake_all(const struct means *by, struct shared *shared, int sleepers)
{
    uint64_t started_ns = uf_now_ns(), slowest_ns = 0;
    for (int i = 0; i < sleepers; i++)
        by->wake(&shared->sleepers[i]);
    uint64_t sent_ns = uf_now_ns();
    for (int i = 0; i < sleepers; i++)
        sem_wait(&shared->back);
    for (int i = 0; i < sleepers; i++)
        if (shared->sleepers[i].ended > slowest_ns)
            slowest_ns = shared->sleepers[i].ended;
    return (by->until_sent ? sent_ns : slowest_ns) - started_ns;
}

static void start_sleeper(const struct means *by, struct shared *shared, struct sleeper *sleeper)
{
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, sleeper->sockets) != 0) {
        perror("socketpair");
        exit(1);
    }
    pid_t pid = start();
    if (pid == 0)
        sleep_and_stamp(by, shared, sleeper);
    sleeper->pid = pid;
}

static void measure_wake(const struct means *by, long rounds, int sleepers, bool busy)
{
    struct shared *shared = make_shared();
    for (int i = 0; i < sleepers; i++)
        start_sleeper(by, shared, &shared->sleepers[i]);
    for (long round = 1; round <= rounds; round++) {
        for (int i = 0; i < sleepers; i++)
            await_sleeper(&shared->sleepers[i], round);
        hold_back(busy);
        printf("%llu\n", (unsigned long long)wake_all(by, shared, sleepers));
    }
    for (int i = 0; i < sleepers; i++)
        stop(shared->sleepers[i].pid);
}

/* ---- takeover --------------------------------------------------------------------- */

static void inherit_and_stamp(struct shared *shared, struct sleeper *self)
{
    for (long round = 1;; round++) {
        sem_wait(&self->wake);
        self->entered = round;
        int error = pthread_mutex_lock(&shared->mutex);
        self->ended = error == EOWNERDEAD ? uf_now_ns() : 0;
        pthread_mutex_consistent(&shared->mutex);
        pthread_mutex_unlock(&shared->mutex);
        sem_post(&shared->back);
    }
}

static void hold(struct shared *shared, size_t resident)
{
    volatile char *memory = malloc(resident + 1);
    for (size_t i = 0; memory && i < resident; i += 4096)
        memory[i] = 1;
    pthread_mutex_lock(&shared->mutex);
    shared->started = uf_now_ns();
    for (;;)
        pause();
}

static void takeover(struct shared *shared, long round, bool reap, size_t resident)
{
    struct sleeper *heir = &shared->sleepers[0];
    shared->started = 0;
    pid_t holder = start();
    if (holder == 0)
        hold(shared, resident);
    while (shared->started == 0)
        usleep(100);
    sem_post(&heir->wake);
    await_sleeper(heir, round);
    while (uf_now_ns() < shared->started + FLIGHT_NS)
        usleep(100);
    uint64_t killed_ns = uf_now_ns();
    kill(holder, SIGKILL);
    if (reap)
        waitpid(holder, NULL, 0);
    sem_wait(&shared->back);
    if (!reap)
        waitpid(holder, NULL, 0);
    printf("%llu\n", (unsigned long long)(heir->ended - killed_ns));
}

static void measure_takeover(long rounds, bool reap, size_t resident)
{
    struct shared *shared = make_shared();
    struct sleeper *heir = &shared->sleepers[0];
    pid_t pid = start();
    if (pid == 0)
        inherit_and_stamp(shared, heir);
    heir->pid = pid;
    for (long round = 1; round <= rounds; round++)
        takeover(shared, round, reap, resident);
    stop(heir->pid);
}

int main(int count, char **args)
{
    const char *what = count >= 3 ? args[1] : "";
    long rounds = count >= 3 ? atol(args[2]) : 0;
    setvbuf(stdout, NULL, _IOFBF, 1 << 20); /* no system call between two samples */
    alarm(300);
    if (strcmp(what, "mutex") == 0)
        measure_mutex(rounds);
    else if (strcmp(what, "flight") == 0)
        measure_flight(rounds);
    else if (strcmp(what, "memcpy") == 0 && count == 5)
        measure_memcpy(rounds, (size_t)atoll(args[3]), atoi(args[4]) != 0);
    else if (find_means(what) && count == 5)
        measure_wake(find_means(what), rounds, atoi(args[3]) % (MOST_SLEEPERS + 1),
                     atoi(args[4]) != 0);
    else if (strcmp(what, "takeover") == 0 && count == 5)
        measure_takeover(rounds, atoi(args[3]) != 0, (size_t)atoll(args[4]));
    else
        return 2;
    return 0;
}
