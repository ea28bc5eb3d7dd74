/* Random bytes over a table's data.  Whatever they are: no crash, no hang, no access outside
 * the segment, every operation answers, and bytes whose sum fails are never taken.  The
 * bytes of mutexes and semaphores are left alone: peers of one user are trusted with those.
 *
 *     fuzz_image [SECONDS] [SEED]
 *
 * Built without UF_DEBUG, whose walk would abort at the damage that is made here. */
#include <sched.h>
#include <stddef.h>
#include <sys/mman.h>

#include "support.h"

#include "../../shm/digest.h"

struct dice {
    uint64_t state;
};

static uint64_t roll(struct dice *dice, uint64_t sides)
{
    dice->state ^= dice->state << 13;
    dice->state ^= dice->state >> 7;
    dice->state ^= dice->state << 17;
    return dice->state * UINT64_C(0x2545f4914f6cdd1d) % sides;
}

static bool is_an_answer(enum uf_status status)
{
    return status >= UF_OK && status <= UF_DAMAGED;
}

/* ---- damage ------------------------------------------------------------------------ */

static bool is_libcs(const struct uf_table *table, size_t offset)
{
    size_t threads = (size_t)((unsigned char *)table->thread - table->base);
    if (offset >= table->payload_offset || offset < threads)
        return false;
    if (offset >= table->cell_offset)
        return (offset - table->cell_offset) % sizeof(struct uf_cell) >=
               offsetof(struct uf_cell, semaphore);
    if (offset >= table->group_offset)
        return (offset - table->group_offset) % sizeof(struct uf_group) < sizeof(pthread_mutex_t);
    return (offset - threads) % sizeof(struct uf_thread) < sizeof(pthread_mutex_t);
}

/* Mostly words that look like something: a small number, a bit, what stands elsewhere. */
static void damage_word(const struct uf_table *table, struct dice *dice, size_t from, size_t to)
{
    size_t width = (size_t)1 << roll(dice, 4);
    size_t offset = (from + roll(dice, to - from)) & ~(width - 1);
    uint64_t word = 0;
    if (is_libcs(table, offset) || is_libcs(table, offset + width - 1))
        return;
    memcpy(&word, table->base + offset, width);
    switch (roll(dice, 6)) {
    case 0: word = roll(dice, 8); break;
    case 1: word ^= UINT64_C(1) << roll(dice, 8 * width); break;
    case 2: word = roll(dice, UINT64_MAX); break;
    case 3: word = UINT64_MAX >> roll(dice, 64); break;
    case 4: word += roll(dice, 5) - 2; break;
    default: memcpy(&word, table->base + (roll(dice, to) & ~(width - 1)), width); break;
    }
    memcpy(table->base + offset, &word, width);
}

static void damage(const struct uf_table *table, struct dice *dice)
{
    size_t header = (size_t)((unsigned char *)table->thread - table->base);
    switch (roll(dice, 4)) { /* most of the bytes are payload, most of the sense is not */
    case 0: damage_word(table, dice, header, table->group_offset); break;
    case 1: damage_word(table, dice, table->group_offset, table->cell_offset); break;
    case 2: damage_word(table, dice, table->cell_offset, table->payload_offset); break;
    default: damage_word(table, dice, sizeof(struct uf_header), table->bytes); break;
    }
}

/* ---- one process, a table in ordinary memory --------------------------------------- */

/* What the sanitizer sees to its last byte. */
static void *exact_memory(size_t bytes)
{
    void *base = NULL;
    CHECK(posix_memalign(&base, 4096, bytes) == 0);
    memset(base, 0, bytes);
    return base;
}

static const struct uf_limits small = {64, 8, 8, 64, 1 << 20};

