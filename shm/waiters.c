#include "waiters.h"

#include <string.h>

#include "bell.h"
#include "crash.h"

struct uf_cell *uf_cell_of(const struct uf_table *table, uint32_t group, uint32_t word)
{
    return word >= 1 && word <= table->cells ? uf_cell(table, group, word - 1) : NULL;
}

bool uf_is_deserted(const struct uf_table *table, const struct uf_cell *cell)
{
    return UF_LOAD(cell->resigned) != 0 || !uf_is_alive(table, UF_LOAD(cell->owner));
}

void uf_wake_locked(struct uf_wakes *wakes, uint32_t cell)
{
    /* What one sweep adds has room, and what comes with it. uf_begin sweeps twice if it gives up a
     * flight while the group is full: the second time it adds the same waiters, and those of whose
     * flight somebody died in between. Who is left out finds the news by its own look. */
    if (wakes->count < UF_WAKES)
        wakes->cell[wakes->count++] = cell;
}

void uf_wake_first_locked(struct uf_table *table, struct uf_wakes *wakes, struct uf_slot *slot)
{
    uint32_t first = UF_LOAD(slot->first);
    if (uf_cell_of(table, wakes->group, first))
        uf_wake_locked(wakes, first - 1);
}

void uf_post(struct uf_table *table, const struct uf_wakes *wakes)
{
    for (uint32_t i = 0; i < wakes->count; i++) {
        uf_ring(uf_cell(table, wakes->group, wakes->cell[i]));
        UF_CRASH_POINT(POSTED_ONE);
    }
}

/* A fresh semaphore rather than a drained one: an owner that was killed in its sleep has left
 * itself in the count of sleepers. A post that is still on its way to the former owner may be
 * lost in this; nobody waits for it any more. */
static void hang_bell(struct uf_cell *cell, const unsigned char *doorbell)
{
    if (doorbell)
        memcpy(cell->doorbell, doorbell, UF_DOORBELL_BYTES);
    else
        sem_init(&cell->semaphore, 1, 0);
    UF_STORE(cell->bell, doorbell ? UF_BELL_SOCKET : UF_BELL_SEMAPHORE);
}

static bool find_free_cell_locked(struct uf_table *table, uint32_t group, uint32_t *found)
{
    uint32_t hint = UF_LOAD(uf_group(table, group)->cell_hint) % table->cells;
    for (uint32_t i = 0; i < table->cells; i++) {
        uint32_t cell = hint + i < table->cells ? hint + i : hint + i - table->cells;
        if (UF_LOAD(uf_cell(table, group, cell)->owner) == 0) {
            *found = cell;
            return true;
        }
    }
    return false;
}

void uf_append_locked(struct uf_table *table, uint32_t slot, uint32_t cell)
{
    struct uf_slot *s = uf_slot(table, slot);
    struct uf_cell *tail = uf_cell_of(table, uf_group_of(slot), UF_LOAD(s->last));
    UF_STORE(uf_cell(table, uf_group_of(slot), cell)->next, 0);
    if (tail && UF_LOAD(s->first) != 0)
        UF_STORE(tail->next, cell + 1);
    else
        UF_STORE(s->first, cell + 1);
    UF_STORE(s->last, cell + 1);
}

enum uf_status uf_join_locked(struct uf_table *table, uint32_t slot, uint64_t owner,
                              const unsigned char *doorbell, uint32_t *cell)
{
    uint32_t group = uf_group_of(slot);
    if (!find_free_cell_locked(table, group, cell))
        return UF_NO_CELL;
    struct uf_cell *c = uf_cell(table, group, *cell);
    UF_STORE(c->slot, slot % UF_GROUP_SLOTS);
    UF_STORE(c->generation, UF_LOAD(uf_slot(table, slot)->generation));
    UF_STORE(c->resigned, 0);
    hang_bell(c, doorbell);
    UF_CRASH_POINT(JOIN_CELL_FILLED);
    UF_STORE(c->owner, owner); /* COMMIT: a repair finds it by its owner and links it */
    UF_CRASH_POINT(JOIN_OWNED);
    uf_append_locked(table, slot, *cell);
    UF_STORE(uf_group(table, group)->cell_hint, *cell + 1);
    UF_CRASH_POINT(JOIN_LINKED);
    return UF_OK;
}

