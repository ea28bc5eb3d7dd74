/* The list of a slot's waiters, and whom to wake after the lock is released.
 * All functions whose name ends in _locked need the group's lock. */
#ifndef UF_WAITERS_H
#define UF_WAITERS_H

#include "bell.h"
#include "lock.h"

/* Who ends a flight posts at most so many of its waiters. Each of these posts another one when it
 * sees the end, and one more when it leaves. */
#define UF_FIRST_WAKES 8u

/* Waiters to post once the lock is released: a post can enter the kernel, and nobody
 * else of the group should wait for that.  A sweep has the most: one a slot. */
#define UF_WAKES (UF_GROUP_SLOTS + 4u)
struct uf_wakes {
    uint32_t group;
    uint32_t count;
    uint32_t cell[UF_WAKES];
};

static inline void uf_wakes_init(struct uf_wakes *wakes, uint32_t group)
{
    wakes->group = group;
    wakes->count = 0;
}

void uf_wake_locked(struct uf_wakes *wakes, uint32_t cell);
void uf_wake_first_locked(struct uf_table *table, struct uf_wakes *wakes, struct uf_slot *slot);
void uf_post(struct uf_table *table, const struct uf_wakes *wakes);

/* UF_OK and a linked cell owned by `owner`, or UF_NO_CELL. `doorbell`: of the owner's event
 * loop; NULL for a thread that blocks. */
enum uf_status uf_join_locked(struct uf_table *table, uint32_t slot, uint64_t owner,
                              const unsigned char *doorbell, uint32_t *cell);

/* Unlinks and frees a cell; UF_DAMAGED if it is not in the slot's list. */
enum uf_status uf_unlink_locked(struct uf_table *table, uint32_t slot, uint32_t cell);

/* Lets the calling thread's cell wait for another flight of the same group; UF_DAMAGED if it is
 * not in the slot's list. */
enum uf_status uf_move_locked(struct uf_table *table, uint32_t slot, uint32_t cell, uint32_t newer);

/* Puts a cell at the end of the slot's list. */
void uf_append_locked(struct uf_table *table, uint32_t slot, uint32_t cell);

enum uf_extent {
    UF_WHOLE_LIST,
    UF_TO_FIRST_ALIVE /* enough to pass the word on: that one sees to the rest in its turn */
};

/* Frees the cells of dead or resigned owners in the slot's list; UF_DAMAGED if the list
 * leaves the group or does not end. */
enum uf_status uf_drop_dead_locked(struct uf_table *table, uint32_t slot, enum uf_extent extent);

/* Whether the cell is in use, and its owner is not going to leave by itself. */
bool uf_is_deserted(const struct uf_table *table, const struct uf_cell *cell);

/* The cell an index-plus-one word of the segment names, or NULL if it names none that exists. */
struct uf_cell *uf_cell_of(const struct uf_table *table, uint32_t group, uint32_t word);

#endif
