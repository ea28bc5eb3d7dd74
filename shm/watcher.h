/* Watching leaders for event loops, which cannot sleep on a leader's life themselves.
 *
 * One thread of the process sleeps on the life locks of all leaders that its loops wait for, and
 * rings a loop when one of its leaders ends. It starts with the first leader to watch, and ends
 * a second or two after no loop waits any more. It knows nothing of Python and blocks all signals;
 * what it can miss, a loop finds at its next look. */
#ifndef UF_WATCHER_H
#define UF_WATCHER_H

#include "table.h"

#define UF_MOST_WATCHED 127u /* leaders of one process's loops */

/* Has the loop with that doorbell rung when `owner` ends. False if it has to look for itself:
 * `owner` has ended already, or cannot be watched, or there are too many leaders or loops. */
bool uf_watcher_add(const struct uf_table *table, uint64_t owner, const unsigned char *doorbell);

/* The loop waits for nobody any more, as far as the watcher knows. */
void uf_watcher_forget_loop(const unsigned char *doorbell);

/* Has to be called before memory is unmapped in which there are life locks. */
void uf_watcher_forget_memory(const void *base, size_t bytes);

/* Around a fork; the child has no watcher yet. */
void uf_watcher_before_fork(void);
void uf_watcher_after_fork_in_parent(void);
void uf_watcher_after_fork_in_child(void);

#endif