/* Takes `cell`, whose predecessor's word is `*link`, out of the list. */
static void bypass_locked(struct uf_slot *slot, _Atomic uint32_t *link, uint32_t before,
                          struct uf_cell *cell)
{
    uint32_t next = UF_LOAD(cell->next);
    if (UF_LOAD(slot->unposted) == UF_LOAD(*link)) /* those behind it are still to be posted */
        UF_STORE(slot->unposted, next);
    UF_STORE(*link, next);
    if (next == 0)
        UF_STORE(slot->last, before);
}

static void free_cell_locked(struct uf_table *table, uint32_t group, uint32_t cell)
{
    struct uf_group *g = uf_group(table, group);
    UF_STORE(uf_cell(table, group, cell)->owner, 0); /* COMMIT of leave */
    if (cell < UF_LOAD(g->cell_hint))
        UF_STORE(g->cell_hint, cell);
}

/* Takes a cell out of its slot's list; UF_DAMAGED if it is not in there. */
static enum uf_status unlink_locked(struct uf_table *table, uint32_t slot, uint32_t cell)
{
    uint32_t group = uf_group_of(slot), before = 0, word;
    struct uf_slot *s = uf_slot(table, slot);
    _Atomic uint32_t *link = &s->first;
    for (uint32_t steps = 0; (word = UF_LOAD(*link)) != 0; steps++) {
        struct uf_cell *c = uf_cell_of(table, group, word);
        if (!c || steps >= table->cells)
            return uf_damage(table);
        if (word == cell + 1) {
            bypass_locked(s, link, before, c);
            return UF_OK;
        }
        before = word;
        link = &c->next;
    }
    return uf_damage(table);
}

enum uf_status uf_unlink_locked(struct uf_table *table, uint32_t slot, uint32_t cell)
{
    if (unlink_locked(table, slot, cell) != UF_OK)
        return UF_DAMAGED;
    UF_CRASH_POINT(LEAVE_UNLINKED);
    free_cell_locked(table, uf_group_of(slot), cell);
    UF_CRASH_POINT(LEAVE_UNOWNED);
    return UF_OK;
}

/* No store of these commits anything: only the owner moves its cell, and if it dies in here, a
 * repair frees the cell, wherever it finds it. */
enum uf_status uf_move_locked(struct uf_table *table, uint32_t slot, uint32_t cell, uint32_t newer)
{
    struct uf_cell *c = uf_cell(table, uf_group_of(slot), cell);
    if (unlink_locked(table, slot, cell) != UF_OK)
        return UF_DAMAGED;
    UF_CRASH_POINT(MOVE_UNLINKED);
    UF_STORE(c->generation, UF_LOAD(uf_slot(table, newer)->generation));
    UF_STORE(c->slot, newer % UF_GROUP_SLOTS);
    UF_CRASH_POINT(MOVE_NAMED);
    uf_append_locked(table, newer, cell);
    UF_CRASH_POINT(MOVE_LINKED);
    return UF_OK;
}

enum uf_status uf_drop_dead_locked(struct uf_table *table, uint32_t slot, enum uf_extent extent)
{
    uint32_t group = uf_group_of(slot), before = 0, word;
    struct uf_slot *s = uf_slot(table, slot);
    _Atomic uint32_t *link = &s->first;
    for (uint32_t steps = 0; (word = UF_LOAD(*link)) != 0; steps++) {
        struct uf_cell *c = uf_cell_of(table, group, word);
        if (!c || steps >= table->cells)
            return uf_damage(table);
        if (uf_is_deserted(table, c)) {
            bypass_locked(s, link, before, c);
            UF_CRASH_POINT(SWEEP_UNLINKED);
            free_cell_locked(table, group, word - 1);
        } else if (extent == UF_TO_FIRST_ALIVE) {
            return UF_OK;
        } else {
            before = word;
            link = &c->next;
        }
    }
    return UF_OK;
}
