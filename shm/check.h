/* Looking at a table without changing it. */
#ifndef UF_CHECK_H
#define UF_CHECK_H

#include "flight.h"

struct uf_fault {
    uint32_t slot; /* index in the group */
    const char *what;
};

/* Whether a group keeps every invariant of layout.h. Under the group's lock, between
 * operations. Debug builds call it at every unlock. */
bool uf_group_check_locked(struct uf_table *table, uint32_t group, struct uf_fault *fault);

/* One flight as a reader without the lock saw it. */
struct uf_snapshot {
    enum uf_state state;
    bool attached;
    uint64_t generation, epoch, started_ns, payload_bytes, leader_start_time;
    uint32_t leader_pid, leader_tid, takeovers, followers, key_bytes;
    bool leaderless;
    unsigned char key[UF_KEY_BYTES];
};

/* False if the slot is free, or changed under the reader's eyes each of a few times.
 * `probe_life`: tells a dead leader by its life lock; false on a read-only mapping. */
bool uf_snapshot(const struct uf_table *table, uint32_t slot, bool probe_life,
                 struct uf_snapshot *snapshot);

/* Whether the leadership is one that may still need what it named: its flight is not over.
 * Without the lock: nobody who asks about a leadership that goes on is ever told no. */
bool uf_is_current(const struct uf_table *table, uint32_t slot, uint64_t epoch);

/* Thread records, cells and slots in use, dead owners included. Without the lock. */
struct uf_usage {
    uint32_t threads, cells, slots;
};
void uf_usage(const struct uf_table *table, struct uf_usage *usage);

struct uf_totals {
    uint64_t leaders, followers, takeovers, failures, timeouts, fenced, published_bytes;
    uint64_t solo[UF_SOLO_REASONS];
};
void uf_totals(const struct uf_table *table, struct uf_totals *totals);

#endif
