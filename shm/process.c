#include "process.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "watcher.h"

#define CARE_INTERVAL_NS UINT64_C(100000000)

/* The kernel follows 2,048 robust mutexes of a thread (ROBUST_LIST_LIMIT), those that it took last:
 * of any others it would not tell that the thread died. The rest is for the user's own. */
#define MOST_SEATS 1024

/* A thread's record in one mapping. The list is the thread's own. */
struct seat {
    struct uf_mapping *mapping;
    uint64_t owner;
    struct seat *next;
};

static _Thread_local struct seat *seats;
static pthread_key_t seats_key; /* only for its destructor */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t mappings_lock = PTHREAD_MUTEX_INITIALIZER;
static struct uf_mapping *mappings; /* under mappings_lock, as are seats and opens in them */
static _Atomic uint32_t fork_count;

uint32_t uf_fork_count(void)
{
    return atomic_load_explicit(&fork_count, memory_order_relaxed);
}

/* Under mappings_lock. */
static void unmap_if_unused(struct uf_mapping *mapping)
{
    if (mapping->opens > 0 || mapping->seats > 0)
        return;
    struct uf_mapping **link = &mappings;
    while (*link != mapping)
        link = &(*link)->next;
    *link = mapping->next;
    uf_table_detach(&mapping->table);
    uf_watcher_forget_memory(mapping->table.base, mapping->table.bytes);
    munmap(mapping->table.base, mapping->table.bytes);
    free(mapping);
}

/* Gives up the calling thread's seats: all, those in `only`, or those in closed mappings. */
static void leave_seats(const struct uf_mapping *only, bool closed)
{
    pthread_mutex_lock(&mappings_lock);
    struct seat **link = &seats;
    while (*link) {
        struct seat *seat = *link;
        if ((only && seat->mapping != only) || (closed && seat->mapping->opens > 0)) {
            link = &seat->next;
            continue;
        }
        *link = seat->next;
        uf_thread_release(&seat->mapping->table, seat->owner);
        seat->mapping->seats--;
        unmap_if_unused(seat->mapping);
        free(seat);
    }
    pthread_mutex_unlock(&mappings_lock);
}

static void thread_ends(void *unused)
{
    (void)unused;
    leave_seats(NULL, false);
}

static void before_fork(void)
{
    pthread_mutex_lock(&mappings_lock);
    uf_watcher_before_fork();
}

static void after_fork_in_parent(void)
{
    uf_watcher_after_fork_in_parent();
    pthread_mutex_unlock(&mappings_lock);
}

/* The child has one thread, which holds no robust mutex: libc emptied its list. All seats
 * are the parent's; the child's threads claim their own at their first call. */
static void after_fork_in_child(void)
{
    while (seats) {
        struct seat *next = seats->next;
        free(seats);
        seats = next;
    }
    for (struct uf_mapping *m = mappings; m; m = m->next) {
        m->seats = 0;
        m->table.pid = (uint32_t)getpid();
    }
    uf_watcher_after_fork_in_child();
    atomic_fetch_add(&fork_count, 1);
    pthread_mutex_unlock(&mappings_lock);
}