static void attach_survives_any_header(void *argument)
{
    struct dice dice = *(struct dice *)argument;
    uint64_t end_ns = uf_now_ns() + SECOND;
    size_t bytes = uf_segment_bytes(&small);
    unsigned char *base = exact_memory(bytes);
    long accepted = 0, tried = 0;
    for (; uf_now_ns() < end_ns; tried++) {
        struct uf_table table;
        uf_table_create(base, &small, (const uint8_t *)"0123456789abcdef");
        if (roll(&dice, 4) == 0)
            for (size_t i = 0; i < sizeof(struct uf_header); i++)
                base[i] = (unsigned char)roll(&dice, 256);
        if (roll(&dice, 2) == 0) /* plausible enough to be looked at */
            memcpy(base, &(uint64_t){UF_MAGIC}, 8);
        for (uint64_t i = roll(&dice, 4); i > 0; i--)
            base[roll(&dice, sizeof(struct uf_header))] ^= (unsigned char)(1 << roll(&dice, 8));
        if (uf_table_attach(&table, base, bytes) != UF_ATTACHED)
            continue;
        accepted++;
        CHECK(table.payload_offset + (size_t)uf_slot_count(&table) * table.inline_bytes <= bytes);
        for (uint32_t i = 0; i < table.groups; i++)
            CHECK(is_an_answer(uf_reap(&table, i, UF_WAIT)));
        uf_table_detach(&table);
    }
    CHECK(accepted > 0 && accepted < tried);
    free(base);
}

struct cast {
    struct uf_table table;
    uint64_t owner[4];
    struct uf_flight flight[16];
    int flights;
};

static void act_randomly(struct cast *cast, struct dice *dice)
{
    struct uf_table *table = &cast->table;
    uint64_t number = roll(dice, 4), owner = cast->owner[roll(dice, 4)];
    struct uf_key key = {&number, sizeof number};
    struct uf_caller caller = {owner, roll(dice, 3) ? UF_NO_LEASE : 0, (uint32_t)roll(dice, 3),
                               UF_WAIT, NULL};
    struct uf_flight fresh, *flight = &cast->flight[0];
    if (cast->flights > 0)
        flight = &cast->flight[roll(dice, (uint64_t)cast->flights)];
    struct uf_remains remains;
    struct uf_view view;
    struct uf_snapshot snapshot;
    struct uf_usage usage;
    struct uf_fault fault;
    bool found;
    unsigned char copy[64];
    struct uf_result result = {(enum uf_payload)(1 + roll(dice, 6)), roll(dice, 2) ? copy : NULL,
                               roll(dice, 65), 0, &fresh};
    memset(copy, 'x', sizeof copy);
    if (cast->flights == 0 || roll(dice, 4) == 0) {
        enum uf_status status = uf_begin(table, &caller, &key, &fresh);
        CHECK(is_an_answer(status));
        if (cast->flights < 16 && (status == UF_LEADER || status == UF_FOLLOWER)) {
            if (status == UF_LEADER)
                fresh.cell = 0;
            cast->flight[cast->flights++] = fresh;
        }
        return;
    }
    switch (roll(dice, 10)) {
    case 0: CHECK(is_an_answer(uf_finish(table, flight, &result, UF_WAIT, &remains))); break;
    case 1: CHECK(is_an_answer(uf_abandon(table, flight, UF_WAIT))); break;
    case 2: CHECK(is_an_answer(uf_leave(table, flight, owner, UF_LEAVING_SERVED, UF_WAIT, &remains))); break;
    case 3: CHECK(is_an_answer(uf_takeover(table, &caller, flight))); break;
    case 4: CHECK(is_an_answer(uf_forget(table, &key, UF_WAIT, &found))); break;
    case 5: CHECK(is_an_answer(uf_reap(table, 0, UF_WAIT))); break;
    case 6: CHECK(is_an_answer(uf_wait(table, flight, owner, uf_now_ns() + 1000))); break;
    case 7:
        if (uf_view(table, flight, &view) == UF_OK && view.data) {
            CHECK(view.bytes <= sizeof copy);
            memcpy(copy, view.data, view.bytes);
        }
        break;
    case 8:
        uf_snapshot(table, (uint32_t)roll(dice, uf_slot_count(table)), true, &snapshot);
        uf_usage(table, &usage);
        break;
    default:
        if (uf_group_lock(table, 0, UF_WAIT) == UF_OK) {
            uf_group_check_locked(table, 0, &fault);
            if (roll(dice, 4) == 0)
                uf_group_repair_locked(table, 0);
            uf_group_unlock(table, 0);
        }
    }
}

