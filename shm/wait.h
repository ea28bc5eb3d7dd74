/* Sleeping on a cell.  Nobody sleeps without a bound: a post dies with a waiter that is
 * killed before it ran, and a leader can die before it posts. */
#ifndef UF_WAIT_H
#define UF_WAIT_H

#include "flight.h"

/* The first waiter of a flight watches its leader. A thread has the kernel end its sleep when
 * the leader ends (watch.h), and an event loop is rung by a thread that does (watcher.h), tens of
 * microseconds later; both look now and then for what is no death: a leader that was stopped
 * between its last write and its posts, or that gave up without the lock. Where the kernel cannot
 * do that, the first waiter finds a death by looking, every 1% of the flight's age within bounds:
 * after less than a millisecond in a young flight, at a hundred looks a second at most in an old
 * one. The other waiters look rarely, for the case that the leader and the first waiter died
 * together. */
#define UF_WATCH_BACKSTOP_NS UINT64_C(50000000)
#define UF_WATCH_MIN_NS UINT64_C(500000)
#define UF_WATCH_MAX_NS UINT64_C(10000000)
#define UF_WATCH_OTHERS_NS UINT64_C(250000000)
#define UF_NO_DEADLINE UINT64_MAX

/* One look, without a lock: UF_PENDING, UF_DONE, UF_LEADERLESS or UF_DAMAGED. */
enum uf_status uf_poll(struct uf_table *table, const struct uf_flight *flight, uint64_t owner,
                       uint64_t now_ns);

/* When to look again, if nobody rings: CLOCK_MONOTONIC. */
uint64_t uf_next_look(const struct uf_table *table, const struct uf_flight *flight,
                      uint64_t now_ns);

/* The same for a loop, which may be rung from here on when the flight's leader ends. */
uint64_t uf_next_look_of_loop(const struct uf_table *table, const struct uf_flight *flight,
                              const unsigned char *doorbell, uint64_t now_ns);

/* Whether the flight still takes callers: it runs, and its key finds it. Without the lock;
 * for callers that join inside a process. */
bool uf_is_joinable(const struct uf_table *table, const struct uf_flight *flight);

/* Whether the leadership that `flight` was filled with goes on, and is not overdue. */
bool uf_is_leading(const struct uf_table *table, const struct uf_flight *flight, uint64_t now_ns);

/* Sleeps until there is something to do: UF_DONE, UF_LEADERLESS, UF_DAMAGED, UF_TIMED_OUT
 * (deadline on CLOCK_MONOTONIC) or UF_INTERRUPTED. */
enum uf_status uf_wait(struct uf_table *table, const struct uf_flight *flight, uint64_t owner,
                       uint64_t deadline_ns);

/* Whether the cell in `flight` is still `owner`'s, and waits for that very flight. */
bool uf_owns_cell(const struct uf_table *table, const struct uf_flight *flight, uint64_t owner);

/* What a DONE flight holds, for one of its followers. `data` points into the segment and
 * stays until the follower leaves; NULL for kinds that have no inline payload. */
struct uf_view {
    enum uf_payload kind;
    const void *data;
    uint64_t bytes;
    uint64_t sum;
    void *value; /* the very object, if the leader published from this process */
    uint64_t epoch;
    uint32_t followers;
    uint32_t takeovers;
    uint32_t deaths;
    uint32_t leader_pid;
};

/* UF_OK, or UF_DAMAGED if a number cannot be right. Needs no lock: the caller's cell
 * keeps the slot. */
enum uf_status uf_view(struct uf_table *table, const struct uf_flight *flight, struct uf_view *view);

#endif
