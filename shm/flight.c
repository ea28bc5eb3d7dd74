#include "flight.h"

#include <string.h>

#include "bell.h"
#include "check.h"
#include "crash.h"
#include "digest.h"
#include "repair.h"
#include "wait.h"

/* ---- finding and freeing slots ---------------------------------------------------- */

static uint32_t group_of_hash(const struct uf_table *table, uint64_t hash)
{
    return (uint32_t)hash & (table->groups - 1);
}

static bool holds_key(const struct uf_slot *slot, uint64_t hash, const struct uf_key *key)
{
    return UF_LOAD(slot->hash) == hash && UF_LOAD(slot->key_bytes) == key->bytes &&
           memcmp(slot->key, key->data, key->bytes) == 0;
}

static bool find_attached_locked(struct uf_table *table, uint64_t hash, const struct uf_key *key,
                                 uint32_t *found)
{
    uint32_t group = group_of_hash(table, hash);
    uint64_t attached = UF_LOAD(uf_group(table, group)->attached);
    for (; attached; attached &= attached - 1) {
        uint32_t slot = group * UF_GROUP_SLOTS + (uint32_t)__builtin_ctzll(attached);
        if (holds_key(uf_slot(table, slot), hash, key)) {
            *found = slot;
            return true;
        }
    }
    return false;
}

/* The lowest free slot: the few that a table mostly needs stay in the cache. */
static bool find_free_locked(struct uf_table *table, uint32_t group, uint32_t *found)
{
    uint64_t candidates = ~UF_LOAD(uf_group(table, group)->attached);
    for (; candidates; candidates &= candidates - 1) {
        uint32_t slot = group * UF_GROUP_SLOTS + (uint32_t)__builtin_ctzll(candidates);
        if (UF_LOAD(uf_slot(table, slot)->state) == UF_STATE_FREE) {
            *found = slot;
            return true;
        }
    }
    return false;
}

static void detach_locked(struct uf_table *table, uint32_t slot)
{
    struct uf_group *group = uf_group(table, uf_group_of(slot));
    UF_STORE(group->attached, UF_LOAD(group->attached) & ~uf_bit_of(slot));
}

/* Marked first, and unmarked last: whoever dies in between leaves a flight that is attached and
 * marked, from which the repair takes the mark, as if nothing had happened. Detached without a
 * mark it would count as forgotten, and run beside a newer flight when it is taken over. */
static void seal_locked(struct uf_table *table, uint32_t slot)
{
    struct uf_group *group = uf_group(table, uf_group_of(slot));
    if (!(UF_LOAD(group->attached) & uf_bit_of(slot)))
        return; /* forgotten */
    UF_STORE(uf_slot(table, slot)->sealed, 1);
    UF_CRASH_POINT(SEAL_MARKED);
    detach_locked(table, slot); /* COMMIT */
    UF_CRASH_POINT(SEAL_DETACHED);
}

/* Whether the flight is sealed, and a newer one of its key takes callers. */
static bool find_newer_locked(struct uf_table *table, uint32_t slot, uint32_t *newer)
{
    struct uf_slot *s = uf_slot(table, slot);
    const struct uf_key key = {s->key, UF_LOAD(s->key_bytes)};
    return UF_LOAD(s->sealed) && key.bytes <= UF_KEY_BYTES &&
           find_attached_locked(table, UF_LOAD(s->hash), &key, newer);
}

/* The function of a sealed flight runs once more, so it takes callers again. */
static void unseal_locked(struct uf_table *table, uint32_t slot)
{
    struct uf_slot *s = uf_slot(table, slot);
    struct uf_group *group = uf_group(table, uf_group_of(slot));
    if (!UF_LOAD(s->sealed))
        return;
    UF_STORE(group->attached, UF_LOAD(group->attached) | uf_bit_of(slot)); /* COMMIT */
    UF_CRASH_POINT(UNSEAL_ATTACHED);
    UF_STORE(s->sealed, 0);
}

static bool is_present_locked(const struct uf_slot *slot, const struct uf_flight *flight)
{
    return UF_LOAD(slot->generation) == flight->generation &&
           UF_LOAD(slot->epoch) == flight->epoch && UF_LOAD(slot->state) == UF_STATE_RUNNING;
}