static void operations_survive_any_image(void *argument)
{
    const struct dice *seed = argument;
    uint64_t end_ns = uf_now_ns() + seed[1].state;
    size_t bytes = uf_segment_bytes(&small);
    unsigned char *base = exact_memory(bytes);
    long images = 0;
    for (; uf_now_ns() < end_ns; images++) {
        struct dice dice = {seed->state + (uint64_t)images * 2 + 1};
        struct cast cast = {.flights = 0};
        alarm(10); /* of this image */
        memset(base, 0, bytes);
        uf_table_create(base, &small, (const uint8_t *)"0123456789abcdef");
        CHECK_INT(uf_table_attach(&cast.table, base, bytes), UF_ATTACHED);
        for (int i = 0; i < 4; i++)
            cast.owner[i] = claim(&cast.table);
        for (uint64_t i = roll(&dice, 40); i > 0; i--)
            act_randomly(&cast, &dice);
        for (int i = 0; i < 60; i++) {
            if (roll(&dice, 2))
                damage(&cast.table, &dice);
            act_randomly(&cast, &dice);
            if (roll(&dice, 2)) /* or all that follows would only say so */
                UF_STORE(cast.table.header->damaged, 0);
        }
        for (int i = 0; i < 4; i++)
            uf_thread_release(&cast.table, cast.owner[i]);
        uf_table_detach(&cast.table);
    }
    printf("%ld damaged images\n", images);
    free(base);
}

/* ---- two processes of two threads, while the bytes change under them ---------------- */

struct value {
    uint64_t key, generation, filler[4];
};

struct worker {
    struct uf_table *table;
    struct dice dice;
    _Atomic uint32_t *over;
};

/* A follower trusts nothing but what it knows itself: its key, its flight. */
static void take(const struct worker *worker, uint64_t number, const struct uf_flight *flight)
{
    struct uf_view view;
    struct value copy;
    if (uf_view(worker->table, flight, &view) != UF_OK || !view.data ||
        view.kind != UF_PAYLOAD_VALUE || view.bytes != sizeof copy)
        return;
    memcpy(&copy, view.data, sizeof copy);
    if (uf_checksum(&copy, sizeof copy) != view.sum)
        return;
    CHECK_INT(copy.key, number);
    CHECK_INT(copy.generation, flight->generation);
}

static void lead(struct worker *worker, uint64_t number, const struct uf_flight *flight)
{
    struct value value = {number, flight->generation, {1, 2, 3, 4}};
    struct uf_result result = {.kind = UF_PAYLOAD_VALUE, .data = &value, .bytes = sizeof value};
    struct uf_remains remains;
    for (uint64_t i = roll(&worker->dice, 4); i > 0; i--)
        sched_yield();
    if (roll(&worker->dice, 4) == 0)
        CHECK(is_an_answer(uf_abandon(worker->table, flight, UF_WAIT)));
    else
        CHECK(is_an_answer(uf_finish(worker->table, flight, &result, UF_WAIT, &remains)));
}

static void follow(struct worker *worker, const struct uf_caller *caller, uint64_t number,
                   struct uf_flight *flight)
{
    struct uf_remains remains;
    uint64_t deadline_ns = uf_now_ns() + 20 * MILLISECOND;
    enum uf_status status;
    while ((status = uf_wait(worker->table, flight, caller->owner, deadline_ns)) ==
           UF_LEADERLESS) {
        status = uf_takeover(worker->table, caller, flight);
        CHECK(is_an_answer(status));
        if (status == UF_LEADER) {
            lead(worker, number, flight);
            return;
        }
        if (status == UF_DAMAGED || uf_now_ns() > deadline_ns)
            break;
    }
    if (status == UF_DONE)
        take(worker, number, flight);
    CHECK(is_an_answer(uf_leave(worker->table, flight, caller->owner,
                                  status == UF_TIMED_OUT ? UF_LEAVING_TIMED_OUT : UF_LEAVING_SERVED,
                                UF_WAIT, &remains)));
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    uint64_t owner;
    if (uf_thread_claim(worker->table, &owner) != UF_OK)
        return NULL;
    struct uf_caller caller = caller_of(owner);
    while (!UF_LOAD(*worker->over)) {
        uint64_t number = roll(&worker->dice, 3);
        struct uf_key key = {&number, sizeof number};
        struct uf_flight flight;
        enum uf_status status = uf_begin(worker->table, &caller, &key, &flight);
        CHECK(is_an_answer(status));
        if (status == UF_LEADER)
            lead(worker, number, &flight);
        else if (status == UF_FOLLOWER)
            follow(worker, &caller, number, &flight);
    }
    uf_thread_release(worker->table, owner);
    return NULL;
}

