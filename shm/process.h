/* What one process knows about the segments it has mapped: which of its threads hold
 * which record, what a fork invalidates, and when a mapping may go. */
#ifndef UF_PROCESS_H
#define UF_PROCESS_H

#include <sys/types.h>

#include "lock.h"

struct uf_mapping {
    struct uf_table table; /* of a private one: by uf_mapping_table */
    dev_t device; /* of the segment's file, to notice that the name leads elsewhere */
    ino_t inode;
    struct uf_limits limits; /* of a private table, to make a child's own */
    _Atomic uint32_t fork_count; /* of a private table: when it was made */
    bool is_private;
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

/* Makes a table in memory of this process alone: UF_ATTACHED, UF_BAD_GEOMETRY (limits out of
 * range) or UF_NO_MEMORY. It has no file, so nobody else can find it, and a forked child has an
 * empty one in its place. */
enum uf_attach uf_mapping_make_private(const struct uf_limits *limits, struct uf_mapping **mapping);

/* The table in a mapping. In a forked child, a private one is the parent's until the first call of
 * this; NULL if there is no memory for the child's own. */
struct uf_table *uf_mapping_table(struct uf_mapping *mapping);

/* Releases the calling thread's record and unmaps as soon as no other thread of the
 * process holds one: a held robust mutex in unmapped memory would be fatal to its thread. */
void uf_mapping_close(struct uf_mapping *mapping);

/* The calling thread's owner word, claimed at its first call: UF_OK or UF_NO_THREAD. */
enum uf_status uf_seat(struct uf_mapping *mapping, uint64_t *owner);

/* Whether it is time to look after the segment, and there is something to do: damaged,
 * leaked extra segments, or `path` no longer leads to it. Looks at most ten times a second. */
bool uf_mapping_needs_care(struct uf_mapping *mapping, const char *path);

#endif