/* Numbers only grow, by one at a time: one that is lower than it was, or more than 2^32 ahead,
 * was not written by the core. A leader that took it for a fence would leave its followers waiting. */
static bool is_nonsense(uint64_t now, uint64_t then)
{
    return now < then || now - then > UINT64_C(1) << 32;
}

static enum uf_status fence_locked(struct uf_table *table, const struct uf_slot *slot,
                                   const struct uf_flight *flight)
{
    if (is_nonsense(UF_LOAD(slot->generation), flight->generation) ||
        is_nonsense(UF_LOAD(slot->epoch), flight->epoch))
        return uf_damage(table);
    return UF_FENCED;
}

/* Says, without the lock, that this leadership is over: for everybody else it is as if
 * the leader had died.  Epochs only grow, so a late resignation never hits a successor. */
static void resign(struct uf_slot *slot, uint64_t epoch)
{
    uint64_t seen = UF_LOAD(slot->resigned);
    while (seen < epoch && !atomic_compare_exchange_weak(&slot->resigned, &seen, epoch))
        ;
}

/* Takes the group's lock for the leader of `flight`. One that waited for it in vain has resigned. */
static enum uf_status lock_or_resign(struct uf_table *table, const struct uf_flight *flight,
                                     enum uf_patience patience)
{
    enum uf_status status = uf_group_lock(table, uf_group_of(flight->slot), patience);
    if (status != UF_OK && status != UF_BUSY)
        resign(uf_slot(table, flight->slot), flight->epoch);
    return status;
}

/* ---- begin ------------------------------------------------------------------------ */

static uint64_t lease_end(const struct uf_caller *caller, uint64_t now_ns)
{
    return caller->lease_ns >= UF_NO_LEASE - now_ns ? 0 : now_ns + caller->lease_ns;
}

static void write_leader_locked(struct uf_table *table, struct uf_slot *slot,
                                const struct uf_caller *caller, uint64_t now_ns)
{
    UF_STORE(slot->leader_pid, table->pid);
    UF_STORE(slot->lease_end_ns, lease_end(caller, now_ns));
}

static void describe(struct uf_flight *flight, uint32_t slot, const struct uf_slot *s)
{
    flight->slot = slot;
    flight->generation = UF_LOAD(s->generation);
    flight->epoch = UF_LOAD(s->epoch);
    flight->takeovers = UF_LOAD(s->takeovers);
    flight->leader_pid = UF_LOAD(s->leader_pid);
}

static void start_locked(struct uf_table *table, const struct uf_caller *caller,
                         const struct uf_key *key, uint64_t hash, uint32_t slot)
{
    struct uf_slot *s = uf_slot(table, slot);
    struct uf_group *group = uf_group(table, uf_group_of(slot));
    uint64_t now_ns = uf_now_ns();
    UF_STORE(s->generation, UF_LOAD(s->generation) + 1);
    UF_STORE(s->epoch, UF_LOAD(s->epoch) + 1);
    UF_STORE(s->hash, hash);
    UF_STORE(s->key_bytes, key->bytes);
    memcpy(s->key, key->data, key->bytes);
    UF_STORE(s->first, 0);
    UF_STORE(s->last, 0);
    UF_STORE(s->takeovers, 0);
    UF_STORE(s->deaths, 0);
    UF_STORE(s->followers, 0);
    UF_STORE(s->sealed, 0);
    UF_STORE(s->payload, UF_PAYLOAD_NONE);
    UF_STORE(s->payload_bytes, 0);
    UF_STORE(s->started_ns, now_ns);
    write_leader_locked(table, s, caller, now_ns);
    UF_STORE(s->leader, caller->owner);
    UF_CRASH_POINT(BEGIN_SLOT_FILLED);
    UF_STORE(s->state, UF_STATE_RUNNING);
    UF_CRASH_POINT(BEGIN_RUNNING);
    UF_ADD(group->leaders, 1);
    UF_STORE(group->attached, UF_LOAD(group->attached) | uf_bit_of(slot)); /* COMMIT */
    UF_CRASH_POINT(BEGIN_ATTACHED);
}

/* Order matters, see docs/architecture.md: with the epoch first a waiter would follow a
 * leadership that does not exist; with the state first two callers could lead. */
