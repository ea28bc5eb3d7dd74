#include "table.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u

struct geometry {
    uint32_t groups, cells, threads, inline_bytes;
    size_t group_offset, cell_offset, payload_offset;
    uint64_t bytes;
};

static uint64_t round_up(uint64_t value, uint64_t unit)
{
    return (value + unit - 1) / unit * unit;
}

static uint32_t power_of_two_at_least(uint32_t value)
{
    uint32_t power = 1;
    while (power < value)
        power *= 2;
    return power;
}

/* Every bound here also keeps the arithmetic below far from overflow. */
static bool within_bounds(uint32_t groups, uint32_t cells, uint32_t threads, uint32_t inline_bytes)
{
    return groups >= 1 && groups <= UF_MAX_GROUPS && (groups & (groups - 1)) == 0 && cells >= 1 &&
           cells <= UF_MAX_CELLS && threads >= 1 && threads <= UF_MAX_THREADS &&
           inline_bytes >= 64 && inline_bytes <= UF_MAX_INLINE && inline_bytes % 64 == 0;
}

static void lay_out(struct geometry *g)
{
    uint64_t offset = round_up(sizeof(struct uf_header), 128);
    offset += (uint64_t)g->threads * sizeof(struct uf_thread);
    g->group_offset = offset;
    offset += (uint64_t)g->groups * sizeof(struct uf_group);
    g->cell_offset = offset;
    offset += (uint64_t)g->groups * g->cells * sizeof(struct uf_cell);
    g->payload_offset = offset;
    offset += (uint64_t)g->groups * UF_GROUP_SLOTS * g->inline_bytes;
    g->bytes = round_up(offset, PAGE);
}

static bool geometry_of_limits(struct geometry *g, const struct uf_limits *limits)
{
    if (limits->flights < 1 || limits->flights > UF_MAX_GROUPS * UF_GROUP_SLOTS ||
        limits->waiters < 1 || limits->waiters > UF_MAX_GROUPS * UF_MAX_CELLS ||
        limits->inline_bytes > UF_MAX_INLINE)
        return false;
    g->groups = power_of_two_at_least((limits->flights + UF_GROUP_SLOTS - 1) / UF_GROUP_SLOTS);
    g->threads = limits->threads;
    /* All threads of the table may want one key, so a group has a cell for each of
     * them; a group that got only its share would turn callers away long before
     * `waiters` were waiting. */
    uint32_t share = (limits->waiters + g->groups - 1) / g->groups;
    uint32_t crowd = limits->waiters < limits->threads ? limits->waiters : limits->threads;
    g->cells = share > crowd ? share : crowd;
    g->inline_bytes = (uint32_t)round_up(limits->inline_bytes ? limits->inline_bytes : 1, 64);
    if (!within_bounds(g->groups, g->cells, g->threads, g->inline_bytes))
        return false;
    lay_out(g);
    return true;
}

uint32_t uf_format(void)
{
    const uint64_t sizes[] = {
        UF_LAYOUT_VERSION, sizeof(struct uf_header), sizeof(struct uf_thread),
        sizeof(struct uf_cell), sizeof(struct uf_slot), sizeof(struct uf_group),
        sizeof(pthread_mutex_t), sizeof(sem_t), sizeof(void *), UF_KEY_BYTES,
#if defined(__GLIBC__)
        1, /* glibc: its mutexes and semaphores are its own */
#else
        2,
#endif
    };
    uint32_t hash = UINT32_C(2166136261); /* FNV-1a: stable across builds, that is all */
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int shift = 0; shift < 64; shift += 8)
            hash = (hash ^ (uint32_t)((sizes[i] >> shift) & 0xff)) * UINT32_C(16777619);
    return hash;
}

uint64_t uf_segment_bytes(const struct uf_limits *limits)
{
    struct geometry g;
    return geometry_of_limits(&g, limits) ? g.bytes : 0;
}

static void create_mutex(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

void uf_table_create(void *base, const struct uf_limits *limits, const uint8_t hash_key[16])
{
    struct geometry g;
    struct timespec now;
    if (!geometry_of_limits(&g, limits))
        return; /* no magic: nobody will accept it */
    clock_gettime(CLOCK_REALTIME, &now);
    struct uf_header *header = base;
    header->layout_version = UF_LAYOUT_VERSION;
    header->format = uf_format();
    header->bytes = g.bytes;
    header->groups = g.groups;
    header->cells = g.cells;
    header->threads = g.threads;
    header->inline_bytes = g.inline_bytes;
    header->result_bytes = limits->result_bytes;
    header->asked_flights = limits->flights;
    header->asked_waiters = limits->waiters;
    header->created_ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    header->creator_pid = (uint32_t)getpid();
    memcpy(header->hash_key, hash_key, sizeof header->hash_key);

    unsigned char *bytes = base;
    struct uf_thread *threads = (struct uf_thread *)(bytes + round_up(sizeof *header, 128));
    for (uint32_t i = 0; i < g.threads; i++)
        create_mutex(&threads[i].life);
    struct uf_group *groups = (struct uf_group *)(bytes + g.group_offset);
    for (uint32_t i = 0; i < g.groups; i++)
        create_mutex(&groups[i].lock);
    UF_STORE(header->magic, UF_MAGIC); /* COMMIT */
}

enum uf_attach uf_table_attach(struct uf_table *table, void *base, size_t bytes)
{
    struct uf_header *header = base;
    if (bytes < sizeof *header || UF_LOAD(header->magic) != UF_MAGIC)
        return UF_NOT_A_TABLE;
    if (header->layout_version != UF_LAYOUT_VERSION || header->format != uf_format())
        return UF_OTHER_VERSION;
    struct geometry g = {.groups = header->groups, .cells = header->cells,
                         .threads = header->threads, .inline_bytes = header->inline_bytes};
    if (!within_bounds(g.groups, g.cells, g.threads, g.inline_bytes))
        return UF_BAD_GEOMETRY;
    lay_out(&g);
    if (g.bytes != header->bytes || g.bytes != bytes)
        return UF_BAD_GEOMETRY;
    *table = (struct uf_table){
        .base = base, .bytes = bytes, .header = header,
        .thread = (struct uf_thread *)((unsigned char *)base + round_up(sizeof *header, 128)),
        .groups = g.groups, .cells = g.cells, .threads = g.threads,
        .inline_bytes = g.inline_bytes, .result_bytes = header->result_bytes,
        .group_offset = g.group_offset, .cell_offset = g.cell_offset,
        .payload_offset = g.payload_offset, .pid = (uint32_t)getpid()};
    memcpy(table->hash_key, header->hash_key, sizeof table->hash_key);
    table->local = calloc(uf_slot_count(table), sizeof *table->local);
    return table->local ? UF_ATTACHED : UF_NO_MEMORY;
}

void uf_table_detach(struct uf_table *table)
{
    free(table->local);
    table->local = NULL;
}

enum uf_status uf_damage(struct uf_table *table)
{
    UF_STORE(table->header->damaged, 1);
    return UF_DAMAGED;
}

bool uf_is_damaged(const struct uf_table *table)
{
    return UF_LOAD(table->header->damaged) != 0;
}

uint64_t uf_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

struct timespec uf_timespec_of(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / UINT64_C(1000000000)),
                             .tv_nsec = (long)(ns % UINT64_C(1000000000))};
}
