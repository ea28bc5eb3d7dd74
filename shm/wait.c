#include "wait.h"

#include <errno.h>

#include "repair.h"
#include "watch.h"
#include "watcher.h"

bool uf_owns_cell(const struct uf_table *table, const struct uf_flight *flight, uint64_t owner)
{
    const struct uf_cell *cell = uf_cell(table, uf_group_of(flight->slot), flight->cell);
    return UF_LOAD(cell->owner) == owner && UF_LOAD(cell->generation) == flight->generation &&
           UF_LOAD(cell->slot) == flight->slot % UF_GROUP_SLOTS &&
           UF_LOAD(uf_slot(table, flight->slot)->generation) == flight->generation;
}

enum uf_status uf_poll(struct uf_table *table, const struct uf_flight *flight, uint64_t owner,
                       uint64_t now_ns)
{
    const struct uf_slot *slot = uf_slot(table, flight->slot);
    if (uf_is_damaged(table))
        return UF_DAMAGED;
    if (!uf_owns_cell(table, flight, owner)) {
        /* Somebody else's by now if the thread released its record while it waited. But a cell
         * that is ours and waits for something else was not written so by the core. */
        const struct uf_cell *cell = uf_cell(table, uf_group_of(flight->slot), flight->cell);
        return UF_LOAD(cell->owner) == owner ? uf_damage(table) : UF_DAMAGED;
    }
    switch (UF_LOAD(slot->state)) {
    case UF_STATE_DONE:
        return UF_DONE;
    case UF_STATE_ORPHANED:
        return UF_LEADERLESS;
    case UF_STATE_RUNNING:
        return uf_is_leaderless(table, slot, now_ns, NULL) ? UF_LEADERLESS : UF_PENDING;
    default: /* FREE, with a waiter: never written */
        return uf_damage(table);
    }
}

/* Read without the lock: a stale answer makes one sleep too long or too short, and whoever
 * becomes first is posted. */
static bool is_first(const struct uf_slot *slot, const struct uf_flight *flight)
{
    return UF_LOAD(slot->first) == flight->cell + 1;
}

static uint64_t earlier(uint64_t one_ns, uint64_t other_ns)
{
    return one_ns < other_ns ? one_ns : other_ns;
}

static uint64_t end_of_lease(const struct uf_slot *slot, uint64_t now_ns)
{
    uint64_t end_ns = UF_LOAD(slot->lease_end_ns);
    return end_ns > now_ns ? end_ns : UF_NO_DEADLINE;
}

uint64_t uf_next_look(const struct uf_table *table, const struct uf_flight *flight,
                      uint64_t now_ns)
{
    const struct uf_slot *slot = uf_slot(table, flight->slot);
    if (!is_first(slot, flight))
        return now_ns + UF_WATCH_OTHERS_NS;
    uint64_t started = UF_LOAD(slot->started_ns);
    uint64_t step = now_ns > started ? (now_ns - started) / 100 : 0;
    step = step < UF_WATCH_MIN_NS ? UF_WATCH_MIN_NS : step;
    step = step > UF_WATCH_MAX_NS ? UF_WATCH_MAX_NS : step;
    return earlier(now_ns + step, end_of_lease(slot, now_ns));
}

/* Of a first waiter that is told of its leader's end. */
static uint64_t next_look_if_told(const struct uf_slot *slot, uint64_t now_ns)
{
    return earlier(now_ns + UF_WATCH_BACKSTOP_NS, end_of_lease(slot, now_ns));
}

uint64_t uf_next_look_of_loop(const struct uf_table *table, const struct uf_flight *flight,
                              const unsigned char *doorbell, uint64_t now_ns)
{
    const struct uf_slot *slot = uf_slot(table, flight->slot);
    if (is_first(slot, flight) && uf_watcher_add(table, UF_LOAD(slot->leader), doorbell))
        return next_look_if_told(slot, now_ns);
    return uf_next_look(table, flight, now_ns);
}