static void lead_locked(struct uf_table *table, const struct uf_caller *caller, uint32_t slot,
                        bool after_death)
{
    struct uf_slot *s = uf_slot(table, slot);
    struct uf_group *group = uf_group(table, uf_group_of(slot));
    if (after_death) /* with a big result created and not yet published, perhaps */
        UF_STORE(table->header->leaked, 1);
    UF_STORE(s->leader, caller->owner); /* COMMIT when the leader died */
    UF_CRASH_POINT(TAKEOVER_LEADER);
    write_leader_locked(table, s, caller, uf_now_ns());
    UF_ADD(s->takeovers, 1);
    UF_ADD(s->deaths, after_death ? 1 : 0);
    UF_ADD(group->takeovers, 1);
    UF_ADD(group->leaders, 1);
    UF_STORE(s->epoch, UF_LOAD(s->epoch) + 1); /* fences the former leader */
    UF_CRASH_POINT(TAKEOVER_EPOCH);
    UF_STORE(s->state, UF_STATE_RUNNING); /* COMMIT when the leader abandoned */
    UF_CRASH_POINT(TAKEOVER_RUNNING);
    unseal_locked(table, slot);
}

/* Of a flight that is DONE. */
static void wake_next_locked(struct uf_table *table, struct uf_wakes *wakes, struct uf_slot *slot)
{
    uint32_t next = UF_LOAD(slot->unposted);
    const struct uf_cell *cell = uf_cell_of(table, wakes->group, next);
    if (cell)
        uf_wake_locked(wakes, next - 1);
    UF_STORE(slot->unposted, cell ? UF_LOAD(cell->next) : 0);
}

/* The flight is DONE. Its first waiter is woken; from then on everybody who is awake passes on. */
static void wake_crowd_locked(struct uf_table *table, struct uf_wakes *wakes, struct uf_slot *slot)
{
    UF_STORE(slot->unposted, UF_LOAD(slot->first));
    wake_next_locked(table, wakes, slot);
}

static bool pass_on(struct uf_table *table, const struct uf_flight *flight,
                    enum uf_patience patience)
{
    uint32_t group = uf_group_of(flight->slot);
    struct uf_slot *s = uf_slot(table, flight->slot);
    struct uf_wakes wakes;
    uf_wakes_init(&wakes, group);
    if (UF_LOAD(s->unposted) == 0 || uf_group_lock(table, group, patience) != UF_OK)
        return false;
    /* A leader has no cell that would keep the slot from being used for another flight. */
    if (UF_LOAD(s->generation) == flight->generation && UF_LOAD(s->state) == UF_STATE_DONE)
        wake_next_locked(table, &wakes, s);
    uf_group_unlock(table, group);
    UF_CRASH_POINT(PASS_UNLOCKED);
    uf_post(table, &wakes);
    return wakes.count > 0;
}

void uf_pass_on(struct uf_table *table, const struct uf_flight *flight)
{
    pass_on(table, flight, UF_TRY);
}

void uf_announce(struct uf_table *table, const struct uf_flight *flight,
                 const struct uf_wakes *wakes, uint32_t followers)
{
    uint32_t most = followers < UF_FIRST_WAKES ? followers : UF_FIRST_WAKES;
    uf_post(table, wakes);
    for (uint32_t posted = 1; posted < most && pass_on(table, flight, UF_WAIT);)
        posted++;
}

/* Ends a flight whose leaders died too often: its waiters raise, the key is free. */
static void give_up_locked(struct uf_table *table, uint32_t slot, struct uf_wakes *wakes)
{
    struct uf_slot *s = uf_slot(table, slot);
    UF_STORE(table->header->leaked, 1); /* the last leader may have died while publishing */
    UF_STORE(s->payload, UF_PAYLOAD_DIED);
    /* No new epoch: until it is DONE, a leader that only outlived its lease may yet finish; then
     * the state fences it. */
    UF_STORE(s->state, UF_STATE_DONE); /* COMMIT */
    UF_CRASH_POINT(DIED_DONE);
    detach_locked(table, slot);
    wake_crowd_locked(table, wakes, s);
}

/* Full for good, if the group holds what nobody will ever free. */
static enum uf_status full_or_damaged_locked(struct uf_table *table, uint32_t group,
                                             enum uf_status full)
{
    struct uf_fault fault;
    return uf_group_check_locked(table, group, &fault) ? full : uf_damage(table);
}

