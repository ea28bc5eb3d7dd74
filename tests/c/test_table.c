/* Geometry, attaching, thread records, and what happens when a table is full. */
#include <stddef.h>

#include "support.h"

static struct uf_limits limits_of(uint32_t flights, uint32_t waiters, uint32_t threads,
                                  uint32_t inline_bytes)
{
    return (struct uf_limits){flights, waiters, threads, inline_bytes, 1 << 20};
}

static bool is_refused(uint32_t flights, uint32_t waiters, uint32_t threads, uint32_t inline_bytes)
{
    struct uf_limits limits = limits_of(flights, waiters, threads, inline_bytes);
    return uf_segment_bytes(&limits) == 0;
}

static void limits_out_of_range_have_no_size(void *unused)
{
    CHECK(is_refused(0, 1, 1, 64));
    CHECK(is_refused(1, 0, 1, 64));
    CHECK(is_refused(1, 1, 0, 64));
    CHECK(is_refused(UF_MAX_GROUPS * UF_GROUP_SLOTS + 1, 1, 1, 64));
    CHECK(is_refused(1, 1, UF_MAX_THREADS + 1, 64));
    CHECK(is_refused(1, 1, 1, UF_MAX_INLINE + 1));
    CHECK(is_refused(1, UF_MAX_CELLS + 1, 1, 64));
    CHECK(is_refused(UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX));
    CHECK(!is_refused(UF_MAX_GROUPS * UF_GROUP_SLOTS, 1, UF_MAX_THREADS, UF_MAX_INLINE));
    CHECK(!is_refused(1, 1, 1, 0));
    (void)unused;
}

static void a_table_has_at_least_what_was_asked_for(void *unused)
{
    static const uint32_t flights[] = {1, 63, 64, 65, 100, 1024, 1025};
    for (size_t i = 0; i < sizeof flights / sizeof *flights; i++) {
        struct uf_table table;
        table_create(&table, flights[i], 500, 20, 100);
        CHECK(uf_slot_count(&table) >= flights[i]);
        CHECK(table.groups * table.cells >= 500);
        CHECK(table.cells >= 20);
        CHECK(table.inline_bytes >= 100);
        CHECK_INT(table.threads, 20);
        CHECK(uf_payload(&table, uf_slot_count(&table) - 1) + table.inline_bytes <=
              table.base + table.bytes);
        CHECK((unsigned char *)uf_cell(&table, table.groups - 1, table.cells - 1) +
                  sizeof(struct uf_cell) <= uf_payload(&table, 0));
        uf_table_detach(&table);
    }
    (void)unused;
}

static enum uf_attach attach_after(struct uf_table *good, size_t offset, uint64_t value,
                                   size_t bytes)
{
    static unsigned char saved[8];
    struct uf_table table;
    memcpy(saved, good->base + offset, bytes);
    memcpy(good->base + offset, &value, bytes);
    enum uf_attach answer = uf_table_attach(&table, good->base, good->bytes);
    if (answer == UF_ATTACHED)
        uf_table_detach(&table);
    memcpy(good->base + offset, saved, bytes);
    return answer;
}

#define AFTER(field, value) \
    attach_after(&table, offsetof(struct uf_header, field), value, sizeof table.header->field)

static void attach_tells_strangers_from_other_versions_and_from_bad_numbers(void *unused)
{
    struct uf_table table, other;
    table_create(&table, 128, 100, 10, 256);
    CHECK_INT(AFTER(magic, 0), UF_NOT_A_TABLE);
    CHECK_INT(AFTER(magic, UF_MAGIC ^ 1), UF_NOT_A_TABLE);
    CHECK_INT(AFTER(layout_version, UF_LAYOUT_VERSION + 1), UF_OTHER_VERSION);
    CHECK_INT(AFTER(format, uf_format() + 1), UF_OTHER_VERSION);
    CHECK_INT(AFTER(bytes, table.bytes + 4096), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(groups, 0), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(groups, 3), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(groups, 1), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(groups, 1u << 31), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(cells, 0), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(cells, UINT32_MAX), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(threads, 0), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(threads, UINT32_MAX), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(inline_bytes, 0), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(inline_bytes, 65), UF_BAD_GEOMETRY);
    CHECK_INT(AFTER(inline_bytes, UINT32_MAX), UF_BAD_GEOMETRY);
    CHECK_INT(uf_table_attach(&other, table.base, table.bytes - 4096), UF_BAD_GEOMETRY);
    CHECK_INT(uf_table_attach(&other, table.base, sizeof(struct uf_header) - 1), UF_NOT_A_TABLE);
    CHECK_INT(uf_table_attach(&other, table.base, 0), UF_NOT_A_TABLE);
    CHECK_INT(AFTER(magic, UF_MAGIC), UF_ATTACHED);
    uf_table_detach(&table);
    (void)unused;
}

