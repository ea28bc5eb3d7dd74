/* Results of the core's operations.  Every operation returns one of these;
 * no operation returns a bare int. */
#ifndef UF_STATUS_H
#define UF_STATUS_H

enum uf_status {
    UF_OK = 0,

    /* begin, takeover */
    UF_LEADER,    /* the caller leads: run the function, then finish or abandon */
    UF_FOLLOWER,  /* the caller owns a cell of the flight: wait, take, leave */
    UF_SELF_JOIN, /* the calling thread leads this very flight: waiting would never end */

    /* wait, poll, takeover */
    UF_PENDING,    /* somebody else leads: go on waiting */
    UF_DONE,       /* the flight ended: take its payload and leave */
    UF_LEADERLESS, /* the leader died, resigned or overran its lease: try a takeover */
    UF_TIMED_OUT,  /* the deadline passed; the caller still owns its cell */
    UF_INTERRUPTED,/* a signal arrived: run its handlers, then wait again */

    /* finish */
    UF_NEEDS_PAYLOAD, /* a process other than the leader's waits: encode, finish again */
    UF_FENCED,        /* the flight has another leader or is over: nothing was written */

    /* reasons for which the caller runs alone */
    UF_BUSY,         /* the group's lock is held; only from attempts that do not wait */
    UF_LOCK_TIMEOUT, /* the group's lock was held for UF_LOCK_WAIT_NS: its holder is stopped */
    UF_NO_SLOT,      /* every slot of the group is in use, also after a sweep */
    UF_NO_CELL,      /* every cell of the group is in use, also after a sweep */
    UF_NO_THREAD,    /* every thread record is held by a living thread */
    UF_DAMAGED,      /* the segment holds what the core never writes */
};

#endif
