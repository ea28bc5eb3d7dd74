/* Eight threads, four keys, every operation at random; made for ThreadSanitizer, which sees
 * one process only.  Two views of one table, with different process numbers, stand for two
 * processes, so that both ways of handing a value over are taken.
 *
 *     stress_threads [SECONDS] [SEED]
 *
 * Exclusion is shown twice: by a flag that no two leaders of one flight may hold at a time,
 * and by a counter that loses updates if they do (and is a data race, then).  Every value
 * says which flight it is of; objects are counted, none may be lost or freed twice. */
#include <sched.h>

#include "support.h"

#include "../../shm/digest.h"

#define THREADS 8
#define KEYS 4
#define FOLLOWER_CELLS 5 /* too few for all, so that some find no cell */

#if defined(__SANITIZE_THREAD__) /* gcc */
#define UNDER_TSAN
#elif defined(__has_feature) /* clang */
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN
#endif
#endif

#ifdef UNDER_TSAN
/* The sanitizer (of gcc 12 and clang 14) does not know pthread_mutex_clocklock: it would
 * take the unlock that follows for an error, and miss the order the lock makes.  What it
 * knows does the same here: nobody in this program is stopped while holding a lock. */
int pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *end)
{
    struct timespec now;
    int error;
    while ((error = pthread_mutex_trylock(mutex)) == EBUSY) {
        clock_gettime(clock, &now);
        if (now.tv_sec > end->tv_sec || (now.tv_sec == end->tv_sec && now.tv_nsec >= end->tv_nsec))
            return ETIMEDOUT;
        sched_yield();
    }
    return error;
}

/* A snapshot copies a key that may be written at that moment, which C calls a race: it reads
 * the generation, the epoch and the state before and after, and throws the copy away if they
 * changed.  So these reads alone are not looked at; what they lead to is checked below. */
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
#else
#define AnnotateIgnoreReadsBegin(file, line) ((void)0)
#define AnnotateIgnoreReadsEnd(file, line) ((void)0)
#endif

/* What a flight results in: as an object for its own process, as bytes for others. */
struct value {
    uint64_t key, slot, generation, epoch, check;
};

struct stress {
    struct uf_table view[2];
    bool leases; /* some leaders outlive theirs: two may run, one is heard */
    _Atomic bool over;
    _Atomic long live_values;
    _Atomic uint64_t led, taken_over, followed, timed_out, alone, lock_timeouts, died, gave_up;
    _Atomic uint64_t occupied[UF_GROUP_SLOTS];   /* generation of the flight being led, or 0 */
    _Atomic uint64_t counted[UF_GROUP_SLOTS];    /* what `plain` has to be in the end */
    uint64_t plain[UF_GROUP_SLOTS];              /* by the slot's leader, nothing else guards it */
    _Atomic uint64_t last_ended[UF_GROUP_SLOTS]; /* generation last finished */
};

struct worker {
    struct stress *stress;
    struct uf_table *table;
    struct uf_caller caller;
    uint64_t random;
    bool dies; /* the thread ends in the middle of things */
    pthread_t thread;
};

static uint64_t roll(struct worker *worker, uint64_t sides)
{
    worker->random ^= worker->random << 13;
    worker->random ^= worker->random >> 7;
    worker->random ^= worker->random << 17;
    return worker->random % sides;
}

static void dawdle(struct worker *worker)
{
    for (uint64_t i = roll(worker, 4); i > 0; i--)
        sched_yield();
    uint64_t end_ns = uf_now_ns() + roll(worker, 100) * 1000;
    while (roll(worker, 4) == 0 && uf_now_ns() < end_ns)
        ;
}

static void drop(struct stress *stress, void *value)
{
    if (!value)
        return;
    CHECK(((struct value *)value)->check == ~((struct value *)value)->key);
    memset(value, 0, sizeof(struct value));
    free(value);
    atomic_fetch_sub(&stress->live_values, 1);
}

static void check_value(const struct value *value, uint64_t key, const struct uf_flight *flight,
                        uint64_t epoch)
{
    CHECK_INT(value->key, key);
    CHECK(value->check == ~key);
    CHECK_INT(value->slot, flight->slot);
    CHECK_INT(value->generation, flight->generation);
    CHECK_INT(value->epoch, epoch);
}

