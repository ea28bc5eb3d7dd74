/* What one process knows about the segments it has mapped: which of its threads hold
 * which record, what a fork invalidates, and when a mapping may go. */
#ifndef UF_PROCESS_H
#define UF_PROCESS_H

#include <sys/types.h>

#include "lock.h"

struct uf_mapping {
    struct uf_table table;
    dev_t device; /* of the segment's file, to notice that the name leads elsewhere */
    ino_t inode;
    uint64_t next_look_ns; /* when to compare them again; coarse clock */
    uint32_t seats;        /* threads of this process that hold a record */
    uint32_t opens;        /* Tables that want to use it */
    bool read_only;
    struct uf_mapping *next;
};

/* Counts forks this process descends through since it was loaded. A handle made under another
 * count was the parent's: it must not be finished or left here. */
uint32_t uf_fork_count(void);

/* Maps the segment behind `fd` (which may be closed afterwards) and attaches to it. A segment
 * is mapped once for writing, however often it is opened: followers receive the very object
 * from the mapping their leader published in. */
enum uf_attach uf_mapping_open(int fd, bool read_only, struct uf_mapping **mapping);

/* Releases the calling thread's record and unmaps as soon as no other thread of the
 * process holds one: a held robust mutex in unmapped memory would be fatal to its thread. */
void uf_mapping_close(struct uf_mapping *mapping);

/* The calling thread's owner word, claimed at its first call: UF_OK or UF_NO_THREAD. */
enum uf_status uf_seat(struct uf_mapping *mapping, uint64_t *owner);

/* Whether it is time to look after the segment, and there is something to do: damaged,
 * leaked extra segments, or `path` no longer leads to it. Looks at most ten times a second. */
bool uf_mapping_needs_care(struct uf_mapping *mapping, const char *path);

#endif
