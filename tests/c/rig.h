/* A table of one group, and the test's own process as one of its callers. */
#ifndef RIG_H
#define RIG_H

#include "support.h"

struct rig {
    struct uf_table table;
    struct uf_caller me;
};

static inline struct rig rig_of(uint32_t waiters)
{
    struct rig rig;
    table_create(&rig.table, 64, waiters, 16, 256);
    rig.me = caller_of(claim(&rig.table));
    return rig;
}

/* Everybody is gone, and nothing is left. */
static inline void rig_end(struct rig *rig)
{
    check_empty(&rig->table);
    uf_thread_release(&rig->table, rig->me.owner);
    uf_table_detach(&rig->table);
}

/* The same, after those who died or left without a word are swept. */
static inline void rig_reap_and_end(struct rig *rig)
{
    reap_all(&rig->table);
    rig_end(rig);
}

static inline enum uf_status rig_begin(struct rig *rig, const char *text, struct uf_flight *flight)
{
    struct uf_key key = key_of(text);
    return uf_begin(&rig->table, &rig->me, &key, flight);
}

static inline enum uf_status rig_finish(struct rig *rig, struct uf_flight *flight,
                                        const struct uf_result *result,
                                        struct uf_remains *remains)
{
    return uf_finish(&rig->table, flight, result, UF_WAIT, remains);
}

static inline struct answer leave(struct actor *actor)
{
    return ask(actor, ACT_LEAVE, "");
}

static inline enum uf_status take_over(struct actor *actor)
{
    return ask(actor, ACT_TAKEOVER, "").status;
}

static inline enum uf_status poll_now(struct rig *rig, struct actor *actor,
                                      struct uf_flight *flight)
{
    return uf_poll(&rig->table, flight, actor->owner, uf_now_ns());
}

static inline struct uf_totals totals_of(struct rig *rig)
{
    struct uf_totals totals;
    uf_totals(&rig->table, &totals);
    return totals;
}

static inline sem_t *semaphore_of(struct rig *rig, const struct answer *joined)
{
    uint32_t group = uf_group_of(joined->flight.slot);
    return &uf_cell(&rig->table, group, joined->flight.cell)->semaphore;
}

/* Posts that wait for a follower, who does not sleep. */
static inline int tokens(struct rig *rig, const struct answer *joined)
{
    int count;
    CHECK(sem_getvalue(semaphore_of(rig, joined), &count) == 0);
    return count;
}

#endif