/* ---- leading ----------------------------------------------------------------------- */

static void enter(struct worker *worker, const struct uf_flight *flight)
{
    if (worker->stress->leases)
        return;
    CHECK_INT(atomic_exchange(&worker->stress->occupied[flight->slot], flight->generation), 0);
    atomic_fetch_add(&worker->stress->counted[flight->slot], 1);
    worker->stress->plain[flight->slot]++;
}

static void leave_flag(struct worker *worker, const struct uf_flight *flight)
{
    if (!worker->stress->leases)
        CHECK_INT(atomic_exchange(&worker->stress->occupied[flight->slot], 0), flight->generation);
}

/* The slot's next flight may have been noted before. */
static void note_end(struct stress *stress, const struct uf_flight *flight)
{
    uint64_t seen = atomic_load(&stress->last_ended[flight->slot]);
    do
        CHECK(seen != flight->generation); /* a flight ends once */
    while (seen < flight->generation &&
           !atomic_compare_exchange_weak(&stress->last_ended[flight->slot], &seen,
                                         flight->generation));
}

static void publish(struct worker *worker, uint64_t key, const struct uf_flight *flight)
{
    struct stress *stress = worker->stress;
    struct value *value = malloc(sizeof *value), bytes;
    CHECK(value != NULL);
    atomic_fetch_add(&stress->live_values, 1);
    *value = bytes = (struct value){key, flight->slot, flight->generation, flight->epoch, ~key};
    struct uf_result result = {.kind = UF_PAYLOAD_VALUE, .value = value};
    struct uf_remains remains;
    enum uf_status status = uf_finish(worker->table, flight, &result, UF_WAIT, &remains);
    if (status == UF_NEEDS_PAYLOAD) {
        CHECK(!remains.value_kept && !remains.value);
        dawdle(worker);
        result.data = &bytes;
        result.bytes = sizeof bytes;
        status = uf_finish(worker->table, flight, &result, UF_WAIT, &remains);
    }
    if (status == UF_OK)
        note_end(stress, flight);
    else if (status == UF_LOCK_TIMEOUT) /* a busy machine */
        atomic_fetch_add(&stress->lock_timeouts, 1);
    else
        CHECK(stress->leases && status == UF_FENCED);
    if (!remains.value_kept)
        drop(stress, value);
    drop(stress, remains.value);
}

static void lead(struct worker *worker, uint64_t key, const struct uf_flight *flight)
{
    atomic_fetch_add(&worker->stress->led, 1);
    atomic_fetch_add(&worker->stress->taken_over, flight->takeovers > 0);
    if (roll(worker, 400) == 0) {
        /* Before `enter`: the end of a thread orders nothing in the sanitizer's eyes. */
        worker->dies = true;
        return;
    }
    enter(worker, flight);
    dawdle(worker);
    leave_flag(worker, flight);
    if (roll(worker, 5) == 0) {
        enum uf_status status = uf_abandon(worker->table, flight, UF_WAIT);
        atomic_fetch_add(&worker->stress->lock_timeouts, status == UF_LOCK_TIMEOUT);
        CHECK(status == UF_OK || status == UF_LOCK_TIMEOUT ||
              (worker->stress->leases && status == UF_FENCED));
    } else {
        publish(worker, key, flight);
    }
}

/* ---- following --------------------------------------------------------------------- */

static void depart(struct worker *worker, const struct uf_flight *flight, bool timed_out)
{
    struct uf_remains remains;
    enum uf_status status = uf_leave(worker->table, flight, worker->caller.owner,
                                     timed_out ? UF_LEAVING_TIMED_OUT : UF_LEAVING_SERVED,
                                     UF_WAIT, &remains);
    CHECK(status == UF_OK || status == UF_LOCK_TIMEOUT);
    if (status == UF_OK)
        atomic_fetch_add(timed_out ? &worker->stress->timed_out : &worker->stress->followed, 1);
    else
        atomic_fetch_add(&worker->stress->lock_timeouts, 1);
    drop(worker->stress, remains.value);
}

