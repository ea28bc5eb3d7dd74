/* Crash and stop points for tests.  Production builds compile every point to nothing;
 * with -DUNIFLIGHT_CRASH_POINTS the process kills or stops itself at the armed point. */
#ifndef UF_CRASH_H
#define UF_CRASH_H

#define UF_CRASH_POINTS(POINT)                                                            \
    POINT(CLAIM_LOCKED)       /* a thread record: life lock taken, old generation */      \
    POINT(CLAIM_GENERATION)   /* ... new generation, not yet named */                     \
    POINT(BEGIN_LOCKED)       /* begin: nothing written */                                \
    POINT(BEGIN_SLOT_FILLED)  /* ... slot written, still FREE */                          \
    POINT(BEGIN_RUNNING)      /* ... RUNNING, not yet attached */                         \
    POINT(BEGIN_ATTACHED)     /* ... committed, lock held */                              \
    POINT(BEGIN_LEADING)      /* ... lock released */                                     \
    POINT(JOIN_CELL_FILLED)   /* join: cell written, not owned */                         \
    POINT(JOIN_OWNED)         /* ... owned, not linked */                                 \
    POINT(JOIN_LINKED)        /* ... linked, lock held */                                 \
    POINT(JOIN_WAITING)       /* ... lock released */                                     \
    POINT(FINISH_LOCKED)      /* finish: nothing written */                               \
    POINT(FINISH_HALF_COPIED) /* ... half of the payload written */                       \
    POINT(FINISH_COPIED)      /* ... payload and sum written, still RUNNING */            \
    POINT(FINISH_DONE)        /* ... DONE, still attached */                              \
    POINT(FINISH_FREE)        /* ... FREE (nobody waited), still attached */              \
    POINT(FINISH_DETACHED)    /* ... committed, lock held */                              \
    POINT(FINISH_UNLOCKED)    /* ... lock released, nobody posted */                      \
    POINT(POSTED_ONE)         /* one waiter posted, the others not */                     \
    POINT(PASS_UNLOCKED)      /* leader or waiter passes on: lock released, next not posted */ \
    POINT(SEAL_MARKED)        /* seal: marked, still attached */                          \
    POINT(SEAL_DETACHED)      /* ... committed, lock held */                              \
    POINT(UNSEAL_ATTACHED)    /* takeover of a sealed flight: attached, still marked */   \
    POINT(ABANDON_LOCKED)     /* abandon: nothing written */                              \
    POINT(ABANDON_ORPHANED)   /* ... ORPHANED, lock held */                               \
    POINT(LEAVE_LOCKED)       /* leave: nothing written */                                \
    POINT(LEAVE_UNLINKED)     /* ... unlinked, still owned */                             \
    POINT(LEAVE_UNOWNED)      /* ... cell free, slot not yet */                           \
    POINT(LEAVE_FREED)        /* ... slot FREE, still attached */                         \
    POINT(TAKEOVER_LEFT)      /* takeover: cell left, leader still the old one */         \
    POINT(TAKEOVER_LEADER)    /* ... leader written, epoch not */                         \
    POINT(TAKEOVER_EPOCH)     /* ... epoch written, state not */                          \
    POINT(TAKEOVER_RUNNING)   /* ... committed, lock held */                              \
    POINT(MOVE_UNLINKED)      /* takeover of a sealed flight: cell in no list */          \
    POINT(MOVE_NAMED)         /* ... cell names the newer flight */                       \
    POINT(MOVE_LINKED)        /* ... and is in its list, lock held */                     \
    POINT(DIED_DONE)          /* given up: DONE, still attached */                        \
    POINT(FORGET_DETACHED)    /* forget: committed, lock held */                          \
    POINT(SWEEP_UNLINKED)     /* sweep: a dead cell unlinked, still owned */              \
    POINT(SWEEP_FREED)        /* ... a slot FREE, still attached */                       \
    POINT(REPAIR_LISTS)       /* repair: lists empty, not rebuilt */                      \
    POINT(REPAIR_REBUILT)     /* ... rebuilt, not swept */                                \
    POINT(REPAIR_POSTED)      /* ... all done, mutex not yet consistent */                \
    POINT(EXTRA_CREATED)      /* a big result: its segment exists, flight RUNNING */

#define UF_CRASH_NAME(name) UF_AT_##name,
enum uf_crash_point { UF_CRASH_POINTS(UF_CRASH_NAME) UF_CRASH_POINT_COUNT };
#undef UF_CRASH_NAME

#ifdef UNIFLIGHT_CRASH_POINTS
enum uf_crash_action { UF_CRASH_NOTHING, UF_CRASH_KILL, UF_CRASH_STOP };
void uf_crash_arm(enum uf_crash_point point, enum uf_crash_action action);
void uf_crash_reach(enum uf_crash_point point);
#define UF_CRASH_POINT(name) uf_crash_reach(UF_AT_##name)
#else
#define UF_CRASH_POINT(name) ((void)0)
#endif

#endif