static enum uf_status join_locked(struct uf_table *table, const struct uf_caller *caller,
                                  uint32_t slot, struct uf_wakes *wakes, uint32_t *cell)
{
    enum uf_status status = uf_join_locked(table, slot, caller->owner, caller->doorbell, cell);
    if (status != UF_NO_CELL)
        return status;
    if (uf_sweep_locked(table, uf_group_of(slot), wakes) != UF_OK)
        return UF_DAMAGED;
    /* The leader may have died or resigned since it was looked at: then the sweep has freed
     * the slot, and the caller starts a fresh flight. */
    if (UF_LOAD(uf_slot(table, slot)->state) == UF_STATE_FREE)
        return UF_PENDING;
    status = uf_join_locked(table, slot, caller->owner, caller->doorbell, cell);
    return status == UF_NO_CELL ? full_or_damaged_locked(table, uf_group_of(slot), status) : status;
}

static enum uf_status start_fresh_locked(struct uf_table *table, const struct uf_caller *caller,
                                         const struct uf_key *key, uint64_t hash,
                                         struct uf_wakes *wakes, struct uf_flight *flight)
{
    uint32_t group = group_of_hash(table, hash), slot;
    if (!find_free_locked(table, group, &slot)) {
        if (uf_sweep_locked(table, group, wakes) != UF_OK)
            return UF_DAMAGED;
        if (!find_free_locked(table, group, &slot))
            return full_or_damaged_locked(table, group, UF_NO_SLOT);
    }
    start_locked(table, caller, key, hash, slot);
    describe(flight, slot, uf_slot(table, slot));
    return UF_LEADER;
}

/* The key is attached: join, or replace a leader that is gone. UF_PENDING means that the
 * flight has just ended and the caller starts a fresh one. */
static enum uf_status enter_locked(struct uf_table *table, const struct uf_caller *caller,
                                   uint32_t slot, struct uf_wakes *wakes, struct uf_flight *flight)
{
    struct uf_slot *s = uf_slot(table, slot);
    uint32_t state = UF_LOAD(s->state);
    bool died = false;
    if (state != UF_STATE_RUNNING && state != UF_STATE_ORPHANED)
        return uf_damage(table);
    if (state == UF_STATE_RUNNING) {
        bool leaderless = uf_is_leaderless(table, s, uf_now_ns(), &died);
        /* Tasks of a loop share its thread's record: one of them may replace another that is
         * overdue. A thread that blocks would replace itself. */
        bool mine = UF_LOAD(s->leader) == caller->owner && UF_LOAD(s->resigned) != UF_LOAD(s->epoch);
        if (mine && (!leaderless || !caller->doorbell))
            return UF_SELF_JOIN;
        if (!leaderless) {
            enum uf_status status = join_locked(table, caller, slot, wakes, &flight->cell);
            describe(flight, slot, s);
            return status == UF_OK ? UF_FOLLOWER : status;
        }
    }
    /* The dead leader may not have died alone. */
    if (uf_sweep_locked(table, uf_group_of(slot), wakes) != UF_OK)
        return UF_DAMAGED;
    if (UF_LOAD(s->state) == UF_STATE_FREE)
        return UF_PENDING;
    if (died && UF_LOAD(s->deaths) >= caller->max_takeovers) {
        if (UF_LOAD(s->first) == 0)
            uf_free_slot_locked(table, slot);
        else
            give_up_locked(table, slot, wakes);
        return UF_PENDING;
    }
    lead_locked(table, caller, slot, died);
    describe(flight, slot, s);
    return UF_LEADER;
}