bool uf_is_joinable(const struct uf_table *table, const struct uf_flight *flight)
{
    const struct uf_slot *slot = uf_slot(table, flight->slot);
    uint64_t attached = UF_LOAD(uf_group(table, uf_group_of(flight->slot))->attached);
    uint32_t state = UF_LOAD(slot->state);
    return (attached & uf_bit_of(flight->slot)) != 0 &&
           UF_LOAD(slot->generation) == flight->generation &&
           (state == UF_STATE_RUNNING || state == UF_STATE_ORPHANED) && !uf_is_damaged(table);
}

bool uf_is_leading(const struct uf_table *table, const struct uf_flight *flight, uint64_t now_ns)
{
    const struct uf_slot *slot = uf_slot(table, flight->slot);
    return UF_LOAD(slot->generation) == flight->generation &&
           UF_LOAD(slot->epoch) == flight->epoch && UF_LOAD(slot->state) == UF_STATE_RUNNING &&
           !uf_is_leaderless(table, slot, now_ns, NULL);
}

/* False if a signal ended it. */
static bool sleep_unwatched(sem_t *semaphore, uint64_t until_ns)
{
    struct timespec until = uf_timespec_of(until_ns);
    return sem_clockwait(semaphore, CLOCK_MONOTONIC, &until) == 0 || errno != EINTR;
}

enum uf_status uf_wait(struct uf_table *table, const struct uf_flight *flight, uint64_t owner,
                       uint64_t deadline_ns)
{
    const struct uf_slot *slot = uf_slot(table, flight->slot);
    sem_t *semaphore = &uf_cell(table, uf_group_of(flight->slot), flight->cell)->semaphore;
    for (;;) {
        uint64_t now_ns = uf_now_ns(), until_ns;
        struct uf_watch watch;
        bool undisturbed;
        enum uf_status status = uf_poll(table, flight, owner, now_ns);
        if (status == UF_DONE)
            uf_pass_on(table, flight);
        if (status != UF_PENDING)
            return status;
        if (now_ns >= deadline_ns)
            return UF_TIMED_OUT;
        if (is_first(slot, flight) && uf_watch_arm(table, UF_LOAD(slot->leader), &watch)) {
            until_ns = next_look_if_told(slot, now_ns);
            undisturbed = uf_watch_sleep(&watch, semaphore, earlier(until_ns, deadline_ns));
        } else {
            until_ns = uf_next_look(table, flight, now_ns);
            undisturbed = sleep_unwatched(semaphore, earlier(until_ns, deadline_ns));
        }
        if (!undisturbed)
            return UF_INTERRUPTED;
    }
}

enum uf_status uf_view(struct uf_table *table, const struct uf_flight *flight, struct uf_view *view)
{
    const struct uf_slot *slot = uf_slot(table, flight->slot);
    const struct uf_local *local = &table->local[flight->slot];
    uint32_t kind = UF_LOAD(slot->payload);
    *view = (struct uf_view){
        .bytes = UF_LOAD(slot->payload_bytes), .sum = UF_LOAD(slot->payload_sum),
        .epoch = UF_LOAD(slot->epoch), .followers = UF_LOAD(slot->followers),
        .takeovers = UF_LOAD(slot->takeovers), .deaths = UF_LOAD(slot->deaths),
        .leader_pid = UF_LOAD(slot->leader_pid)};
    if (kind == UF_PAYLOAD_NONE || kind >= UF_PAYLOAD_KINDS)
        return uf_damage(table);
    view->kind = (enum uf_payload)kind;
    view->sum ^= kind;
    if (view->bytes > (uf_is_inline(kind) ? table->inline_bytes : table->result_bytes))
        return uf_damage(table);
    if (uf_is_inline(kind))
        view->data = uf_payload(table, flight->slot);
    /* `pending` counts this follower until it leaves, so the object stays. */
    if (local->value && local->epoch == view->epoch)
        view->value = local->value;
    return UF_OK;
}
