#include "repair.h"

#include "bell.h"
#include "crash.h"

bool uf_is_leaderless(const struct uf_table *table, const struct uf_slot *slot, uint64_t now_ns,
                      bool *died)
{
    uint64_t lease_end = UF_LOAD(slot->lease_end_ns);
    bool resigned = UF_LOAD(slot->resigned) == UF_LOAD(slot->epoch);
    bool dead = (lease_end != 0 && now_ns >= lease_end) || !uf_is_alive(table, UF_LOAD(slot->leader));
    if (died)
        *died = dead && !resigned;
    return dead || resigned;
}

void uf_free_slot_locked(struct uf_table *table, uint32_t slot)
{
    struct uf_slot *s = uf_slot(table, slot);
    struct uf_group *group = uf_group(table, uf_group_of(slot));
    if (uf_is_extra(UF_LOAD(s->payload)))
        UF_STORE(table->header->leaked, 1);
    UF_STORE(s->state, UF_STATE_FREE);
    UF_CRASH_POINT(SWEEP_FREED);
    UF_STORE(group->attached, UF_LOAD(group->attached) & ~uf_bit_of(slot));
}

static enum uf_status sweep_slot_locked(struct uf_table *table, uint32_t slot,
                                        struct uf_wakes *wakes, uint64_t now_ns)
{
    struct uf_slot *s = uf_slot(table, slot);
    uint32_t state = UF_LOAD(s->state), first = UF_LOAD(s->first);
    if (state == UF_STATE_FREE) {
        uint64_t attached = UF_LOAD(uf_group(table, uf_group_of(slot))->attached);
        return attached & uf_bit_of(slot) ? uf_damage(table) : UF_OK;
    }
    if (state > UF_STATE_DONE || uf_drop_dead_locked(table, slot, UF_WHOLE_LIST) != UF_OK)
        return uf_damage(table);
    bool waited_for = UF_LOAD(s->first) != 0;
    if (state == UF_STATE_RUNNING) {
        bool resigned = UF_LOAD(s->resigned) == UF_LOAD(s->epoch);
        if (!waited_for && (resigned || !uf_is_alive(table, UF_LOAD(s->leader)))) {
            /* A leader that only outlived its lease still owns its flight when nobody
             * waits: it may yet finish it in peace. */
            UF_STORE(table->header->leaked, 1); /* it may have died while publishing */
            uf_free_slot_locked(table, slot);
        } else if (waited_for && (UF_LOAD(s->first) != first ||
                                  uf_is_leaderless(table, s, now_ns, NULL))) {
            /* To take over, or to start watching the leader in place of a dead one. */
            uf_wake_first_locked(table, wakes, s);
        }
    } else if (!waited_for) {
        uf_free_slot_locked(table, slot);
    } else if (state == UF_STATE_ORPHANED) {
        uf_wake_first_locked(table, wakes, s);
    }
    return UF_OK;
}

enum uf_status uf_sweep_locked(struct uf_table *table, uint32_t group, struct uf_wakes *wakes)
{
    uint64_t now_ns = uf_now_ns();
    for (uint32_t i = 0; i < UF_GROUP_SLOTS; i++)
        if (sweep_slot_locked(table, group * UF_GROUP_SLOTS + i, wakes, now_ns) != UF_OK)
            return UF_DAMAGED;
    return UF_OK;
}

/* What a dead holder of the lock may have left between two stores. */
static void settle_attached_locked(struct uf_group *group, uint32_t index)
{
    struct uf_slot *s = &group->slots[index];
    uint32_t state = UF_LOAD(s->state);
    uint64_t bit = UINT64_C(1) << index, attached = UF_LOAD(group->attached);
    /* The end of a flight, between its state and its detach: found by its key, it would be
     * joined and never woken. */
    if (state != UF_STATE_RUNNING && state != UF_STATE_ORPHANED)
        UF_STORE(group->attached, attached & ~bit);
    else if (attached & bit)
        UF_STORE(s->sealed, 0); /* sealing not yet begun, or unsealing all but done */
}

static void forget_lists_locked(struct uf_table *table, uint32_t group)
{
    struct uf_group *g = uf_group(table, group);
    for (uint32_t i = 0; i < UF_GROUP_SLOTS; i++) {
        UF_STORE(g->slots[i].first, 0);
        UF_STORE(g->slots[i].last, 0);
        UF_STORE(g->slots[i].unposted, 0); /* the repair posts everybody */
        settle_attached_locked(g, i);
    }
}

/* Links every cell whose flight still exists, frees every other one. */
static void rebuild_lists_locked(struct uf_table *table, uint32_t group)
{
    for (uint32_t i = 0; i < table->cells; i++) {
        struct uf_cell *c = uf_cell(table, group, i);
        if (UF_LOAD(c->owner) == 0)
            continue;
        uint32_t index = UF_LOAD(c->slot);
        struct uf_slot *s = index < UF_GROUP_SLOTS ? &uf_group(table, group)->slots[index] : NULL;
        if (s && UF_LOAD(s->state) != UF_STATE_FREE &&
            UF_LOAD(s->generation) == UF_LOAD(c->generation))
            uf_append_locked(table, group * UF_GROUP_SLOTS + index, i);
        else
            UF_STORE(c->owner, 0);
    }
}

void uf_group_repair_locked(struct uf_table *table, uint32_t group)
{
    struct uf_wakes wakes;
    uf_wakes_init(&wakes, group);
    forget_lists_locked(table, group);
    UF_CRASH_POINT(REPAIR_LISTS);
    rebuild_lists_locked(table, group);
    UF_CRASH_POINT(REPAIR_REBUILT);
    uf_sweep_locked(table, group, &wakes);
    /* Everybody, not only those the sweep has chosen: the dead holder may have committed
     * a flight's end and not posted anyone. Under the lock, because once it is released
     * in good order no one would repeat this. */
    for (uint32_t i = 0; i < table->cells; i++)
        if (UF_LOAD(uf_cell(table, group, i)->owner) != 0)
            uf_ring(uf_cell(table, group, i));
}