static void a_table_whose_limits_are_refused_is_never_accepted(void *unused)
{
    struct uf_limits limits = limits_of(0, 1, 1, 64);
    struct uf_table table;
    void *base = shared_memory(1 << 20);
    uf_table_create(base, &limits, (const uint8_t *)"0123456789abcdef");
    CHECK_INT(uf_table_attach(&table, base, 1 << 20), UF_NOT_A_TABLE);
    (void)unused;
}

/* ---- thread records --------------------------------------------------------------- */

static void a_holder_is_alive_until_it_releases_its_record(void *unused)
{
    struct uf_table table;
    table_create(&table, 64, 8, 4, 64);
    struct actor actor = actor_process(&table);
    uint64_t owner = claim(&table);
    CHECK(uf_is_alive(&table, owner));
    CHECK(uf_is_alive(&table, actor.owner));
    uf_thread_release(&table, owner);
    CHECK(!uf_is_alive(&table, owner));
    CHECK(uf_is_alive(&table, actor.owner));
    actor_exit(&actor);
    CHECK(!uf_is_alive(&table, actor.owner));
    uf_table_detach(&table);
    (void)unused;
}

static void a_killed_process_and_its_unreaped_zombie_are_dead(void *unused)
{
    struct uf_table table;
    siginfo_t info;
    table_create(&table, 64, 8, 4, 64);
    struct actor actor = actor_process(&table);
    CHECK(kill(actor.pid, SIGKILL) == 0);
    CHECK(waitid(P_PID, (id_t)actor.pid, &info, WEXITED | WNOWAIT) == 0);
    CHECK(!uf_is_alive(&table, actor.owner)); /* a zombie: kill(pid, 0) still succeeds */
    CHECK(!uf_is_alive(&table, actor.owner)); /* the first look did not change the answer */
    actor_reap(&actor);
    uf_table_detach(&table);
    (void)unused;
}

static void a_record_that_is_used_again_does_not_revive_its_former_owner(void *unused)
{
    struct uf_table table;
    table_create(&table, 64, 8, 1, 64);
    uint64_t first = claim(&table);
    uf_thread_release(&table, first);
    uint64_t second = claim(&table);
    CHECK(uf_thread_of(&table, first) == uf_thread_of(&table, second));
    CHECK(!uf_is_alive(&table, first));
    CHECK(uf_is_alive(&table, second));
    uf_thread_release(&table, second);
    uf_table_detach(&table);
    (void)unused;
}

static void owner_words_that_name_no_record_are_dead(void *unused)
{
    struct uf_table table;
    table_create(&table, 64, 8, 4, 64);
    CHECK(!uf_is_alive(&table, 0));
    CHECK(!uf_is_alive(&table, 5));
    CHECK(!uf_is_alive(&table, UINT64_MAX));
    CHECK(uf_thread_of(&table, UINT64_MAX) == NULL);
    uf_thread_release(&table, UINT64_MAX);
    uf_table_detach(&table);
    (void)unused;
}

static void records_of_the_dead_are_used_again_when_all_are_taken(void *unused)
{
    struct uf_table table;
    uint64_t owner;
    table_create(&table, 64, 8, 3, 64);
    struct actor a = actor_process(&table), b = actor_process(&table), c = actor_process(&table);
    CHECK_INT(uf_thread_claim(&table, &owner), UF_NO_THREAD);
    actor_kill(&b);
    CHECK_INT(uf_thread_claim(&table, &owner), UF_OK);
    CHECK(uf_thread_of(&table, owner) == uf_thread_of(&table, b.owner));
    uf_thread_release(&table, owner);
    actor_exit(&a);
    actor_exit(&c);
    uf_table_detach(&table);
    (void)unused;
}