static void set_up(void)
{
    pthread_key_create(&seats_key, thread_ends);
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

/* Under mappings_lock. */
static struct uf_mapping *find_mapping(const struct stat *status, bool read_only)
{
    struct uf_mapping *m = mappings;
    while (m && (m->is_private || m->device != status->st_dev || m->inode != status->st_ino ||
                 m->read_only != read_only))
        m = m->next;
    return m;
}

static enum uf_attach map(int fd, const struct stat *status, bool read_only,
                          struct uf_mapping **mapped)
{
    size_t bytes = (size_t)status->st_size;
    int access = read_only ? PROT_READ : PROT_READ | PROT_WRITE;
    void *base = mmap(NULL, bytes, access, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return UF_NO_MEMORY;
    struct uf_mapping *mapping = calloc(1, sizeof *mapping);
    enum uf_attach result = mapping ? uf_table_attach(&mapping->table, base, bytes) : UF_NO_MEMORY;
    if (result != UF_ATTACHED) {
        free(mapping);
        munmap(base, bytes);
        return result;
    }
    mapping->device = status->st_dev;
    mapping->inode = status->st_ino;
    mapping->read_only = read_only;
    mapping->next = mappings;
    mappings = mapping;
    *mapped = mapping;
    return UF_ATTACHED;
}

/* At `address`, or anywhere if that is NULL. Not shared: what a child writes into its copy of a
 * page, or the parent after the fork, the other one never sees. */
static void *private_memory(void *address, size_t bytes)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (address ? MAP_FIXED : 0);
    return mmap(address, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
}

static bool fill_private(void *base, const struct uf_limits *limits)
{
    uint8_t hash_key[16];
    if (getrandom(hash_key, sizeof hash_key, 0) != sizeof hash_key)
        return false;
    uf_table_create(base, limits, hash_key);
    return true;
}

enum uf_attach uf_mapping_make_private(const struct uf_limits *limits, struct uf_mapping **made)
{
    size_t bytes = uf_segment_bytes(limits);
    pthread_once(&once, set_up);
    if (bytes == 0)
        return UF_BAD_GEOMETRY;
    void *base = private_memory(NULL, bytes);
    if (base == MAP_FAILED)
        return UF_NO_MEMORY;
    struct uf_mapping *mapping = calloc(1, sizeof *mapping);
    if (!mapping || !fill_private(base, limits) ||
        uf_table_attach(&mapping->table, base, bytes) != UF_ATTACHED) {
        free(mapping);
        munmap(base, bytes);
        return UF_NO_MEMORY;
    }
    mapping->limits = *limits;
    mapping->fork_count = uf_fork_count();
    mapping->is_private = true;
    mapping->opens = 1;
    pthread_mutex_lock(&mappings_lock);
    mapping->next = mappings;
    mappings = mapping;
    pthread_mutex_unlock(&mappings_lock);
    *made = mapping;
    return UF_ATTACHED;
}

/* Puts an empty table in the place of the parent's, at the same address. Under mappings_lock. The
 * child's followers of the parent's flights are none of its own (uf_fork_count), and objects that
 * were kept for them stay where they are, as all else that a fork copies and nobody uses. */
static bool renew_private(struct uf_mapping *mapping)
{
    struct uf_table *table = &mapping->table;
    struct uf_local *local = table->local;
    if (private_memory(table->base, table->bytes) == MAP_FAILED ||
        !fill_private(table->base, &mapping->limits))
        return false;
    memset(local, 0, uf_slot_count(table) * sizeof *local);
    memcpy(table->hash_key, table->header->hash_key, sizeof table->hash_key);
    mapping->fork_count = uf_fork_count();
    return true;
}

struct uf_table *uf_mapping_table(struct uf_mapping *mapping)
{
    if (!mapping->is_private || mapping->fork_count == uf_fork_count())
        return &mapping->table;
    pthread_mutex_lock(&mappings_lock);
    bool fresh = mapping->fork_count == uf_fork_count() || renew_private(mapping);
    pthread_mutex_unlock(&mappings_lock);
    return fresh ? &mapping->table : NULL;
}

enum uf_attach uf_mapping_open(int fd, bool read_only, struct uf_mapping **opened)
{
    struct stat status;
    enum uf_attach result = UF_ATTACHED;
    pthread_once(&once, set_up);
    if (fstat(fd, &status) != 0 || status.st_size <= 0)
        return UF_NOT_A_TABLE;
    pthread_mutex_lock(&mappings_lock);
    *opened = find_mapping(&status, read_only);
    if (!*opened)
        result = map(fd, &status, read_only, opened);
    if (result == UF_ATTACHED)
        (*opened)->opens++;
    pthread_mutex_unlock(&mappings_lock);
    return result;
}

void uf_mapping_close(struct uf_mapping *mapping)
{
    pthread_mutex_lock(&mappings_lock);
    mapping->seats++; /* keeps it until the end of this function */
    mapping->opens--;
    bool last = mapping->opens == 0;
    pthread_mutex_unlock(&mappings_lock);
    if (last)
        leave_seats(mapping, false);
    pthread_mutex_lock(&mappings_lock);
    mapping->seats--;
    unmap_if_unused(mapping);
    pthread_mutex_unlock(&mappings_lock);
}

static uint32_t count_seats(void)
{
    uint32_t count = 0;
    for (const struct seat *seat = seats; seat; seat = seat->next)
        count++;
    return count;
}

static enum uf_status take_seat(struct uf_mapping *mapping, uint64_t *owner)
{
    struct seat *seat = malloc(sizeof *seat);
    leave_seats(NULL, true); /* of tables that were closed or replaced meanwhile */
    if (!seat || count_seats() >= MOST_SEATS || uf_thread_claim(&mapping->table, owner) != UF_OK) {
        free(seat);
        return UF_NO_THREAD;
    }
    pthread_mutex_lock(&mappings_lock);
    mapping->seats++;
    pthread_mutex_unlock(&mappings_lock);
    *seat = (struct seat){.mapping = mapping, .owner = *owner, .next = seats};
    seats = seat;
    pthread_setspecific(seats_key, &seats_key);
    return UF_OK;
}

enum uf_status uf_seat(struct uf_mapping *mapping, uint64_t *owner)
{
    for (const struct seat *seat = seats; seat; seat = seat->next)
        if (seat->mapping == mapping) {
            *owner = seat->owner;
            return UF_OK;
        }
    return take_seat(mapping, owner);
}

static bool is_replaced(const struct uf_mapping *mapping, const char *path)
{
    struct stat status;
    return stat(path, &status) != 0 || status.st_dev != mapping->device ||
           status.st_ino != mapping->inode;
}

bool uf_mapping_needs_care(struct uf_mapping *mapping, const char *path)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    uint64_t now_ns = (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
    if (now_ns < mapping->next_look_ns)
        return false;
    mapping->next_look_ns = now_ns + CARE_INTERVAL_NS;
    return uf_is_damaged(&mapping->table) || UF_LOAD(mapping->table.header->leaked) != 0 ||
           is_replaced(mapping, path);
}
