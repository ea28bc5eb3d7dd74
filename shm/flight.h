/* The protocol: what a caller does to a flight.  Each operation takes the group's lock
 * once, at most; the store that makes it true is marked COMMIT in flight.c. */
#ifndef UF_FLIGHT_H
#define UF_FLIGHT_H

#include "waiters.h"

#define UF_NO_LEASE UINT64_MAX

/* Who calls, and on which terms. */
struct uf_caller {
    uint64_t owner;         /* from uf_thread_claim, by the calling thread */
    uint64_t lease_ns;      /* how long this caller may lead; UF_NO_LEASE */
    uint32_t max_takeovers; /* leaders of one flight that may die */
    enum uf_patience patience;
    const unsigned char *doorbell; /* of the caller's event loop; NULL: the thread blocks */
};

struct uf_key {
    const void *data;
    uint32_t bytes; /* <= UF_KEY_BYTES */
};

/* A caller's part in a flight; filled by begin and takeover, owned by the caller. */
struct uf_flight {
    uint32_t slot;
    uint32_t cell; /* of a follower */
    uint64_t generation;
    uint64_t epoch;      /* of a leader; of the leadership a follower joined under */
    uint32_t takeovers;  /* of the flight so far */
    uint32_t leader_pid; /* when begin or takeover returned */
};

/* What the leader publishes. */
struct uf_result {
    enum uf_payload kind; /* VALUE, ERROR, UNSHAREABLE, TOO_LARGE: inline; or EXTRA */
    const void *data; /* inline payload; NULL: not encoded yet, finish says if it has to be */
    uint64_t bytes;
    uint64_t sum;  /* checksum of the extra segment's content, if it has one */
    void *value;   /* the object for followers of this process; NULL = none */
};

/* What a caller has to clean up after finish or leave. */
struct uf_remains {
    uint32_t followers;  /* finish: who waited */
    void *value;         /* the object no follower of this process needs any more, or NULL */
    bool value_kept;     /* finish: `result.value` is kept for followers of this process */
    bool extra_segment;  /* leave: the last one out; the extra segment has to be unlinked */
};

/* UF_LEADER, UF_FOLLOWER, UF_SELF_JOIN, or a reason to run alone.  A follower only ever
 * joins a flight that is still running: its result is never older than the call. */
enum uf_status uf_begin(struct uf_table *table, const struct uf_caller *caller,
                        const struct uf_key *key, struct uf_flight *flight);

/* Ends the flight with a result: UF_OK, UF_NEEDS_PAYLOAD, UF_FENCED, or why the lock could
 * not be had; then the leader has resigned and its followers look after themselves. */
enum uf_status uf_finish(struct uf_table *table, const struct uf_flight *flight,
                         const struct uf_result *result, enum uf_patience patience,
                         struct uf_remains *remains);

/* The same, but that it leaves it to the caller to announce the end (uf_announce), whatever the
 * status is: that takes system calls, and the caller may hold an interpreter lock that those need
 * who are woken. */
enum uf_status uf_finish_quietly(struct uf_table *table, const struct uf_flight *flight,
                                 const struct uf_result *result, enum uf_patience patience,
                                 struct uf_remains *remains, struct uf_wakes *wakes);
/* Several posts wait for the lock in between. */
void uf_announce(struct uf_table *table, const struct uf_flight *flight,
                 const struct uf_wakes *wakes, uint32_t followers);

/* Ends the leadership without a result: a follower takes over.  Never fails: without the
 * lock the leader resigns. */
enum uf_status uf_abandon(struct uf_table *table, const struct uf_flight *flight,
                          enum uf_patience patience);

/* Closes a flight to newcomers before its result is published: its function has returned, and
 * what a caller receives must not be older than its call. UF_NEEDS_PAYLOAD has done it already.
 * UF_OK, UF_FENCED, or why the lock could not be had: then the leader has resigned. */
enum uf_status uf_seal(struct uf_table *table, const struct uf_flight *flight,
                       enum uf_patience patience);

/* Wakes the next waiter of a flight that is DONE, if the lock is free. By who has just seen the end,
 * before it does anything else: whoever is woken takes its time. */
void uf_pass_on(struct uf_table *table, const struct uf_flight *flight);

/* With what a follower leaves; only counted. */
enum uf_leaving { UF_LEAVING_EMPTY, UF_LEAVING_TIMED_OUT, UF_LEAVING_SERVED };

/* Gives a follower's cell back, after it took the payload or because it gave up. */
enum uf_status uf_leave(struct uf_table *table, const struct uf_flight *flight, uint64_t owner,
                        enum uf_leaving how, enum uf_patience patience,
                        struct uf_remains *remains);

/* After UF_LEADERLESS:
 *   UF_LEADER   the cell is gone, `flight` is the leader's now
 *   UF_PENDING  somebody else leads: another one was faster; or the flight was sealed, and the
 *               cell waits for a newer flight of its key now, which `flight` describes
 *   UF_DONE     take the payload and leave
 * or why the lock could not be had (the cell is kept). */
enum uf_status uf_takeover(struct uf_table *table, const struct uf_caller *caller,
                           struct uf_flight *flight);

/* UF_OK if a flight of that key was attached: the next begin starts a fresh one. */
enum uf_status uf_forget(struct uf_table *table, const struct uf_key *key,
                         enum uf_patience patience, bool *found);

/* Sweeps one group. */
enum uf_status uf_reap(struct uf_table *table, uint32_t group, enum uf_patience patience);

#endif