enum uf_status uf_begin(struct uf_table *table, const struct uf_caller *caller,
                        const struct uf_key *key, struct uf_flight *flight)
{
    if (key->bytes > UF_KEY_BYTES)
        return UF_DAMAGED;
    uint64_t hash = uf_siphash(table->hash_key, key->data, key->bytes);
    uint32_t group = group_of_hash(table, hash), slot;
    struct uf_wakes wakes;
    uf_wakes_init(&wakes, group);
    enum uf_status status = uf_group_lock(table, group, caller->patience);
    if (status != UF_OK)
        return status;
    UF_CRASH_POINT(BEGIN_LOCKED);
    /* The caller's own record says that it is another: everybody would take it for dead. */
    status = UF_PENDING;
    if (!uf_is_on_record(table, caller->owner))
        status = uf_damage(table);
    else if (find_attached_locked(table, hash, key, &slot))
        status = enter_locked(table, caller, slot, &wakes, flight);
    if (status == UF_PENDING)
        status = start_fresh_locked(table, caller, key, hash, &wakes, flight);
    uf_group_unlock(table, group);
    if (status == UF_LEADER)
        UF_CRASH_POINT(BEGIN_LEADING);
    if (status == UF_FOLLOWER)
        UF_CRASH_POINT(JOIN_WAITING);
    uf_post(table, &wakes);
    return status;
}

/* ---- finish ----------------------------------------------------------------------- */

struct audience {
    uint32_t local, foreign;
};

static enum uf_status count_waiters_locked(struct uf_table *table, uint32_t slot,
                                           struct audience *audience)
{
    uint32_t group = uf_group_of(slot), word = UF_LOAD(uf_slot(table, slot)->first);
    *audience = (struct audience){0, 0};
    for (uint32_t steps = 0; word != 0; steps++) {
        struct uf_cell *cell = uf_cell_of(table, group, word);
        if (!cell || steps >= table->cells)
            return uf_damage(table);
        struct uf_thread *thread = uf_thread_of(table, UF_LOAD(cell->owner));
        if (thread && UF_LOAD(thread->pid) == table->pid)
            audience->local++;
        else
            audience->foreign++;
        word = UF_LOAD(cell->next);
    }
    return UF_OK;
}

static void write_payload_locked(struct uf_table *table, uint32_t slot,
                                 const struct uf_result *result)
{
    struct uf_slot *s = uf_slot(table, slot);
    uint64_t sum = result->sum;
    if (result->data) {
        size_t half = result->bytes / 2;
        memcpy(uf_payload(table, slot), result->data, half);
        UF_CRASH_POINT(FINISH_HALF_COPIED);
        memcpy(uf_payload(table, slot) + half, (const char *)result->data + half,
               result->bytes - half);
        sum = uf_checksum(result->data, result->bytes);
    }
    UF_STORE(s->payload, result->kind);
    UF_STORE(s->payload_bytes, result->bytes);
    UF_STORE(s->payload_sum, sum ^ result->kind); /* an error is not to be taken for a value */
    UF_ADD(uf_group(table, uf_group_of(slot))->published_bytes, result->bytes);
    UF_CRASH_POINT(FINISH_COPIED);
}

static void keep_value_locked(struct uf_table *table, const struct uf_flight *flight,
                              const struct uf_result *result, uint32_t local,
                              struct uf_remains *remains)
{
    struct uf_local *entry = &table->local[flight->slot];
    if (!result->value || local == 0)
        return;
    remains->value = entry->value; /* of a flight whose followers' threads ended unseen */
    *entry = (struct uf_local){.epoch = flight->epoch, .pending = local, .value = result->value};
    remains->value_kept = true;
}

static bool is_encoded(const struct uf_result *result)
{
    return result->data != NULL || uf_is_extra(result->kind);
}

static void publish_locked(struct uf_table *table, const struct uf_flight *flight,
                           const struct uf_result *result, const struct audience *audience,
                           struct uf_wakes *wakes, struct uf_remains *remains)
{
    struct uf_slot *s = uf_slot(table, flight->slot);
    const struct uf_result local_only = {.kind = UF_PAYLOAD_LOCAL};
    write_payload_locked(table, flight->slot, is_encoded(result) ? result : &local_only);
    keep_value_locked(table, flight, result, audience->local, remains);
    remains->followers = audience->local + audience->foreign;
    UF_STORE(s->followers, remains->followers);
    UF_STORE(s->state, UF_STATE_DONE); /* COMMIT; before detaching, or two could lead */
    UF_CRASH_POINT(FINISH_DONE);
    detach_locked(table, flight->slot);
    UF_CRASH_POINT(FINISH_DETACHED);
    wake_crowd_locked(table, wakes, s);
}