static void usage_counts_records_that_are_held_or_were_left_by_the_dead(void *unused)
{
    struct uf_table table;
    struct uf_usage usage;
    table_create(&table, 64, 8, 4, 64);
    uint64_t owner = claim(&table);
    uf_usage(&table, &usage);
    CHECK_INT(usage.threads, 1);
    uf_thread_release(&table, owner);
    uf_usage(&table, &usage);
    CHECK_INT(usage.threads, 0);
    uf_table_detach(&table);
    (void)unused;
}

/* ---- capacity --------------------------------------------------------------------- */

static enum uf_status begin_numbered(struct uf_table *table, uint64_t owner, int number,
                                     struct uf_flight *flight)
{
    struct uf_caller caller = caller_of(owner);
    struct uf_key key = {&number, sizeof number};
    return uf_begin(table, &caller, &key, flight);
}

static void the_sixty_fifth_flight_of_a_group_finds_no_slot_until_one_ends(void *unused)
{
    struct uf_table table;
    struct uf_flight flights[UF_GROUP_SLOTS], extra;
    table_create(&table, 64, 8, 4, 64);
    uint64_t owner = claim(&table);
    for (int i = 0; i < (int)UF_GROUP_SLOTS; i++)
        CHECK_INT(begin_numbered(&table, owner, i, &flights[i]), UF_LEADER);
    CHECK_INT(begin_numbered(&table, owner, 64, &extra), UF_NO_SLOT);
    CHECK_INT(uf_abandon(&table, &flights[7], UF_WAIT), UF_OK);
    CHECK_INT(begin_numbered(&table, owner, 64, &extra), UF_LEADER);
    CHECK_INT(extra.slot, flights[7].slot);
    CHECK(extra.generation != flights[7].generation);
    uf_thread_release(&table, owner);
    reap_all(&table);
    check_empty(&table);
    uf_table_detach(&table);
    (void)unused;
}

static void slots_of_dead_leaders_are_swept_when_the_group_is_full(void *unused)
{
    struct uf_table table;
    struct uf_flight flight;
    char key[16];
    table_create(&table, 64, 8, 4, 64);
    uint64_t owner = claim(&table);
    struct actor actor = actor_process(&table);
    for (int i = 0; i < (int)UF_GROUP_SLOTS; i++) {
        snprintf(key, sizeof key, "%d", i);
        CHECK_INT(begin(&actor, key), UF_LEADER);
    }
    CHECK_INT(begin_numbered(&table, owner, 1, &flight), UF_NO_SLOT);
    actor_kill(&actor);
    CHECK_INT(begin_numbered(&table, owner, 1, &flight), UF_LEADER);
    CHECK_INT(uf_abandon(&table, &flight, UF_WAIT), UF_OK);
    check_empty(&table);
    uf_table_detach(&table);
    (void)unused;
}

static void cells_of_dead_waiters_are_swept_when_the_group_is_full(void *unused)
{
    struct uf_table table;
    struct uf_flight flights[3];
    table_create(&table, 64, 3, 3, 64);
    uint64_t owner = claim(&table), other = claim(&table);
    CHECK_INT(begin_numbered(&table, owner, 1, &flights[0]), UF_LEADER);
    int number = 1;
    struct uf_key key = {&number, sizeof number};
    struct actor waiter = actor_process(&table);
    struct uf_caller caller = caller_of(waiter.owner); /* three cells of one that will die */
    for (int i = 0; i < 3; i++)
        CHECK_INT(uf_begin(&table, &caller, &key, &flights[1]), UF_FOLLOWER);
    CHECK_INT(begin_numbered(&table, other, 1, &flights[2]), UF_NO_CELL);
    actor_kill(&waiter);
    CHECK_INT(begin_numbered(&table, other, 1, &flights[2]), UF_FOLLOWER);
    uf_thread_release(&table, other);
    uf_thread_release(&table, owner);
    reap_all(&table);
    check_empty(&table);
    uf_table_detach(&table);
    (void)unused;
}