static void take(struct worker *worker, uint64_t key, const struct uf_flight *flight)
{
    struct uf_view view;
    struct value copy;
    CHECK_INT(uf_view(worker->table, flight, &view), UF_OK);
    if (view.kind == UF_PAYLOAD_DIED) {
        CHECK(view.deaths >= worker->caller.max_takeovers);
        atomic_fetch_add(&worker->stress->gave_up, 1);
    } else {
        CHECK(view.followers > 0);
        CHECK(view.value || view.data);
        if (view.value)
            check_value(view.value, key, flight, view.epoch);
        if (view.data) {
            CHECK_INT(view.bytes, sizeof copy);
            memcpy(&copy, view.data, sizeof copy);
            CHECK(uf_checksum(&copy, sizeof copy) == view.sum);
            check_value(&copy, key, flight, view.epoch);
        }
    }
    depart(worker, flight, false);
}

static void follow(struct worker *worker, uint64_t key, struct uf_flight *flight)
{
    uint64_t deadline_ns = UF_NO_DEADLINE;
    if (roll(worker, 4) == 0)
        deadline_ns = uf_now_ns() + roll(worker, 300) * 1000;
    if (roll(worker, 400) == 0) {
        worker->dies = true;
        return;
    }
    for (;;) {
        switch (uf_wait(worker->table, flight, worker->caller.owner, deadline_ns)) {
        case UF_DONE:
            take(worker, key, flight);
            return;
        case UF_TIMED_OUT:
            depart(worker, flight, true);
            return;
        case UF_LEADERLESS:
            break;
        default:
            CHECK(!"an answer that wait may give");
        }
        enum uf_status status = uf_takeover(worker->table, &worker->caller, flight);
        if (status == UF_LEADER) {
            lead(worker, key, flight);
            return;
        }
        CHECK(status == UF_PENDING || status == UF_DONE || status == UF_LOCK_TIMEOUT);
    }
}

/* ---- calling ----------------------------------------------------------------------- */

static void call(struct worker *worker, uint64_t number)
{
    struct stress *stress = worker->stress;
    struct uf_key key = {&number, sizeof number};
    struct uf_flight flight;
    uint64_t ended[UF_GROUP_SLOTS];
    for (unsigned i = 0; i < UF_GROUP_SLOTS; i++)
        ended[i] = atomic_load(&stress->last_ended[i]);
    worker->caller.lease_ns = stress->leases && roll(worker, 2) ? roll(worker, 200) * 1000
                                                                : UF_NO_LEASE;
    switch (uf_begin(worker->table, &worker->caller, &key, &flight)) {
    case UF_LEADER:
        lead(worker, number, &flight);
        return;
    case UF_FOLLOWER: /* fresh: it had not ended when this call began */
        CHECK(flight.generation > ended[flight.slot]);
        follow(worker, number, &flight);
        return;
    case UF_LOCK_TIMEOUT:
        atomic_fetch_add(&stress->lock_timeouts, 1);
        return;
    case UF_NO_CELL:
        atomic_fetch_add(&stress->alone, 1);
        return;
    default:
        CHECK(!"an answer that begin may give");
    }
}

static void look_around(struct worker *worker)
{
    struct uf_snapshot snapshot;
    struct uf_usage usage;
    struct uf_totals totals;
    for (uint32_t slot = 0; slot < UF_GROUP_SLOTS; slot++) {
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        bool seen = uf_snapshot(worker->table, slot, true, &snapshot);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
        if (!seen)
            continue;
        uint64_t key;
        CHECK_INT(snapshot.key_bytes, sizeof key);
        memcpy(&key, snapshot.key, sizeof key);
        CHECK(key < KEYS);
    }
    uf_usage(worker->table, &usage);
    uf_totals(worker->table, &totals);
    CHECK(usage.cells <= FOLLOWER_CELLS);
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    bool found;
    worker->dies = false;
    worker->caller = caller_of(claim(worker->table));
    while (!atomic_load(&worker->stress->over) && !worker->dies) {
        uint64_t number = roll(worker, KEYS), what = roll(worker, 100);
        struct uf_key key = {&number, sizeof number};
        if (what < 3)
            uf_forget(worker->table, &key, UF_WAIT, &found);
        else if (what < 4)
            uf_reap(worker->table, 0, UF_WAIT);
        else if (what < 5)
            look_around(worker);
        else
            call(worker, number);
    }
    if (worker->dies) /* holding its record, its flight or its cell */
        atomic_fetch_add(&worker->stress->died, 1);
    else
        uf_thread_release(worker->table, worker->caller.owner);
    return NULL;
}