static enum uf_status finish_locked(struct uf_table *table, const struct uf_flight *flight,
                                    const struct uf_result *result, struct uf_wakes *wakes,
                                    struct uf_remains *remains)
{
    struct uf_slot *s = uf_slot(table, flight->slot);
    struct uf_group *group = uf_group(table, uf_group_of(flight->slot));
    struct audience audience;
    uint32_t first = UF_LOAD(s->first);
    if (!is_present_locked(s, flight)) {
        UF_ADD(group->fenced, 1);
        return fence_locked(table, s, flight);
    }
    if (uf_drop_dead_locked(table, flight->slot, UF_WHOLE_LIST) != UF_OK ||
        count_waiters_locked(table, flight->slot, &audience) != UF_OK)
        return UF_DAMAGED;
    bool wanted = audience.foreign > 0 || (audience.local > 0 && result->kind == UF_PAYLOAD_ERROR);
    if (wanted && !is_encoded(result)) {
        seal_locked(table, flight->slot);
        if (UF_LOAD(s->first) != first) /* it has to watch this leader in place of a dead one */
            uf_wake_first_locked(table, wakes, s);
        return UF_NEEDS_PAYLOAD;
    }
    UF_ADD(group->failures, result->kind == UF_PAYLOAD_ERROR ? 1 : 0);
    if (audience.local + audience.foreign == 0) {
        UF_STORE(s->state, UF_STATE_FREE); /* COMMIT */
        UF_CRASH_POINT(FINISH_FREE);
        detach_locked(table, flight->slot);
        return UF_OK;
    }
    publish_locked(table, flight, result, &audience, wakes, remains);
    return UF_OK;
}

enum uf_status uf_finish_quietly(struct uf_table *table, const struct uf_flight *flight,
                                 const struct uf_result *result, enum uf_patience patience,
                                 struct uf_remains *remains, struct uf_wakes *wakes)
{
    uint32_t group = uf_group_of(flight->slot);
    uf_wakes_init(wakes, group);
    *remains = (struct uf_remains){0};
    if (result->data && result->bytes > table->inline_bytes)
        return UF_DAMAGED;
    if (uf_is_extra(result->kind))
        UF_CRASH_POINT(EXTRA_CREATED);
    enum uf_status status = lock_or_resign(table, flight, patience);
    if (status != UF_OK)
        return status;
    UF_CRASH_POINT(FINISH_LOCKED);
    status = finish_locked(table, flight, result, wakes, remains);
    uf_group_unlock(table, group);
    UF_CRASH_POINT(FINISH_UNLOCKED);
    return status;
}

enum uf_status uf_finish(struct uf_table *table, const struct uf_flight *flight,
                         const struct uf_result *result, enum uf_patience patience,
                         struct uf_remains *remains)
{
    struct uf_wakes wakes;
    enum uf_status status =
        uf_finish_quietly(table, flight, result, patience, remains, &wakes);
    uf_announce(table, flight, &wakes, remains->followers);
    return status;
}

enum uf_status uf_seal(struct uf_table *table, const struct uf_flight *flight,
                       enum uf_patience patience)
{
    uint32_t group = uf_group_of(flight->slot);
    /* Without the lock: those who come now must not receive what is about to be published. */
    enum uf_status status = lock_or_resign(table, flight, patience);
    if (status != UF_OK)
        return status;
    if (is_present_locked(uf_slot(table, flight->slot), flight))
        seal_locked(table, flight->slot);
    else
        status = UF_FENCED;
    uf_group_unlock(table, group);
    return status;
}

/* ---- abandon ---------------------------------------------------------------------- */

static enum uf_status abandon_locked(struct uf_table *table, const struct uf_flight *flight,
                                     struct uf_wakes *wakes)
{
    struct uf_slot *s = uf_slot(table, flight->slot);
    if (!is_present_locked(s, flight))
        return fence_locked(table, s, flight);
    if (uf_drop_dead_locked(table, flight->slot, UF_WHOLE_LIST) != UF_OK)
        return UF_DAMAGED;
    if (UF_LOAD(s->first) == 0) {
        UF_STORE(s->state, UF_STATE_FREE); /* COMMIT */
        detach_locked(table, flight->slot);
        return UF_OK;
    }
    UF_STORE(s->state, UF_STATE_ORPHANED); /* COMMIT */
    UF_CRASH_POINT(ABANDON_ORPHANED);
    uf_wake_first_locked(table, wakes, s);
    return UF_OK;
}

