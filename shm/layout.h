/* Layout of a table's segment.  This is the one place where the protocol stands;
 * docs/architecture.md explains it at length.
 *
 *   offset 0
 *   +----------------------------------------------------------------------+
 *   | header         magic, version, geometry, hash key, solo counters     |
 *   +----------------------------------------------------------------------+
 *   | threads[T]     life lock, generation, pid, tid, start time           |
 *   +----------------------------------------------------------------------+
 *   | groups[G]      lock | attached bits | counters | slots[64]           |
 *   +----------------------------------------------------------------------+
 *   | cells[G][C]    owner, slot, generation, next, semaphore or doorbell  |
 *   +----------------------------------------------------------------------+
 *   | payload[G*64]  inline_bytes for each slot                            |
 *   +----------------------------------------------------------------------+
 *
 *   key --SipHash--> group --attached bits--> slot --first, next--> cells
 *                                              |                      |
 *                                            leader                 owner
 *                                              +------> thread <------+
 *
 * A slot's states:
 *
 *            begin                    finish, cells waiting
 *     FREE ---------> RUNNING ---------------------------------> DONE
 *      ^               |   ^                                       |
 *      |  no cells:    |   | takeover                              |
 *      |  finish or    |   |                                       |
 *      |  abandon      |   |          last cell leaves             |
 *      +---------------+ ORPHANED                                  |
 *      |               |   ^ |                                     |
 *      |   abandon,    +---+ | last cell leaves                    |
 *      |   cells waiting     |                                     |
 *      +---------------------+-------------------------------------+
 *
 * A flight whose leader died stays RUNNING until a waiter takes it over: nobody
 * has to write anything for a death to be true.
 *
 * Rules
 * - A group's lock guards its slots, its cells and its counters.  A thread holds at
 *   most one group lock; under it, life locks are only tried, never waited for.
 * - Owner words (`struct uf_cell.owner`, `struct uf_slot.leader`) name a thread
 *   record together with its generation, so what a dead thread left behind can
 *   never be taken for its successor's.
 * - Every word is atomic and stored with release order: a process can be killed
 *   between any two stores, and those who come next must find them in program order.
 *   The store that makes an operation true is marked COMMIT in flight.c and waiters.c.
 * - Only offsets and indices, never pointers.  Indices are stored plus one; 0 is none.
 *   What is read from the segment is checked against the local geometry before use.
 */
#ifndef UF_LAYOUT_H
#define UF_LAYOUT_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define UF_MAGIC UINT64_C(0x31504d7468676c66) /* "flghtMP1", little endian */
#define UF_LAYOUT_VERSION 5u
#define UF_KEY_BYTES 128u      /* longest encoded key; longer ones arrive as a digest */
#define UF_GROUP_SLOTS 64u     /* one bit each in `attached` */
#define UF_MAX_GROUPS 1024u    /* 65,536 flights */
#define UF_MAX_CELLS 32768u    /* cells of one group */
#define UF_MAX_THREADS 32768u  /* has to fit UF_OWNER_BITS with one to spare */
#define UF_MAX_INLINE (1u << 20)
#define UF_OWNER_BITS 16       /* low bits of an owner word: record index + 1 */

#define UF_LOAD(word) atomic_load_explicit(&(word), memory_order_acquire)
#define UF_STORE(word, value) atomic_store_explicit(&(word), (value), memory_order_release)
/* For counters written by one thread at a time, under the group's lock. */
#define UF_ADD(word, value) UF_STORE(word, UF_LOAD(word) + (value))

enum uf_state { UF_STATE_FREE, UF_STATE_RUNNING, UF_STATE_ORPHANED, UF_STATE_DONE };

/* What a DONE slot holds for followers. */
enum uf_payload {
    UF_PAYLOAD_NONE,       /* nothing yet */
    UF_PAYLOAD_VALUE,      /* encoded value, in the slot's payload area */
    UF_PAYLOAD_EXTRA,      /* encoded value, in an extra segment named by slot and epoch */
    UF_PAYLOAD_ERROR,      /* encoded exception, in the slot's payload area */
    UF_PAYLOAD_LOCAL,      /* all followers are in the leader's process and take the object */
    UF_PAYLOAD_UNSHAREABLE,/* cannot be encoded exactly: followers run the function; the payload
                            * area holds the encoded ResultNotShareable that says why */
    UF_PAYLOAD_TOO_LARGE,  /* over limits.result_bytes, or no room for it: likewise */
    UF_PAYLOAD_DIED,       /* the leaders died too often: followers raise */
    UF_PAYLOAD_BYTES,      /* the value itself, which is bytes, in the slot's payload area */
    UF_PAYLOAD_EXTRA_BYTES,/* likewise, in an extra segment */
    UF_PAYLOAD_KINDS
};