static void hire(struct worker *worker)
{
    CHECK(pthread_create(&worker->thread, NULL, work, worker) == 0);
}

static void check_totals(struct stress *stress)
{
    struct uf_totals totals;
    uf_totals(&stress->view[0], &totals);
    CHECK_INT(totals.leaders, stress->led);
    CHECK_INT(totals.timeouts, stress->timed_out);
    CHECK_INT(totals.followers, stress->followed);
    CHECK(totals.takeovers <= stress->taken_over);
    for (unsigned i = 0; i < UF_GROUP_SLOTS; i++) {
        CHECK_INT(stress->occupied[i], 0);
        CHECK_INT(stress->plain[i], stress->counted[i]);
    }
}

static void check_objects(struct stress *stress)
{
    for (int side = 0; side < 2; side++)
        for (unsigned i = 0; i < UF_GROUP_SLOTS; i++) {
            struct uf_local *local = &stress->view[side].local[i];
            CHECK((local->value != NULL) == (local->pending != 0));
            drop(stress, local->value); /* of followers that died */
        }
    CHECK_INT(stress->live_values, 0);
}

static void run(bool leases, double seconds, uint64_t seed)
{
    static struct stress stress;
    static struct worker workers[THREADS];
    stress = (struct stress){.leases = leases};
    table_create(&stress.view[0], 64, FOLLOWER_CELLS, THREADS + 4, 64);
    CHECK_INT(uf_table_attach(&stress.view[1], stress.view[0].base, stress.view[0].bytes),
              UF_ATTACHED);
    stress.view[1].pid++;
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){.stress = &stress, .table = &stress.view[i % 2],
                                     .random = (seed + (uint64_t)i) * 2654435761u + 1};
        hire(&workers[i]);
    }
    uint64_t end_ns = uf_now_ns() + (uint64_t)(seconds * 1e9);
    /* However little of the time was ours. */
    for (int i = 0; uf_now_ns() < end_ns || stress.led <= 100 || stress.followed <= 10;
         i = (i + 1) % THREADS) {
        struct timespec soon;
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_nsec += 1000000;
        soon.tv_sec += soon.tv_nsec / 1000000000;
        soon.tv_nsec %= 1000000000;
        if (pthread_timedjoin_np(workers[i].thread, NULL, &soon) == 0)
            hire(&workers[i]); /* it died */
    }
    atomic_store(&stress.over, true);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(workers[i].thread, NULL) == 0);
    reap_all(&stress.view[0]);
    check_empty(&stress.view[0]);
    check_totals(&stress);
    check_objects(&stress);
    printf("%s: led %lu, followed %lu, took over %lu, timed out %lu, no cell %lu, "
           "threads died %lu, gave up %lu, lock timeouts %lu\n",
           leases ? "with leases" : "without leases", stress.led, stress.followed,
           stress.taken_over, stress.timed_out, stress.alone, stress.died, stress.gave_up,
           stress.lock_timeouts);
    uf_table_detach(&stress.view[0]);
    uf_table_detach(&stress.view[1]);
}

struct parameters {
    double seconds;
    uint64_t seed;
};

static void flights_exclude_each_other_whatever_threads_do(void *argument)
{
    const struct parameters *parameters = argument;
    run(false, parameters->seconds / 2, parameters->seed);
}

static void flights_with_leases_are_finished_once_whatever_threads_do(void *argument)
{
    const struct parameters *parameters = argument;
    run(true, parameters->seconds / 2, parameters->seed);
}

int main(int count, char **arguments)
{
    struct parameters parameters = {count > 1 ? strtod(arguments[1], NULL) : 5,
                                    count > 2 ? strtoull(arguments[2], NULL, 0) : uf_now_ns()};
    printf("seed %llu\n", (unsigned long long)parameters.seed);
    run_test("flights_exclude_each_other_whatever_threads_do",
             flights_exclude_each_other_whatever_threads_do, &parameters);
    run_test("flights_with_leases_are_finished_once_whatever_threads_do",
             flights_with_leases_are_finished_once_whatever_threads_do, &parameters);
    return report();
}
