/* Cleaning up after the dead. */
#ifndef UF_REPAIR_H
#define UF_REPAIR_H

#include "waiters.h"

/* Frees what dead owners hold in a group and collects the waiters that have to act:
 * the first one of every flight that nobody leads. */
enum uf_status uf_sweep_locked(struct uf_table *table, uint32_t group, struct uf_wakes *wakes);

/* For whoever takes the lock of a dead holder: rebuilds every list from the cells, which
 * are the truth, sweeps, and posts every waiter. Does the same when run again from any
 * point, so it may die anywhere. */
void uf_group_repair_locked(struct uf_table *table, uint32_t group);

/* A slot nobody needs any more becomes FREE. The payload's extra segment, if it has one,
 * is counted as leaked: who frees here does not know its name. */
void uf_free_slot_locked(struct uf_table *table, uint32_t slot);

/* Whether nobody is going to finish the flight: its leader died, gave up without the
 * lock, or outlived its lease. `died` (may be NULL) excludes giving up. Needs no lock
 * from a caller whose own cell keeps the slot. */
bool uf_is_leaderless(const struct uf_table *table, const struct uf_slot *slot, uint64_t now_ns,
                      bool *died);

#endif