/* Why a call ran alone; indexes `struct uf_header.solo`.  module.c names them. */
enum uf_solo {
    UF_SOLO_TABLE_FULL,
    UF_SOLO_TOO_MANY_WAITERS,
    UF_SOLO_TOO_MANY_THREADS,
    UF_SOLO_LOCK_TIMEOUT,
    UF_SOLO_DAMAGED,
    UF_SOLO_NOT_SHAREABLE,
    UF_SOLO_TOO_LARGE,
    UF_SOLO_NOT_DECODABLE,
    UF_SOLO_TIMEOUT,
    UF_SOLO_UNAVAILABLE,
    UF_SOLO_REASONS
};

/* Written once by the creator, before the segment gets its name; constant after
 * that, but for the words marked "any time". */
struct uf_header {
    _Atomic uint64_t magic; /* last store of the creator */
    uint32_t layout_version;
    uint32_t format; /* uf_format(): sizes of the structs and of libc's objects */
    uint64_t bytes;  /* size of the segment */
    uint32_t groups;
    uint32_t cells; /* per group */
    uint32_t threads;
    uint32_t inline_bytes;
    uint64_t result_bytes; /* largest encoded result; kept for every process's publishers */
    uint32_t asked_flights; /* the creator's limits before rounding, for the warning */
    uint32_t asked_waiters;
    uint64_t created_ns; /* CLOCK_REALTIME, for people only */
    uint32_t creator_pid;
    uint32_t reserved;
    uint8_t hash_key[16]; /* random, so that keys cannot be chosen to share a group */
    _Atomic uint32_t damaged; /* any time, by whoever meets what the core never writes */
    _Atomic uint32_t leaked;  /* any time, under some group's lock: a slot with an extra segment
                               * was freed by somebody who cannot unlink it */
    _Atomic uint64_t solo[UF_SOLO_REASONS]; /* any time, by atomic addition, no lock */
};

/* One thread that uses the table.  `life` is held by that thread for as long as it
 * does; the kernel marks it when the thread ends, however it ends. */
struct uf_thread {
    pthread_mutex_t life;        /* robust, process-shared */
    _Atomic uint64_t generation; /* +1 by each new holder of `life`, before anything else */
    _Atomic uint64_t start_time; /* of the process, clock ticks since boot; for people */
    _Atomic uint32_t pid;        /* by the holder of `life`; tells local from foreign waiters */
    _Atomic uint32_t tid;        /* by the holder of `life`; for people */
    unsigned char pad[64];
};

/* How a waiter is woken. */
enum uf_bell {
    UF_BELL_SEMAPHORE, /* a blocked thread */
    UF_BELL_SOCKET     /* an event loop: an empty datagram to the loop's socket */
};

#define UF_DOORBELL_BYTES 16u /* random; the abstract address is "uniflight-" and these */

/* One waiter.  All words under the group's lock, but: `semaphore` is posted and waited
 * for without, and `resigned` is set by the owner without, when it cannot get the lock. */
struct uf_cell {
    _Atomic uint64_t owner;      /* COMMIT of join and of leave; 0 = free */
    _Atomic uint64_t generation; /* the slot's, when the owner joined */
    _Atomic uint32_t slot;       /* index in the group */
    _Atomic uint32_t next;       /* next waiter of the slot + 1 */
    _Atomic uint32_t resigned;   /* 1: the owner lives but has gone; counts as dead */
    _Atomic uint32_t bell;       /* enum uf_bell: which of these two */
    union {
        sem_t semaphore;
        struct {
            /* What sem_post uses of a semaphore. A post can be on its way to the cell's former
             * owner, a thread; libc aborts the process if it finds a name in there. */
            unsigned char semaphore_words[16];
            unsigned char doorbell[UF_DOORBELL_BYTES];
        };
    };
};

