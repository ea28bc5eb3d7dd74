/* Sleeping on a semaphore and on a leader's life at once, so that the kernel itself ends the
 * sleep when that thread ends. */
#ifndef UF_WATCH_H
#define UF_WATCH_H

#include "lock.h"

/* A leader's life lock, as a word that changes when the leader ends. */
struct uf_watch {
    _Atomic uint32_t *word;
    uint32_t alive; /* what it holds until then */
};

/* Marks the life lock of `owner`, so that the kernel wakes somebody when it ends.
 *
 * False if this kernel, or what filters its calls, cannot wait for two words (before Linux 5.16;
 * some sandboxes), or if `owner` does not hold its life lock (any more): ask uf_is_alive. */
bool uf_watch_arm(const struct uf_table *table, uint64_t owner, struct uf_watch *watch);

/* Sleeps until the semaphore is posted (and takes the post), the watched thread ends, or
 * `until_ns` on CLOCK_MONOTONIC; false if a signal came first. May wake for no reason. */
bool uf_watch_sleep(const struct uf_watch *watch, sem_t *semaphore, uint64_t until_ns);

#endif