static pid_t spawn(struct uf_table *table, struct dice *dice, _Atomic uint32_t *over)
{
    pid_t parent = getpid(), pid = fork();
    CHECK(pid >= 0);
    if (pid > 0)
        return pid;
    die_with_parent(parent);
    pthread_t threads[2];
    struct worker workers[2];
    struct uf_table own = *table;
    own.pid = (uint32_t)getpid();
    for (int i = 0; i < 2; i++) {
        workers[i] = (struct worker){&own, {roll(dice, UINT64_MAX) | 1}, over};
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    _exit(0);
}

/* A table between two pages that nobody may touch. */
static void create_guarded(struct uf_table *table)
{
    size_t bytes = uf_segment_bytes(&small);
    unsigned char *base = shared_memory(bytes + 8192);
    CHECK(mprotect(base, 4096, PROT_NONE) == 0);
    CHECK(mprotect(base + 4096 + bytes, 4096, PROT_NONE) == 0);
    uf_table_create(base + 4096, &small, (const uint8_t *)"0123456789abcdef");
    CHECK_INT(uf_table_attach(table, base + 4096, bytes), UF_ATTACHED);
}

static void calls_survive_damage_under_their_eyes(void *argument)
{
    const struct dice *seed = argument;
    uint64_t end_ns = uf_now_ns() + seed[1].state;
    _Atomic uint32_t *over = shared_memory(sizeof *over);
    long rounds = 0;
    uint64_t worked = 0;
    for (; uf_now_ns() < end_ns; rounds++) {
        struct dice dice = {seed->state + (uint64_t)rounds * 2 + 1};
        struct dice own = {roll(&dice, UINT64_MAX) | 1};
        struct uf_table table;
        struct uf_totals totals;
        pid_t pids[2];
        int status;
        alarm(20); /* of this round */
        create_guarded(&table);
        UF_STORE(*over, 0);
        for (int i = 0; i < 2; i++)
            pids[i] = spawn(&table, &dice, over);
        uint64_t round_end_ns = uf_now_ns() + 100 * MILLISECOND;
        while (uf_now_ns() < round_end_ns) {
            uf_totals(&table, &totals);
            if (totals.leaders > 50) /* they are at work */
                damage(&table, &own);
            if (roll(&own, 4))
                UF_STORE(table.header->damaged, 0);
            sched_yield();
        }
        worked += totals.leaders > 50;
        UF_STORE(*over, 1);
        for (int i = 0; i < 2; i++) {
            CHECK(waitpid(pids[i], &status, 0) == pids[i]);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        munmap(table.base - 4096, table.bytes + 8192);
        uf_table_detach(&table);
    }
    printf("%ld rounds of damage under the eyes of two processes\n", rounds);
    CHECK(worked > 0);
}

int main(int count, char **arguments)
{
    double seconds = count > 1 ? strtod(arguments[1], NULL) : 10;
    uint64_t seed = count > 2 ? strtoull(arguments[2], NULL, 0) : uf_now_ns();
    struct dice dice[2] = {{seed | 1}, {(uint64_t)(seconds / 2 * 1e9)}};
    printf("seed %llu\n", (unsigned long long)seed);
    run_test("attach_survives_any_header", attach_survives_any_header, dice);
    run_test("operations_survive_any_image", operations_survive_any_image, dice);
    run_test("calls_survive_damage_under_their_eyes", calls_survive_damage_under_their_eyes, dice);
    return report();
}
