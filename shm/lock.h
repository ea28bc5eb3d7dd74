/* Group locks, and the life locks by which the kernel tells who is dead. */
#ifndef UF_LOCK_H
#define UF_LOCK_H

#include "table.h"

/* A group lock is held for about 0.1 us.  One that cannot be had for this long belongs
 * to a process that was stopped in the middle. */
#define UF_LOCK_WAIT_NS UINT64_C(100000000)

enum uf_patience {
    UF_TRY, /* UF_BUSY at once: the caller holds an interpreter lock it must not wait with */
    UF_WAIT /* UF_LOCK_TIMEOUT after UF_LOCK_WAIT_NS */
};

/* UF_OK, UF_BUSY, UF_LOCK_TIMEOUT or UF_DAMAGED.  Whoever takes the lock from a dead
 * holder repairs the group first (repair.h). */
enum uf_status uf_group_lock(struct uf_table *table, uint32_t group, enum uf_patience patience);
void uf_group_unlock(struct uf_table *table, uint32_t group);

/* Gives the calling thread a record and its owner word: UF_OK or UF_NO_THREAD.  The
 * thread holds the record's life lock until uf_thread_release, or its end. */
enum uf_status uf_thread_claim(struct uf_table *table, uint64_t *owner);
void uf_thread_release(struct uf_table *table, uint64_t owner);

/* Clears the names of those who ended without releasing their record, for readers that can
 * only look. Touches no record that is held. */
void uf_threads_reap(struct uf_table *table);

/* False only on proof: the thread that `owner` names has ended or has released its
 * record.  May be asked by any thread, with or without a group lock. */
bool uf_is_alive(const struct uf_table *table, uint64_t owner);

/* Whether the calling thread's own record says what uf_is_alive asks of it. */
bool uf_is_on_record(const struct uf_table *table, uint64_t owner);

/* Record of an owner word, or NULL if the word names none. */
struct uf_thread *uf_thread_of(const struct uf_table *table, uint64_t owner);

#endif