static void a_damaged_table_refuses_every_operation(void *unused)
{
    struct uf_table table;
    struct uf_flight flight, other;
    struct uf_remains remains;
    bool found;
    table_create(&table, 64, 8, 4, 64);
    uint64_t owner = claim(&table);
    struct uf_caller caller = caller_of(owner);
    struct uf_key key = key_of("k");
    struct uf_result result = value_of("v");
    CHECK_INT(uf_begin(&table, &caller, &key, &flight), UF_LEADER);
    uf_damage(&table);
    CHECK_INT(uf_begin(&table, &caller, &key, &other), UF_DAMAGED);
    CHECK_INT(uf_finish(&table, &flight, &result, UF_WAIT, &remains), UF_DAMAGED);
    CHECK_INT(uf_abandon(&table, &flight, UF_WAIT), UF_DAMAGED);
    CHECK_INT(uf_takeover(&table, &caller, &flight), UF_DAMAGED);
    CHECK_INT(uf_forget(&table, &key, UF_WAIT, &found), UF_DAMAGED);
    CHECK_INT(uf_reap(&table, 0, UF_WAIT), UF_DAMAGED);
    CHECK_INT(uf_poll(&table, &flight, owner, uf_now_ns()), UF_DAMAGED);
    uf_thread_release(&table, owner);
    uf_table_detach(&table);
    (void)unused;
}

/* Three cells wait; the first two point at each other. */
static void an_operation_meets_an_endless_list(enum act act)
{
    struct uf_table table;
    struct actor leader, waiters[3];
    struct answer joined[3];
    table_create(&table, 64, 8, 8, 64);
    leader = actor_process(&table);
    CHECK_INT(begin(&leader, "k"), UF_LEADER);
    for (int i = 0; i < 3; i++) {
        waiters[i] = actor_process(&table);
        joined[i] = ask(&waiters[i], ACT_BEGIN, "k");
    }
    UF_STORE(uf_cell(&table, 0, joined[1].flight.cell)->next, joined[0].flight.cell + 1);
    if (act == ACT_TAKEOVER)
        actor_kill(&leader);
    struct order order = order_of(act, "k");
    bool leads = act == ACT_FINISH || act == ACT_ABANDON;
    tell(leads ? &leader : &waiters[2], &order);
    CHECK_INT(hear(leads ? &leader : &waiters[2]).status, UF_DAMAGED);
    CHECK(uf_is_damaged(&table));
    for (int i = 0; i < 3; i++)
        actor_exit(&waiters[i]);
    if (act != ACT_TAKEOVER)
        actor_exit(&leader);
    uf_table_detach(&table);
}

static void a_list_of_waiters_that_does_not_end_is_damage(void *unused)
{
    an_operation_meets_an_endless_list(ACT_FINISH);
    an_operation_meets_an_endless_list(ACT_ABANDON);
    an_operation_meets_an_endless_list(ACT_LEAVE);
    an_operation_meets_an_endless_list(ACT_TAKEOVER);
    an_operation_meets_an_endless_list(ACT_REAP);
    (void)unused;
}

int main(void)
{
    RUN(limits_out_of_range_have_no_size);
    RUN(a_table_has_at_least_what_was_asked_for);
    RUN(attach_tells_strangers_from_other_versions_and_from_bad_numbers);
    RUN(a_table_whose_limits_are_refused_is_never_accepted);
    RUN(a_holder_is_alive_until_it_releases_its_record);
    RUN(a_killed_process_and_its_unreaped_zombie_are_dead);
    RUN(a_record_that_is_used_again_does_not_revive_its_former_owner);
    RUN(owner_words_that_name_no_record_are_dead);
    RUN(records_of_the_dead_are_used_again_when_all_are_taken);
    RUN(usage_counts_records_that_are_held_or_were_left_by_the_dead);
    RUN(the_sixty_fifth_flight_of_a_group_finds_no_slot_until_one_ends);
    RUN(slots_of_dead_leaders_are_swept_when_the_group_is_full);
    RUN(cells_of_dead_waiters_are_swept_when_the_group_is_full);
    RUN(a_damaged_table_refuses_every_operation);
    RUN(a_list_of_waiters_that_does_not_end_is_damage);
    return report();
}