/* One flight.  All words under the group's lock, but: waiters read `state`, `leader`,
 * `resigned`, times and (once DONE) the payload without, which their own cell makes
 * safe: a slot with a cell in its list is never reused.  `resigned` is set by the
 * leader without the lock, when it cannot get it.  `first` and `unposted` are read
 * without it too, where a stale answer does no harm. */
struct uf_slot {
    _Atomic uint32_t state;         /* enum uf_state; COMMIT of finish and abandon */
    _Atomic uint32_t key_bytes;     /* length of `key` */
    _Atomic uint64_t generation;    /* +1 by each begin: names the flight */
    _Atomic uint64_t epoch;         /* +1 by each begin and takeover: names the leadership */
    _Atomic uint64_t leader;        /* owner word; COMMIT of a takeover from the dead */
    _Atomic uint64_t hash;          /* of the key */
    _Atomic uint64_t resigned;      /* the epoch whose leader gave up without the lock */
    _Atomic uint64_t started_ns;    /* CLOCK_MONOTONIC, at the flight's begin */
    _Atomic uint64_t lease_end_ns;  /* CLOCK_MONOTONIC, of the present leader; 0 = none */
    _Atomic uint64_t payload_bytes; /* by finish, before DONE */
    _Atomic uint64_t payload_sum;   /* by finish, before DONE */
    _Atomic uint32_t first;         /* first waiter's cell + 1 */
    _Atomic uint32_t last;          /* last waiter's cell + 1 */
    _Atomic uint32_t takeovers;     /* of this flight */
    _Atomic uint32_t deaths;        /* takeovers from leaders that died or overran their lease */
    _Atomic uint32_t followers;     /* who were waiting when the flight ended */
    _Atomic uint32_t payload;       /* enum uf_payload */
    _Atomic uint32_t leader_pid;    /* of the present leader, kept after it is gone */
    _Atomic uint32_t sealed;        /* 1: detached because its function returned, not forgotten;
                                     * beside `attached` it means nothing */
    unsigned char key[UF_KEY_BYTES];
    _Atomic uint32_t unposted;      /* of a flight that is DONE: the cell + 1 of the first waiter
                                     * that nobody has posted yet; 0 in any other state */
    unsigned char pad[12];
};

struct uf_group {
    pthread_mutex_t lock;       /* robust, process-shared */
    _Atomic uint64_t attached;  /* bit i: slot i is found by its key; COMMIT of begin, forget */
    _Atomic uint32_t cell_hint; /* where to look for a free cell first; only a hint */
    uint32_t reserved;
    /* Counters since creation, under the lock. */
    _Atomic uint64_t leaders, followers, takeovers, failures, timeouts, fenced, published_bytes;
    unsigned char pad[16];
    struct uf_slot slots[UF_GROUP_SLOTS];
};

_Static_assert(sizeof(pthread_mutex_t) == 40, "robust mutex of glibc on a 64-bit machine");
_Static_assert(sizeof(sem_t) == 32, "semaphore of glibc on a 64-bit machine");
_Static_assert(sizeof(struct uf_header) == 176, "header");
_Static_assert(offsetof(struct uf_header, hash_key) == 72, "header.hash_key");
_Static_assert(offsetof(struct uf_header, damaged) == 88, "header.damaged");
_Static_assert(sizeof(struct uf_thread) == 128, "two cache lines a thread");
_Static_assert(sizeof(struct uf_cell) == 64, "one cache line a waiter");
_Static_assert(offsetof(struct uf_cell, semaphore) == 32, "cell.semaphore");
_Static_assert(offsetof(struct uf_cell, doorbell) == 48, "cell.doorbell");
_Static_assert(sizeof(struct uf_slot) == 256, "four cache lines a slot");
_Static_assert(offsetof(struct uf_slot, key) == 112, "slot.key");
_Static_assert(offsetof(struct uf_group, slots) == 128, "group.slots");
_Static_assert(sizeof(struct uf_group) == 128 + 64 * 256, "group");
_Static_assert(UF_MAX_THREADS < (1u << UF_OWNER_BITS), "record index + 1 fits an owner word");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics between processes need no lock");

#endif
