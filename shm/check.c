#include "check.h"

#include <string.h>

#include "waiters.h"

static bool fault_at(struct uf_fault *fault, uint32_t slot, const char *what)
{
    *fault = (struct uf_fault){.slot = slot, .what = what};
    return false;
}

static bool check_list(struct uf_table *table, uint32_t slot, uint32_t *linked,
                       struct uf_fault *fault)
{
    uint32_t group = uf_group_of(slot), index = slot % UF_GROUP_SLOTS;
    struct uf_slot *s = uf_slot(table, slot);
    uint32_t word = UF_LOAD(s->first), tail = 0, steps = 0;
    uint32_t unposted = UF_LOAD(s->unposted);
    if (unposted != 0 && UF_LOAD(s->state) != UF_STATE_DONE)
        return fault_at(fault, index, "a waiter is to be posted before the end");
    for (; word != 0; steps++) {
        struct uf_cell *cell = uf_cell_of(table, group, word);
        if (!cell)
            return fault_at(fault, index, "a waiter's index is out of range");
        if (steps >= table->cells)
            return fault_at(fault, index, "the list of waiters does not end");
        if (UF_LOAD(cell->owner) == 0)
            return fault_at(fault, index, "a free cell is linked");
        if (UF_LOAD(cell->slot) != index || UF_LOAD(cell->generation) != UF_LOAD(s->generation))
            return fault_at(fault, index, "a cell of another flight is linked");
        tail = word;
        unposted = word == unposted ? 0 : unposted;
        word = UF_LOAD(cell->next);
    }
    if (unposted != 0)
        return fault_at(fault, index, "the next waiter to be posted is not in the list");
    *linked += steps;
    return UF_LOAD(s->last) == tail || steps == 0
               ? true
               : fault_at(fault, index, "the last waiter is not the end of the list");
}

static bool check_slot(struct uf_table *table, uint32_t slot, uint32_t *linked,
                       struct uf_fault *fault)
{
    struct uf_slot *s = uf_slot(table, slot);
    uint32_t index = slot % UF_GROUP_SLOTS, state = UF_LOAD(s->state);
    bool attached = UF_LOAD(uf_group(table, uf_group_of(slot))->attached) & uf_bit_of(slot);
    bool waited_for = UF_LOAD(s->first) != 0;
    if (state > UF_STATE_DONE)
        return fault_at(fault, index, "no such state");
    if (attached && state != UF_STATE_RUNNING && state != UF_STATE_ORPHANED)
        return fault_at(fault, index, "a flight that is over is attached");
    if (attached && UF_LOAD(s->sealed))
        return fault_at(fault, index, "a flight that takes callers is sealed");
    if (state == UF_STATE_FREE && waited_for)
        return fault_at(fault, index, "a free slot has waiters");
    if ((state == UF_STATE_DONE || state == UF_STATE_ORPHANED) && !waited_for)
        return fault_at(fault, index, "a flight nobody needs is kept");
    if (UF_LOAD(s->key_bytes) > UF_KEY_BYTES)
        return fault_at(fault, index, "the key is too long");
    return check_list(table, slot, linked, fault);
}

static bool check_keys(struct uf_table *table, uint32_t group, struct uf_fault *fault)
{
    struct uf_group *g = uf_group(table, group);
    uint64_t attached = UF_LOAD(g->attached);
    for (uint32_t i = 0; i < UF_GROUP_SLOTS; i++)
        for (uint32_t j = i + 1; j < UF_GROUP_SLOTS; j++) {
            const struct uf_slot *a = &g->slots[i], *b = &g->slots[j];
            if ((attached >> i & 1) && (attached >> j & 1) &&
                UF_LOAD(a->hash) == UF_LOAD(b->hash) &&
                UF_LOAD(a->key_bytes) == UF_LOAD(b->key_bytes) &&
                memcmp(a->key, b->key, UF_LOAD(a->key_bytes)) == 0)
                return fault_at(fault, j, "two flights of one key are attached");
        }
    return true;
}

bool uf_group_check_locked(struct uf_table *table, uint32_t group, struct uf_fault *fault)
{
    uint32_t linked = 0, owned = 0;
    for (uint32_t i = 0; i < UF_GROUP_SLOTS; i++)
        if (!check_slot(table, group * UF_GROUP_SLOTS + i, &linked, fault))
            return false;
    for (uint32_t i = 0; i < table->cells; i++)
        owned += UF_LOAD(uf_cell(table, group, i)->owner) != 0;
    if (owned != linked)
        return fault_at(fault, UF_GROUP_SLOTS, "an owned cell is in no list");
    return check_keys(table, group, fault);
}