enum uf_status uf_abandon(struct uf_table *table, const struct uf_flight *flight,
                          enum uf_patience patience)
{
    uint32_t group = uf_group_of(flight->slot);
    struct uf_wakes wakes;
    uf_wakes_init(&wakes, group);
    enum uf_status status = lock_or_resign(table, flight, patience);
    if (status != UF_OK)
        return status;
    UF_CRASH_POINT(ABANDON_LOCKED);
    status = abandon_locked(table, flight, &wakes);
    uf_group_unlock(table, group);
    uf_post(table, &wakes);
    return status;
}

/* ---- leave and takeover ----------------------------------------------------------- */

static void release_value_locked(struct uf_table *table, uint32_t slot, struct uf_remains *remains)
{
    struct uf_local *entry = &table->local[slot];
    if (entry->epoch == UF_LOAD(uf_slot(table, slot)->epoch) && entry->pending > 0 &&
        --entry->pending == 0) {
        remains->value = entry->value;
        entry->value = NULL;
    }
}

/* After a cell left: the last one out frees the slot, and a new first waiter is woken so
 * that it acts (ORPHANED) or starts to watch the leader (RUNNING). */
static void settle_locked(struct uf_table *table, uint32_t slot, bool was_first,
                          struct uf_wakes *wakes, struct uf_remains *remains)
{
    struct uf_slot *s = uf_slot(table, slot);
    uint32_t state = UF_LOAD(s->state);
    if (state == UF_STATE_RUNNING || UF_LOAD(s->first) != 0) {
        if (was_first && state != UF_STATE_DONE)
            uf_wake_first_locked(table, wakes, s);
        return;
    }
    remains->extra_segment = uf_is_extra(UF_LOAD(s->payload));
    UF_STORE(s->state, UF_STATE_FREE);
    UF_CRASH_POINT(LEAVE_FREED);
    detach_locked(table, slot);
}

static enum uf_status leave_locked(struct uf_table *table, const struct uf_flight *flight,
                                   enum uf_leaving how, struct uf_wakes *wakes,
                                   struct uf_remains *remains)
{
    struct uf_slot *s = uf_slot(table, flight->slot);
    struct uf_group *group = uf_group(table, uf_group_of(flight->slot));
    bool was_first = UF_LOAD(s->first) == flight->cell + 1;
    bool done = UF_LOAD(s->state) == UF_STATE_DONE;
    if (uf_unlink_locked(table, flight->slot, flight->cell) != UF_OK)
        return UF_DAMAGED;
    UF_ADD(group->timeouts, how == UF_LEAVING_TIMED_OUT ? 1 : 0);
    UF_ADD(group->followers, done && how == UF_LEAVING_SERVED ? 1 : 0);
    if (done)
        release_value_locked(table, flight->slot, remains);
    /* Successors that are dead would never pass the word on, nor free the slot. */
    if ((was_first || done) &&
        uf_drop_dead_locked(table, flight->slot, UF_TO_FIRST_ALIVE) != UF_OK)
        return UF_DAMAGED;
    if (done) /* not before: a post to the dead would be the last */
        wake_next_locked(table, wakes, s);
    settle_locked(table, flight->slot, was_first, wakes, remains);
    return UF_OK;
}

enum uf_status uf_leave(struct uf_table *table, const struct uf_flight *flight, uint64_t owner,
                        enum uf_leaving how, enum uf_patience patience,
                        struct uf_remains *remains)
{
    uint32_t group = uf_group_of(flight->slot);
    struct uf_wakes wakes;
    uf_wakes_init(&wakes, group);
    *remains = (struct uf_remains){0};
    enum uf_status status = uf_group_lock(table, group, patience);
    if (status == UF_BUSY)
        return status;
    if (status != UF_OK) {
        /* Counts as dead from here on; whoever sweeps next frees the cell. */
        if (uf_owns_cell(table, flight, owner))
            UF_STORE(uf_cell(table, group, flight->cell)->resigned, 1);
        return status;
    }
    UF_CRASH_POINT(LEAVE_LOCKED);
    /* Swept already, if the thread released its record while it waited: nothing to do. */
    if (uf_owns_cell(table, flight, owner))
        status = leave_locked(table, flight, how, &wakes, remains);
    uf_group_unlock(table, group);
    uf_post(table, &wakes);
    return status;
}

