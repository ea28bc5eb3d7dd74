/* A process's view of a segment: geometry, copied and checked once, and accessors
 * that cannot leave the segment. */
#ifndef UF_TABLE_H
#define UF_TABLE_H

#include <stdbool.h>
#include <time.h>

#include "layout.h"
#include "status.h"

/* What the leader's own process keeps for a slot, so that followers there receive the
 * very object.  Guarded by the slot's group lock, but for `value`: a follower reads it
 * without, between DONE and its own leave, while its share of `pending` keeps it. */
struct uf_local {
    uint64_t epoch;   /* leadership that published `value` */
    uint32_t pending; /* followers of this process that have not left */
    void *value;
};

struct uf_table {
    unsigned char *base;
    size_t bytes;
    struct uf_header *header;
    struct uf_thread *thread;
    uint32_t groups; /* a power of two */
    uint32_t cells;  /* per group */
    uint32_t threads;
    uint32_t inline_bytes;
    uint64_t result_bytes;
    size_t group_offset, cell_offset, payload_offset;
    uint8_t hash_key[16];
    uint32_t pid; /* of this process; renewed after fork */
    struct uf_local *local; /* one for each slot */
};

struct uf_limits {
    uint32_t flights, waiters, threads, inline_bytes;
    uint64_t result_bytes;
};

enum uf_attach {
    UF_ATTACHED,
    UF_NOT_A_TABLE,   /* no magic: not ours, or its creator died */
    UF_OTHER_VERSION, /* ours, from a build with another layout or libc */
    UF_BAD_GEOMETRY,  /* ours, but its numbers contradict each other or the size */
    UF_NO_MEMORY      /* of the process */
};

/* Sizes of everything two processes must agree on, as one number. */
uint32_t uf_format(void);

/* Size of a segment for these limits, rounded up; 0 if a limit is out of range. */
uint64_t uf_segment_bytes(const struct uf_limits *limits);

/* Makes the zeroed memory at `base` a table.  Nobody else may see it yet; the magic is
 * stored last, so a creator that dies on the way leaves something nobody accepts. */
void uf_table_create(void *base, const struct uf_limits *limits, const uint8_t hash_key[16]);

/* Fills `table` from the segment mapped at `base`; frees nothing on failure. */
enum uf_attach uf_table_attach(struct uf_table *table, void *base, size_t bytes);
void uf_table_detach(struct uf_table *table);

/* Says that the segment holds what the core never writes.  From then on every
 * operation answers UF_DAMAGED, and the next process that opens it replaces it. */
enum uf_status uf_damage(struct uf_table *table);
bool uf_is_damaged(const struct uf_table *table);

static inline uint32_t uf_group_of(uint32_t slot)
{
    return slot / UF_GROUP_SLOTS;
}

static inline uint64_t uf_bit_of(uint32_t slot)
{
    return UINT64_C(1) << (slot % UF_GROUP_SLOTS);
}

static inline struct uf_group *uf_group(const struct uf_table *table, uint32_t group)
{
    return (struct uf_group *)(table->base + table->group_offset) + group;
}

/* `slot` counts through all groups: group * UF_GROUP_SLOTS + index in the group. */
static inline struct uf_slot *uf_slot(const struct uf_table *table, uint32_t slot)
{
    return &uf_group(table, uf_group_of(slot))->slots[slot % UF_GROUP_SLOTS];
}

static inline struct uf_cell *uf_cell(const struct uf_table *table, uint32_t group, uint32_t cell)
{
    return (struct uf_cell *)(table->base + table->cell_offset) + (size_t)group * table->cells + cell;
}

static inline unsigned char *uf_payload(const struct uf_table *table, uint32_t slot)
{
    return table->base + table->payload_offset + (size_t)slot * table->inline_bytes;
}

/* Whether a payload of that kind lies in the slot's payload area. */
static inline bool uf_is_inline(uint32_t kind)
{
    return kind == UF_PAYLOAD_VALUE || kind == UF_PAYLOAD_BYTES || kind == UF_PAYLOAD_ERROR ||
           kind == UF_PAYLOAD_UNSHAREABLE || kind == UF_PAYLOAD_TOO_LARGE;
}

static inline bool uf_is_extra(uint32_t kind)
{
    return kind == UF_PAYLOAD_EXTRA || kind == UF_PAYLOAD_EXTRA_BYTES;
}

static inline uint32_t uf_slot_count(const struct uf_table *table)
{
    return table->groups * UF_GROUP_SLOTS;
}

uint64_t uf_now_ns(void); /* CLOCK_MONOTONIC: no wall-clock jump moves a deadline */
struct timespec uf_timespec_of(uint64_t ns);

#endif