static uint32_t count_waiters(const struct uf_table *table, uint32_t group, uint32_t word)
{
    uint32_t count = 0;
    const struct uf_cell *cell;
    while (count < table->cells && (cell = uf_cell_of(table, group, word)) != NULL) {
        count++;
        word = UF_LOAD(cell->next);
    }
    return count;
}

static bool read_slot(const struct uf_table *table, uint32_t slot, struct uf_snapshot *out)
{
    const struct uf_slot *s = uf_slot(table, slot);
    *out = (struct uf_snapshot){.generation = UF_LOAD(s->generation)};
    out->epoch = UF_LOAD(s->epoch); /* before what is checked against them below */
    const struct uf_thread *thread = uf_thread_of(table, UF_LOAD(s->leader));
    if (thread) {
        out->leader_tid = UF_LOAD(thread->tid);
        out->leader_start_time = UF_LOAD(thread->start_time);
    }
    out->started_ns = UF_LOAD(s->started_ns);
    out->leader_pid = UF_LOAD(s->leader_pid);
    out->takeovers = UF_LOAD(s->takeovers);
    out->key_bytes = UF_LOAD(s->key_bytes);
    out->payload_bytes = UF_LOAD(s->payload_bytes);
    out->followers = count_waiters(table, uf_group_of(slot), UF_LOAD(s->first));
    uint32_t state = UF_LOAD(s->state);
    out->state = state <= UF_STATE_DONE ? (enum uf_state)state : UF_STATE_FREE;
    out->attached = UF_LOAD(uf_group(table, uf_group_of(slot))->attached) & uf_bit_of(slot);
    if (out->key_bytes > UF_KEY_BYTES)
        return false;
    memcpy(out->key, s->key, out->key_bytes);
    /* Nothing above was read under the lock: it belongs together only if the flight and
     * its leadership are still the ones they were at first. */
    atomic_thread_fence(memory_order_acquire);
    return UF_LOAD(s->generation) == out->generation && UF_LOAD(s->epoch) == out->epoch &&
           UF_LOAD(s->state) == state;
}

bool uf_snapshot(const struct uf_table *table, uint32_t slot, bool probe_life,
                 struct uf_snapshot *snapshot)
{
    if (UF_LOAD(uf_slot(table, slot)->state) == UF_STATE_FREE)
        return false;
    for (int attempt = 0; attempt < 4; attempt++)
        if (read_slot(table, slot, snapshot)) {
            const struct uf_slot *s = uf_slot(table, slot);
            snapshot->leaderless = probe_life && snapshot->state == UF_STATE_RUNNING &&
                                   !uf_is_alive(table, UF_LOAD(s->leader));
            return snapshot->state != UF_STATE_FREE;
        }
    return false;
}

bool uf_is_current(const struct uf_table *table, uint32_t slot, uint64_t epoch)
{
    return slot < uf_slot_count(table) && UF_LOAD(uf_slot(table, slot)->epoch) == epoch &&
           UF_LOAD(uf_slot(table, slot)->state) != UF_STATE_FREE;
}

void uf_usage(const struct uf_table *table, struct uf_usage *usage)
{
    *usage = (struct uf_usage){0, 0, 0};
    for (uint32_t i = 0; i < uf_slot_count(table); i++)
        usage->slots += UF_LOAD(uf_slot(table, i)->state) != UF_STATE_FREE;
    for (uint32_t group = 0; group < table->groups; group++)
        for (uint32_t i = 0; i < table->cells; i++)
            usage->cells += UF_LOAD(uf_cell(table, group, i)->owner) != 0;
    for (uint32_t i = 0; i < table->threads; i++)
        usage->threads += UF_LOAD(table->thread[i].pid) != 0;
}

void uf_totals(const struct uf_table *table, struct uf_totals *totals)
{
    *totals = (struct uf_totals){0};
    for (uint32_t i = 0; i < table->groups; i++) {
        const struct uf_group *g = uf_group(table, i);
        totals->leaders += UF_LOAD(g->leaders);
        totals->followers += UF_LOAD(g->followers);
        totals->takeovers += UF_LOAD(g->takeovers);
        totals->failures += UF_LOAD(g->failures);
        totals->timeouts += UF_LOAD(g->timeouts);
        totals->fenced += UF_LOAD(g->fenced);
        totals->published_bytes += UF_LOAD(g->published_bytes);
    }
    for (int i = 0; i < UF_SOLO_REASONS; i++)
        totals->solo[i] = UF_LOAD(table->header->solo[i]);
}