/* The leader of a sealed flight is gone, and its function would have to run again: beside the one
 * of the newer flight. That one began after this caller came, so its result will do. */
static enum uf_status move_locked(struct uf_table *table, struct uf_flight *flight,
                                  uint32_t newer, bool after_death, struct uf_wakes *wakes)
{
    uint32_t former = flight->slot;
    struct uf_remains nothing; /* no result was published */
    bool was_first = UF_LOAD(uf_slot(table, former)->first) == flight->cell + 1;
    if (after_death) /* with a big result created, perhaps */
        UF_STORE(table->header->leaked, 1);
    if (uf_move_locked(table, former, flight->cell, newer) != UF_OK)
        return UF_DAMAGED;
    describe(flight, newer, uf_slot(table, newer));
    settle_locked(table, former, was_first, wakes, &nothing);
    return UF_PENDING;
}

static enum uf_status takeover_locked(struct uf_table *table, const struct uf_caller *caller,
                                      struct uf_wakes *wakes, struct uf_flight *flight)
{
    struct uf_slot *s = uf_slot(table, flight->slot);
    uint32_t state = UF_LOAD(s->state), newer;
    bool died = false;
    if (!uf_owns_cell(table, flight, caller->owner))
        return UF_DAMAGED;
    if (state == UF_STATE_DONE)
        return UF_DONE;
    if (state == UF_STATE_RUNNING && !uf_is_leaderless(table, s, uf_now_ns(), &died))
        return UF_PENDING;
    if (uf_sweep_locked(table, wakes->group, wakes) != UF_OK)
        return UF_DAMAGED;
    /* Asked first: who moves risks no process, however many have died of this flight. */
    if (find_newer_locked(table, flight->slot, &newer))
        return move_locked(table, flight, newer, died, wakes);
    if (died && UF_LOAD(s->deaths) >= caller->max_takeovers) {
        give_up_locked(table, flight->slot, wakes);
        return UF_DONE;
    }
    /* First the cell, then the lead: whoever dies in between is no waiter any more, and
     * the repair that follows wakes the others. */
    if (uf_unlink_locked(table, flight->slot, flight->cell) != UF_OK)
        return UF_DAMAGED;
    UF_CRASH_POINT(TAKEOVER_LEFT);
    lead_locked(table, caller, flight->slot, died);
    /* The next waiter is first now, and has to start watching this leader. */
    uf_wake_first_locked(table, wakes, s);
    describe(flight, flight->slot, s);
    return UF_LEADER;
}

enum uf_status uf_takeover(struct uf_table *table, const struct uf_caller *caller,
                           struct uf_flight *flight)
{
    uint32_t group = uf_group_of(flight->slot);
    struct uf_wakes wakes;
    uf_wakes_init(&wakes, group);
    enum uf_status status = uf_group_lock(table, group, caller->patience);
    if (status != UF_OK)
        return status;
    status = takeover_locked(table, caller, &wakes, flight);
    uf_group_unlock(table, group);
    uf_post(table, &wakes);
    return status;
}

/* ---- forget and reap -------------------------------------------------------------- */

enum uf_status uf_forget(struct uf_table *table, const struct uf_key *key,
                         enum uf_patience patience, bool *found)
{
    if (key->bytes > UF_KEY_BYTES)
        return UF_DAMAGED;
    uint64_t hash = uf_siphash(table->hash_key, key->data, key->bytes);
    uint32_t group = group_of_hash(table, hash), slot;
    enum uf_status status = uf_group_lock(table, group, patience);
    if (status != UF_OK)
        return status;
    *found = find_attached_locked(table, hash, key, &slot);
    if (*found) {
        detach_locked(table, slot); /* COMMIT */
        UF_CRASH_POINT(FORGET_DETACHED);
    }
    uf_group_unlock(table, group);
    return UF_OK;
}

enum uf_status uf_reap(struct uf_table *table, uint32_t group, enum uf_patience patience)
{
    struct uf_wakes wakes;
    uf_wakes_init(&wakes, group);
    enum uf_status status = uf_group_lock(table, group, patience);
    if (status != UF_OK)
        return status;
    status = uf_sweep_locked(table, group, &wakes);
    uf_group_unlock(table, group);
    uf_post(table, &wakes);
    return status;
}
