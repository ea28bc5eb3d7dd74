/* A model of the protocol of shm/ (flight.c, waiters.c, repair.c, lock.c, wait.c), for spin.
 *
 * What it is for
 *   The C core may be killed between any two stores, by SIGKILL, with the lock held or
 *   not, in the repair too.  Tests meet some of these interleavings; this model visits
 *   all of them, for small numbers of callers, flights, waiters and kills.
 *   `run.py` runs every configuration; `run.py --mutants` breaks one rule at a time and
 *   expects a counterexample, so that the model is known to be able to fail.
 *   To look at one counterexample: `run.py --keep DIR --only NAME`, then in DIR/NAME (of a
 *   mutant: DIR/NAME/broken), with the switches from the file of that name,
 *   `spin -t -p -g SWITCHES flight.pml` replays the trail.
 *
 * What stands for what
 *   caller       one thread that makes CALLS calls.  Its every step is either the next
 *                store of the C code or its own death (KILL), as long as there are kills
 *                left.  With REBORN a dead caller's record is claimed again at once, with
 *                no sweep in between, and makes the calls that are left.
 *   newcomer     caller number CALLERS: waits until everybody has returned or died, attaches
 *                (sweeps the group), makes one call, and finds nothing in use.
 *   the lock     `lock`, and `dirty` = its holder died: the next one repairs first.
 *   owner word   record and its generation: OWNER(); alive as uf_is_alive() says.  With
 *                LIES, a dead owner may be taken for a living one that many times, as
 *                when another one holds its life lock for a moment to probe it.
 *   payload      two halves, each the epoch of the leadership that wrote it.
 *   sealing      with SEALING a leader that is waited for comes twice: the first time its
 *                flight is sealed, the second time it brings the encoded result.  With STRICT
 *                it seals first in any case.  In between it may cancel, die, be superseded.
 *   lease        `expired`, set by the clock at any moment, LEASES times in all.
 *   lock timeout whoever waits for a lock that is held may give up, LOCK_TIMEOUTS times.
 *   sleep        bounded: a waiter looks again whenever there is something to see.  Posts
 *                then change nothing, so they are modelled only with SEMAPHORES: posted
 *                after the unlock, one by one, from a copied list; a token that was posted
 *                to a waiter dies with it.  The leader posts one waiter, and so does each
 *                waiter that leaves a flight that is DONE: the next one behind the wake
 *                cursor, `unposted`.  (In shm/ it is a few at a time.  One makes the longest
 *                chain, in which everybody depends on everybody before.)  Two further switches
 *                say what the posts are worth without the looks:
 *                NO_LOOKS  nobody looks but when posted.  Enough as long as nobody dies, or
 *                          resigns for want of the lock.
 *                PROMPT    only the first waiter watches its leader, as decided when it
 *                          went to sleep; all others need their post.  Enough but for
 *                          deaths that strike a poster, a waiter who was chosen to act or
 *                          has been posted and not yet passed it on, or a leader and its
 *                          watcher together (see SPARED), and for posted waiters who resign:
 *                          these are what wait.c's rare look of all others is for.
 *   budgets      each kind of event happens at most as often as its switch says, and any
 *                smaller number is tried too: whoever could still be killed or time out
 *                would hide that it is stuck.
 *
 * One step for several stores
 *   - `first`, `last`, `next`: read only under the lock, and rebuilt by the repair before
 *     it reads them.  A kill between two of them cannot be told from one before.  (`first`
 *     is read without by a waiter going to sleep; PROMPT knows.)
 *   - the words of a FREE slot and of a cell without owner: nobody reads them.  For the
 *     same reason they are set to zero when one becomes free, which makes states equal
 *     that differ in nothing that will ever be read.
 *   - the scan of one list for its next dead owner: deaths of different owners commute.
 *   (`atomic { skip; label: ...` instead of `label: atomic { ...`: spin keeps a jump from
 *   one atomic sequence into another one atomic only if the label is inside.)
 *   Callers are alike, so they enter for the first time in the order of their numbers.
 *
 * What is asserted
 *   1 at most one leader, alive and not fenced, per flight; it is replaced only when dead,
 *     resigned or past its lease; flights that run unattached were forgotten or sealed.
 *     Nowhere two functions of one key, but beside one that was forgotten or is past its
 *     lease.  A function runs from UF_LEADER until its leader next has the lock (or gives up
 *     waiting for it): the table cannot know earlier.
 *     All followers of a flight take one leadership's payload, that of the epoch at the
 *     end, and were waiting when it was published.  Its function had not returned when
 *     they came (no stale result), wherever their cells have moved to since.
 *     A forgotten flight is never attached again, and none of its waiters moves.
 *   2 both halves are of that epoch, when it is taken and until the follower has left.
 *   3 no state without a successor until all have returned (spin: invalid end states), and
 *     no cycle at all (configurations `cycles-*`): every call returns.
 *   4 the newcomer leads, and leaves nothing in use.
 *   5 at most one attached flight per key, and none that is sealed; and at every unlock all of check.c.
 *   6 no more than MAX_TAKEOVERS leaderships after a death; then DIED for those who wait.
 *   7 finish stores nothing unless generation, epoch and state are the leader's.
 *   8 the cursor names a waiter of its flight, which is DONE, or nobody; it never passes one twice.
 *   Every UF_DAMAGED of the C code is an assertion that fails.
 *
 * What is not modelled
 *   Event loops: tasks of one thread that lead and follow at the same time, desk.py; for the
 *   doorbell they share see bell.pml.  Every caller here is a thread that blocks in one call.
 *   The objects that are kept for followers in the leader's process; results in extra
 *   segments; replacing a damaged table.
 */

/* ---- configuration ---------------------------------------------------------------- */

#ifndef CALLERS
#define CALLERS 3       /* at most 4 */
#endif
#ifndef CALLS
#define CALLS 1         /* of each */
#endif
#ifndef NS
#define NS 2            /* slots; leases expire in the first two */
#endif
#ifndef NC
#define NC 3            /* cells, at most 3 */
#endif
#ifndef KEYS
#define KEYS 1
#endif
#ifndef KILLS
#define KILLS 1
#endif
#ifndef CANCELS
#define CANCELS 0       /* leaders that abandon */
#endif
#ifndef TIMEOUTS
#define TIMEOUTS 0      /* waiters that time out */
#endif
#ifndef LOCK_TIMEOUTS
#define LOCK_TIMEOUTS 0
#endif
#ifndef LEASES
#define LEASES 0        /* leases that expire */
#endif
#ifndef FORGETS
#define FORGETS 0
#endif
#ifndef LIES
#define LIES 0          /* dead owners taken for living ones */
#endif
#ifndef MAX_TAKEOVERS
#define MAX_TAKEOVERS 9
#endif
#ifdef PROMPT
#define SEMAPHORES
#endif
#ifdef STRICT
#define SEALING
#endif

/* ---- the segment ------------------------------------------------------------------ */

#define FREE 0
#define RUNNING 1
#define ORPHANED 2
#define DONE 3

#define NONE 0          /* payload kinds */
#define VALUE 1
#define DIED 2

byte lock;              /* holder + 1 */
bool dirty;             /* the holder died: EOWNERDEAD */

byte state[NS], generation[NS], epoch[NS], leader[NS], resigned[NS], key[NS];
byte first[NS], last[NS], deaths[NS], kind[NS], half_a[NS], half_b[NS];
bool attached[NS], expired[NS];
#ifdef SEALING
bool sealed[NS];
#endif

byte owner[NC], cell_generation[NC], cell_slot[NC], next[NC];
bool cell_resigned[NC];
#ifdef SEMAPHORES
bool token[NC];
byte unposted[NS];      /* the wake cursor: the first waiter that nobody has posted yet */
#endif

bool held[CALLERS + 1];      /* life locks */
byte record_generation[CALLERS + 1];

#define OWNER(record) (1 + (record) + 8 * record_generation[record])
#define RECORD(word) (((word) - 1) & 7)
#ifdef M_OWNER_WITHOUT_GENERATION
#define DEAD(word) (!held[RECORD(word)])
#else
#define DEAD(word) (!held[RECORD(word)] || record_generation[RECORD(word)] != ((word) - 1) >> 3)
#endif
#define DESERTED(cell) (cell_resigned[cell] || DEAD(owner[cell]))
#ifdef M_RESIGNED_WITHOUT_EPOCH
#define RESIGNED(x) (resigned[x] != 0)
#else
#define RESIGNED(x) (resigned[x] == epoch[x])
#endif
#define LEADERLESS(x) (expired[x] || RESIGNED(x) || DEAD(leader[x]))

/* ---- what is left of each kind of event -------------------------------------------- */

byte kills = KILLS;
#if CANCELS
byte cancels = CANCELS;
#endif
#if TIMEOUTS
byte timeouts = TIMEOUTS;
#endif
#if LOCK_TIMEOUTS
byte lock_timeouts = LOCK_TIMEOUTS;
#endif
#if LEASES
byte leases = LEASES;
#endif
#if FORGETS
byte forgets = FORGETS;
#endif
#if LIES
byte lies = LIES;
#endif

/* ---- for the assertions ------------------------------------------------------------ */

byte started;           /* callers that have entered, or died, for the first time */
byte ended;             /* callers that have returned from their last call, or died */
byte flight_slot[CALLERS + 1], flight_epoch[CALLERS + 1];
bool leads[CALLERS + 1];     /* has been told UF_LEADER and has not finished, abandoned, resigned */
byte audience;          /* one bit per cell: in the list when its flight became DONE */
#ifdef SEMAPHORES
byte called;            /* one bit per cell: the cursor has passed it */
#endif
byte taken[NS];         /* the epoch a follower took */
bool forgotten[NS];
byte lives[NS];         /* leaderships that came after a death */
byte runs[CALLERS + 1]; /* IDLE, or how its function runs */
byte over;              /* one bit per slot: the present leader's function has returned */
byte older[CALLERS + 1];     /* `over` when the call came, but for leaders replaced since then */

#define IDLE 0
#define RUNS 1          /* for all who call its key */
#define RUNS_APART 2    /* forgotten, or past its lease: another one may run */

/* A new leadership of slot y begins: whatever returned there before is not its function. */
#define NEW_EPOCH(y) epoch[y]++; NEW_FUNCTION(y)
#define NEW_FUNCTION(y) d_step { over = over & ~(1 << (y)); gone = 0; do \
    :: gone <= CALLERS -> older[gone] = older[gone] & ~(1 << (y)); gone++ \
    :: else -> gone = 0; break od }

/* ---- scratch of the lock's holder --------------------------------------------------- */

#define AFTER_REPAIR 1  /* where a sweep returns to */
#define AFTER_ENTER 2
#define AFTER_JOIN 3
#define AFTER_FRESH 4
#define AFTER_TAKEOVER 5
#define AFTER_REAP 6

#define IN_SWEEP 1      /* where dropping the dead of a list returns to */
#define IN_FINISH 2
#define IN_ABANDON 3
#define IN_LEAVE 4

byte i, x, w, before;   /* sweep's slot; slot, waiter and predecessor of the list at hand */
hidden byte gone;
#ifdef SEMAPHORES
byte was;               /* the first waiter before the dead were dropped */
#endif
byte back, drop_back;
bool whole, was_first, was_done, died, leaderless, again;
#ifdef SEALING
byte newer;             /* slot + 1 that a cell moves to */
#endif

inline clear_scratch() {
#ifdef SEMAPHORES
    was = 0;
#endif
#ifdef SEALING
    newer = 0;
#endif
    i = 0; x = 0; w = 0; before = 0; back = 0; drop_back = 0;
    whole = 0; was_first = 0; was_done = 0; died = 0; leaderless = 0; again = 0
}

/* ---- small parts --------------------------------------------------------------------- */

#define BEGIN 1
#define FINISH 2
#define ABANDON 3
#define LEAVE 4
#define TAKEOVER 5
#define FORGET 6
#define REAP 7
#define SEAL 8          /* strict: before the result is encoded, whoever waits */

#define LEADER 1        /* what the call is told at the unlock */
#define FOLLOWER 2
#define SOLO 3
#define IS_DONE 4
#define PENDING 5
#define OVER 6

#define MAY_DIE (kills > 0 && me < CALLERS)
#ifdef PROMPT
/* Nobody dies who was chosen to act and has not passed it on; nor a leader together with
 * the first of its waiters, who watches it; nor, after another death, a holder of the lock,
 * who may have been about to choose the dead one's successor. */
bool mourning;
#define LISTED(cell) ((posting[0] | posting[1] | posting[2] | posting[CALLERS - 1] | \
    posting[CALLERS]) >> (cell) & 1)
#define SPARED (op == TAKEOVER || op == LEAVE || (posting[me] != 0 && lock != me + 1) || \
    (leads[me] && first[s] != 0 && DESERTED(first[s] - 1)))
#define KILL :: atomic { MAY_DIE && !mourning && !SPARED -> DIE }
#define KILL_ENTERED :: atomic { MAY_DIE && started >= me && !SPARED -> DIE }
#define KILL_POSTER
#define KILL_AWAKE
#define KILL_ASLEEP :: atomic { MAY_DIE && lock == 0 && !token[c] && !LISTED(c) && \
    !(first[s] == c + 1 && (LOOK_DONE || LOOK_LEADERLESS)) -> DIE }
#define DIE mourning = 1; kills--; goto dead
#else
#define KILL :: atomic { MAY_DIE -> kills--; goto dead }
#define KILL_ENTERED :: atomic { MAY_DIE && started >= me -> kills--; goto dead }
#define KILL_POSTER KILL
#define KILL_AWAKE KILL
#define KILL_ASLEEP KILL
#endif

#ifdef SEMAPHORES
byte posting[CALLERS + 1];   /* one bit per cell: still to be posted */
#define posts posting[me]
#define WAKE(cell) posts = posts | (1 << (cell))
#define WAKE_FIRST(x) if :: first[x] -> WAKE(first[x] - 1) :: else fi
#ifdef M_CURSOR_NOT_STORED
#define ADVANCE(x) skip
#else
#define ADVANCE(x) unposted[x] = next[unposted[x] - 1]
#endif
#define WAKE_NEXT(x) if \
    :: unposted[x] -> \
        assert((called >> (unposted[x] - 1) & 1) == 0); called = called | (1 << (unposted[x] - 1)); \
        WAKE(unposted[x] - 1); ADVANCE(x) \
    :: else fi
#define REMEMBER(waiter) was = waiter
#define SUCCEEDED(x) (first[x] != was)
#else
#define WAKE_FIRST(x) skip
#define REMEMBER(waiter) skip
#define SUCCEEDED(x) false
#endif

#define OWNS(record) (owner[c] == OWNER(record) && cell_generation[c] == g && \
    cell_slot[c] == s && generation[s] == g)

inline free_cell(cell) {
    owner[cell] = 0; cell_generation[cell] = 0; cell_slot[cell] = 0; next[cell] = 0;
    cell_resigned[cell] = 0; audience = audience & ~(1 << (cell));
#ifdef SEMAPHORES
    called = called & ~(1 << (cell))
#endif
}

inline free_slot(y) {
    state[y] = FREE; leader[y] = 0; deaths[y] = 0; kind[y] = NONE; half_a[y] = 0; half_b[y] = 0;
    expired[y] = 0; key[y] = 0; taken[y] = 0; forgotten[y] = 0; lives[y] = 0;
#ifdef SEALING
    sealed[y] = 0;
#endif
    NEW_FUNCTION(y);
    first[y] = 0; last[y] = 0
}

/* Takes waiter w, whose predecessor is `before`, out of x's list. */
inline bypass() {
#if defined(SEMAPHORES) && !defined(M_CURSOR_STAYS)
    if :: unposted[x] == w -> unposted[x] = next[w - 1] :: else fi;
#endif
    if
    :: before == 0 -> first[x] = next[w - 1]
    :: else -> next[before - 1] = next[w - 1]
    fi;
    if :: next[w - 1] == 0 -> last[x] = before :: else fi
}

/* Takes the caller's own cell out of its slot's list. */
inline unlink() {
    d_step {
        x = s; w = first[s]; before = 0;
        do
        :: w != c + 1 -> assert(w != 0); before = w; w = next[w - 1]
        :: else -> break
        od;
        bypass(); x = 0; w = 0; before = 0
    }
}

inline append(y, cell) {
    next[cell] = 0;
    if
    :: last[y] != 0 && first[y] != 0 -> next[last[y] - 1] = cell + 1
    :: else -> first[y] = cell + 1
    fi;
    last[y] = cell + 1
}

/* uf_is_leaderless, with the lock. */
inline look(y) {
    died = expired[y];
    if
    :: DEAD(leader[y]) -> died = 1
#if LIES
    :: DEAD(leader[y]) && lies > 0 && me < CALLERS -> lies--
#endif
    :: else
    fi;
    leaderless = died || RESIGNED(y);
    died = died && !RESIGNED(y)
}

/* A flight becomes DONE: who is in its list now may take the payload. */
inline done(y) {
    state[y] = DONE;
    w = first[y];
    do
    :: w != 0 -> audience = audience | (1 << (w - 1)); w = next[w - 1]
    :: else -> break
    od
}

/* What a follower of slot s finds, from its first look until it has left. */
inline check_payload() {
    assert(state[s] == DONE);
    assert(audience >> c & 1);
    assert(kind[s] == VALUE || kind[s] == DIED);
    if
    :: kind[s] == VALUE ->
        assert(half_a[s] == half_b[s]);
        assert(half_a[s] == epoch[s]);
        assert(taken[s] == 0 || taken[s] == half_a[s]);
        assert((older[me] >> s & 1) == 0);
        taken[s] = half_a[s]
    :: else -> assert(deaths[s] >= MAX_TAKEOVERS)
    fi
}

#ifdef SEALING
#define SEALED(y) sealed[y]
#else
#define SEALED(y) false
#endif

/* The cursor of a flight that is DONE names one of its waiters, or none; of any other, none. */
inline check_cursor(y) {
#ifdef SEMAPHORES
    w = first[y];
    do
    :: w != 0 && w != unposted[y] -> w = next[w - 1]
    :: else -> break
    od;
    assert(unposted[y] == 0 || (state[y] == DONE && w != 0))
#else
    skip
#endif
}

/* check.c, at every unlock. */
inline check_group() {
    w = 0; before = 0; i = 0;
    do
    :: i < NC -> if :: owner[i] != 0 -> before++ :: else fi; i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < NS ->
        assert(!attached[i] || state[i] == RUNNING || state[i] == ORPHANED);
        /* Running and not found by its key: forgotten; or begun by one who died before the
         * end of it and was taken for living ever since, so that no sweep freed it. */
        w = 0;
        do
        :: w < CALLERS && !(leads[w] && flight_slot[w] == i && flight_epoch[w] == epoch[i]) -> w++
        :: else -> break
        od;
        assert(attached[i] || forgotten[i] || SEALED(i) || state[i] == FREE || state[i] == DONE ||
               (w == CALLERS && first[i] == 0));
        assert(!(attached[i] && (forgotten[i] || SEALED(i))));
        assert(state[i] != FREE || first[i] == 0);
        assert((state[i] != DONE && state[i] != ORPHANED) || first[i] != 0);
        x = 0;
        do
        :: x < i -> assert(!(attached[i] && attached[x] && key[i] == key[x])); x++
        :: else -> break
        od;
        x = 0; w = first[i];
        do
        :: w != 0 ->
            assert(owner[w - 1] != 0 && before > 0);
            before--;
            assert(cell_slot[w - 1] == i && cell_generation[w - 1] == generation[i]);
            x = w; w = next[w - 1]
        :: else -> break
        od;
        assert(first[i] == 0 || last[i] == x);
        check_cursor(i);
        i++
    :: else -> break
    od;
    assert(before == 0)
}

/* `me` is told that it leads: nobody else has been told so of the same leadership. */
inline check_leader() {
    i = 0;
    do
    :: i <= CALLERS ->
        assert(!(leads[i] && flight_slot[i] == s && flight_epoch[i] == epoch[s]));
        /* Nor does another flight run the function. */
        assert(runs[i] != RUNS || i == me || key[flight_slot[i]] != key[s] || forgotten[s]);
        i++
    :: else -> break
    od;
    runs[me] = (forgotten[s] || expired[s] -> RUNS_APART : RUNS);
    flight_slot[me] = s; flight_epoch[me] = epoch[s]; leads[me] = 1;
    if
    :: died -> lives[s]++; assert(lives[s] <= MAX_TAKEOVERS)
    :: else
    fi
}

/* `me` is about to replace the leader of s. */
inline check_replaced() {
    w = 0;
    do
    :: w <= CALLERS ->
        assert(!(leads[w] && flight_slot[w] == s && flight_epoch[w] == epoch[s] &&
                 state[s] == RUNNING && leader[s] == OWNER(w) && !expired[s]));
        w++
    :: else -> break
    od;
    w = 0
}

/* From now on another leader may run beside that of slot y: it was forgotten, or its lease is over. */
inline excuse(y) {
    w = 0;
    do
    :: w <= CALLERS ->
        if
        :: runs[w] == RUNS && flight_slot[w] == y && flight_epoch[w] == epoch[y] -> runs[w] = RUNS_APART
        :: else
        fi;
        w++
    :: else -> w = 0; break
    od
}

/* The leader `me` comes with its function's result, or without one: from now on its result is
 * too old for whoever calls. */
inline returns() {
    runs[me] = IDLE;
    if
    :: op != ABANDON && flight_epoch[me] == epoch[s] && state[s] == RUNNING -> over = over | (1 << s)
    :: else
    fi
}

inline check_nothing_in_use() {
    i = 0;
    do
    :: i < NS -> assert(state[i] == FREE && !attached[i]); i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < NC -> assert(owner[i] == 0); i++
    :: else -> break
    od;
    i = 0
}

#define PRESENT (generation[s] == g && epoch[s] == flight_epoch[me] && state[s] == RUNNING)

/* ---- a caller -------------------------------------------------------------------------- */

#ifdef STRICT
#define COMES_BACK SEAL
#else
#define COMES_BACK FINISH
#endif
#if CANCELS
#define MAY_CANCEL(next) if :: op = next :: cancels > 0 && me < CALLERS -> cancels--; op = ABANDON fi
#else
#define MAY_CANCEL(next) op = next
#endif

proctype Caller(byte me) {
    byte calls = CALLS, record = me;
    byte op, told;
    byte s, g, c, k;    /* slot, generation and cell of the flight; key of the call */
#ifdef SEALING
    bool encoded;
#endif
#ifdef PROMPT
    bool watches;
#endif

    if
    :: atomic { me < CALLERS -> goto new_call }
    :: atomic {
        me == CALLERS && ended == CALLERS ->
        /* The record of a dead caller, if there is one: nothing of it has been swept. */
        record = 0;
        do
        :: record < CALLERS && held[record] -> record++
        :: else -> break
        od;
        held[record] = 1;
        record_generation[record]++;
        calls = 1;
        op = REAP;
        goto take_lock
       }
    fi;

atomic { skip; new_call:
    s = 0; g = 0; c = 0; k = 0; told = 0; op = 0;
    flight_slot[me] = 0; flight_epoch[me] = 0; leads[me] = 0; runs[me] = IDLE; older[me] = 0;
#ifdef SEALING
    encoded = 0;
#endif
    if
    :: calls == 0 -> goto returned
    :: else ->
        calls--;
        op = BEGIN;
#if KEYS > 1
        if :: me < CALLERS -> k = 1 :: k = 0 fi;
#endif
#if FORGETS
        if :: forgets > 0 && me < CALLERS -> forgets--; op = FORGET :: op = BEGIN fi;
#endif
        goto take_lock
    fi
};

/* ---- lock.c ---- */
take_lock:
    if
    :: atomic {
        lock == 0 && started >= me ->
        lock = me + 1;
        if :: started == me -> started++ :: else fi;
        if
        :: op == BEGIN -> older[me] = over
        :: op == FINISH || op == ABANDON || op == SEAL -> returns()
        :: else
        fi;
        if :: dirty -> goto repair :: else -> goto locked fi
       }
#if LOCK_TIMEOUTS
    :: atomic {
        lock != 0 && lock_timeouts > 0 && started >= me && me < CALLERS ->
        lock_timeouts--;
        if :: started == me -> started++ :: else fi;
        if
        :: op == BEGIN || op == FORGET -> goto new_call
        :: op == FINISH || op == ABANDON -> returns(); goto resign
#ifdef STRICT
#ifdef M_SEAL_GIVES_UP
        :: op == SEAL -> returns(); encoded = 1; op = FINISH; goto take_lock
#else
        :: op == SEAL -> returns(); goto resign
#endif
#endif
        :: op == LEAVE -> goto resign_cell
        :: op == TAKEOVER -> goto wait
        :: op == TAKEOVER -> op = LEAVE; goto take_lock
        fi
       }
#endif
    KILL_ENTERED
    fi;

#if LOCK_TIMEOUTS
resign:
    if
    :: atomic {
        if
        :: resigned[s] < flight_epoch[me] -> resigned[s] = flight_epoch[me]; leads[me] = 0
        :: else -> leads[me] = 0
        fi;
        goto new_call
       }
    KILL
    fi;

resign_cell:
    if
    :: atomic { assert(OWNS(record)); cell_resigned[c] = 1; goto new_call }
    KILL
    fi;
#endif

atomic { skip; locked:
    if
    :: op == BEGIN -> goto begin
    :: op == FINISH -> goto finish
    :: op == ABANDON -> goto abandon
#ifdef STRICT
    :: op == SEAL -> goto seal_strict
#endif
    :: op == LEAVE -> goto leave
    :: op == TAKEOVER -> goto takeover
#if FORGETS
    :: op == FORGET -> goto forget
#endif
    :: op == REAP -> back = AFTER_REAP; goto sweep
    fi
};

unlock:
    if
    :: atomic {
        d_step {
            if
            :: told == LEADER -> check_leader()
            :: op == FINISH || op == ABANDON -> if :: told != PENDING -> leads[me] = 0 :: else fi
            :: else
            fi;
            check_group();
            clear_scratch();
            lock = 0
        };
#ifdef SEMAPHORES
        if :: posts != 0 -> goto post :: else fi;
#endif
        goto unlocked
       }
    KILL
    fi;

#ifdef SEMAPHORES
post:
    if
    :: atomic { posts & 1 -> token[0] = 1; posts = posts & ~1; goto posted }
    :: atomic { posts & 2 -> token[1] = 1; posts = posts & ~2; goto posted }
#if NC > 2
    :: atomic { posts & 4 -> token[2] = 1; posts = posts & ~4; goto posted }
#endif
    KILL_POSTER
    fi;
atomic { skip; posted: if :: posts != 0 -> goto post :: else -> goto unlocked fi };
#endif

atomic { skip; unlocked:
    if
    :: told == LEADER ->
        told = 0;
        MAY_CANCEL(COMES_BACK);
#ifdef M_PAYLOAD_OUTSIDE_LOCK
        goto write_outside
#else
        goto take_lock
#endif
    :: told == FOLLOWER -> assert(me < CALLERS); told = 0; op = 0; goto wait
    :: told == PENDING && op == TAKEOVER -> told = 0; op = 0; goto wait
#ifdef SEALING
    :: told == PENDING && (op == FINISH || op == SEAL) -> told = 0; MAY_CANCEL(FINISH); goto take_lock
#endif
    :: told == PENDING && (op == FORGET || op == REAP) ->
        if :: op == REAP -> check_nothing_in_use(); calls = 0 :: else fi;
        told = 0; op = BEGIN; goto take_lock
    :: told == IS_DONE -> told = 0; op = 0; goto wait
    :: told == SOLO -> assert(me < CALLERS); goto new_call
    :: told == OVER -> goto new_call
    fi
};

/* ---- flight.c: begin ---- */
begin:
    if
    :: atomic {
        d_step {
            x = 0;
            do
            :: x < NS && !(attached[x] && key[x] == k) -> x++
            :: else -> break
            od
        };
        if
        :: x == NS -> x = 0; goto fresh
        :: else -> s = x; x = 0
        fi;
#ifdef M_LOOKUP_ACCEPTS_DONE
        if :: state[s] == DONE -> goto join :: else fi;
#endif
        assert(state[s] == RUNNING || state[s] == ORPHANED);
        if
        :: state[s] == RUNNING ->
            look(s);
            assert(leader[s] != OWNER(record) || RESIGNED(s));    /* UF_SELF_JOIN */
            if
            :: !leaderless -> goto join
            :: else
            fi
        :: else
        fi;
        back = AFTER_ENTER;
        goto sweep
       }
    KILL
    fi;

entered:
    if
    :: atomic {
        if
        :: state[s] == FREE -> died = 0; goto fresh
        :: state[s] != FREE && died && deaths[s] >= MAX_TAKEOVERS && first[s] == 0 -> goto give_up_free
        :: state[s] != FREE && died && deaths[s] >= MAX_TAKEOVERS && first[s] != 0 -> goto give_up
        :: else -> goto lead
        fi
       }
    KILL
    fi;

give_up_free:           /* uf_free_slot_locked, of a leader that outlived its lease */
    if :: atomic { free_slot(s) } KILL fi;
    if :: atomic { attached[s] = 0; died = 0; goto fresh } KILL fi;

join:
    if
    :: atomic {
#ifndef M_JOIN_AFTER_SWEEP
        /* The sweep for a cell may have met a leader that has just died, with its waiters. */
        if :: state[s] == FREE -> c = 0; died = 0; leaderless = 0; goto fresh :: else fi;
#endif
        d_step {
            c = 0;
            do
            :: c < NC && owner[c] != 0 -> c++
            :: else -> break
            od
        };
        if
        :: c == NC && !again -> c = 0; again = 1; back = AFTER_JOIN; goto sweep
        :: c == NC && again -> c = 0; told = SOLO; goto unlock
        :: else
        fi;
        g = generation[s];
        cell_slot[c] = s; cell_generation[c] = g; cell_resigned[c] = 0;
#ifdef SEMAPHORES
        token[c] = 0;
#endif
       }
    KILL
    fi;
    if :: atomic { owner[c] = OWNER(record) } KILL fi;                     /* COMMIT */
    if
    :: atomic { append(s, c); died = 0; leaderless = 0; told = FOLLOWER; goto unlock }
    KILL
    fi;

fresh:
    if
    :: atomic {
        d_step {
            s = 0;
            do
            :: s < NS && (attached[s] || state[s] != FREE) -> s++
            :: else -> break
            od
        };
        if
        :: s == NS && !again -> s = 0; again = 1; back = AFTER_FRESH; goto sweep
        :: s == NS && again -> s = 0; told = SOLO; goto unlock
        :: else
        fi;
        generation[s]++
       }
    KILL
    fi;
    if :: atomic { NEW_EPOCH(s) } KILL fi;
    if :: atomic { key[s] = k; leader[s] = OWNER(record); g = generation[s] } KILL fi;
    if :: atomic { state[s] = RUNNING } KILL fi;
    if :: atomic { attached[s] = 1; told = LEADER; goto unlock } KILL fi;  /* COMMIT */

lead:                   /* lead_locked */
#ifdef M_TAKEOVER_EPOCH_FIRST
    if :: atomic { check_replaced(); NEW_EPOCH(s) } KILL fi;
#endif
#ifdef M_TAKEOVER_STATE_FIRST
    if :: atomic { state[s] = RUNNING } KILL fi;
#endif
    if
    :: atomic {
#ifndef M_TAKEOVER_EPOCH_FIRST
#ifndef M_TAKEOVER_STATE_FIRST
        check_replaced();
#endif
#endif
        leader[s] = OWNER(record)                                          /* COMMIT */
       }
    KILL
    fi;
    if :: atomic { expired[s] = 0 } KILL fi;
#ifndef M_DEATHS_NOT_COUNTED
    if :: atomic { deaths[s] = deaths[s] + died } KILL fi;
#endif
#ifndef M_TAKEOVER_EPOCH_FIRST
#ifndef M_NO_EPOCH
    if :: atomic { NEW_EPOCH(s) } KILL fi;
#endif
#endif
#ifdef SEALING
    if
    :: atomic {
        state[s] = RUNNING;                                                /* COMMIT */
#ifdef M_UNSEAL_FORGOTTEN
        if :: attached[s] -> goto led :: else fi
#else
        if :: !sealed[s] -> goto led :: else fi
#endif
       }
    KILL
    fi;
#ifdef M_UNSEAL_FIRST
    if :: atomic { sealed[s] = 0 } KILL fi;
#endif
    if :: atomic { attached[s] = 1 } KILL fi;
    if :: atomic { sealed[s] = 0 } KILL fi;
#endif
led:
    if
    :: atomic {
        state[s] = RUNNING;                                                /* COMMIT */
        g = generation[s];
        told = LEADER;
#ifndef M_TAKEOVER_WAKES_NOBODY
        if :: op == TAKEOVER -> WAKE_FIRST(s) :: else fi;
#endif
        goto unlock
       }
    KILL
    fi;

give_up:                /* give_up_locked */
#ifdef M_GIVE_UP_BUMPS_EPOCH
    if :: atomic { NEW_EPOCH(s) } KILL fi;
#endif
    if :: atomic { assert(died && first[s] != 0); kind[s] = DIED } KILL fi;
#ifdef SEMAPHORES
    if
    :: atomic {
        unposted[s] = first[s];
        WAKE_NEXT(s);
#ifdef M_GIVE_UP_SETS_NO_CURSOR
        unposted[s] = 0
#endif
       }
    KILL
    fi;
#endif
    if :: atomic { done(s) } KILL fi;                                      /* COMMIT */
    if
    :: atomic {
        attached[s] = 0;
        died = 0;
        if :: op == BEGIN -> goto fresh :: else -> told = IS_DONE; goto unlock fi
       }
    KILL
    fi;

/* ---- flight.c: takeover ---- */
takeover:
    if
    :: atomic {
        assert(OWNS(record));
        assert(state[s] != FREE);
        if
        :: state[s] == DONE -> told = IS_DONE; goto unlock
        :: state[s] == RUNNING ->
            look(s);
#ifndef M_TAKEOVER_TRUSTS_THE_LOOK
            if :: !leaderless -> told = PENDING; goto unlock :: else fi
#endif
        :: else
        fi;
        back = AFTER_TAKEOVER;
        goto sweep
       }
    KILL
    fi;

#if defined(M_MOVE_FORGOTTEN)
#define MOVES (x != s)
#elif defined(M_LEADS_BESIDE_NEWER)
#define MOVES false
#else
#define MOVES sealed[s]
#endif
takeover_swept:
    if
    :: atomic {
#ifdef SEALING
        d_step {                /* find_newer_locked */
            x = 0;
            do
            :: x < NS && !(attached[x] && key[x] == key[s]) -> x++
            :: else -> break
            od;
            if
            :: x < NS && MOVES -> newer = x + 1; was_first = (first[s] == c + 1)
            :: else -> newer = 0
            fi;
            x = 0
        };
        if :: newer == 0 && died && deaths[s] >= MAX_TAKEOVERS -> goto give_up :: else fi;
#else
        if :: died && deaths[s] >= MAX_TAKEOVERS -> goto give_up :: else fi;
#endif
        unlink()
       }
    KILL
    fi;
#ifdef SEALING
    if :: atomic { newer != 0 -> goto move } :: atomic { newer == 0 } KILL fi;
#endif
    if :: atomic { free_cell(c); c = 0; goto lead } KILL fi;

#ifdef SEALING
move:                   /* uf_move_locked, move_locked; the cell is in no list any more.  Only its owner
                         * moves it, so whoever dies in here leaves a cell of the dead. */
    if
    :: atomic {
        assert(!forgotten[s]);
#ifndef M_MOVE_KEEPS_GENERATION
        cell_generation[c] = generation[newer - 1]
#endif
       }
    KILL
    fi;
    if :: atomic { cell_slot[c] = newer - 1 } KILL fi;
    if
    :: atomic {
        append(newer - 1, c);
        x = s; s = newer - 1; g = generation[s];
        if
        :: state[x] == RUNNING || first[x] != 0 ->
#ifndef M_MOVE_WAKES_NOBODY
            if :: was_first -> WAKE_FIRST(x) :: else fi;
#endif
            told = PENDING; goto unlock
        :: else
        fi
       }
    KILL
    fi;
    if
    :: atomic {
#ifdef M_MOVE_LEAVES_ORPHAN
        told = PENDING; goto unlock;
#endif
        free_slot(x)
       }
    KILL
    fi;
    if :: atomic { attached[x] = 0; told = PENDING; goto unlock } KILL fi;
#endif

/* ---- flight.c: finish, abandon, forget ---- */
#ifdef M_PAYLOAD_OUTSIDE_LOCK
write_outside:
    if :: atomic { half_a[s] = flight_epoch[me] } KILL fi;
    if :: atomic { half_b[s] = flight_epoch[me]; goto take_lock } KILL fi;
#endif

finish:
    if
    :: atomic {
#ifndef M_NO_FENCE
        if :: !PRESENT -> told = OVER; goto unlock :: else fi;
#endif
        x = s; w = first[s]; before = 0; whole = 1; drop_back = IN_FINISH;
        REMEMBER(w);
        goto drop
       }
    KILL
    fi;

finish_dropped:
    if
    :: atomic {
        assert(PRESENT);
        if
        :: first[s] == 0 -> goto end_empty
        :: else
        fi;
#ifdef SEALING
        if
        :: !encoded ->
#ifndef M_FINISH_WAKES_NO_SUCCESSOR
            if :: SUCCEEDED(s) -> WAKE_FIRST(s) :: else fi;
#endif
            goto seal
        :: else
        fi;
#endif
        skip
       }
    KILL
    fi;
#ifndef M_PAYLOAD_OUTSIDE_LOCK
    if :: atomic { half_a[s] = flight_epoch[me] } KILL fi;
    if :: atomic { half_b[s] = flight_epoch[me] } KILL fi;
#endif
#ifndef M_DONE_BEFORE_PAYLOAD
    if :: atomic { kind[s] = VALUE } KILL fi;
#endif
#ifdef M_DETACH_BEFORE_DONE
    if :: atomic { attached[s] = 0 } KILL fi;
#endif
#ifdef SEMAPHORES
    if
    :: atomic {
        unposted[s] = first[s];
        WAKE_NEXT(s);
#ifdef M_FINISH_SETS_NO_CURSOR
        unposted[s] = 0
#endif
       }
    KILL
    fi;
#endif
    if :: atomic { assert(PRESENT); done(s); w = 0 } KILL fi;              /* COMMIT */
#ifdef M_DONE_BEFORE_PAYLOAD
    if :: atomic { kind[s] = VALUE } KILL fi;
#endif
    if
    :: atomic {
#ifndef M_LOOKUP_ACCEPTS_DONE
        attached[s] = 0;
#endif
        told = OVER;
        goto unlock
       }
    KILL
    fi;

#ifdef SEALING
#ifdef STRICT
seal_strict:
    if
    :: atomic {
        encoded = 1;
        if :: !PRESENT -> told = PENDING; goto unlock :: else fi
       }
    KILL
    fi;
#endif
seal:                   /* seal_locked */
    if
    :: atomic {
        encoded = 1;
#ifdef M_SEAL_AFTER_ENCODING
        told = PENDING; goto unlock;
#endif
        if :: !attached[s] -> told = PENDING; goto unlock :: else fi    /* forgotten */
       }
    KILL
    fi;
#ifdef M_DETACH_BEFORE_SEAL
    if :: atomic { attached[s] = 0 } KILL fi;
#endif
    if :: atomic { sealed[s] = 1 } KILL fi;
    if :: atomic { attached[s] = 0; told = PENDING; goto unlock } KILL fi;
#endif

end_empty:              /* of finish and of abandon, when nobody waits */
    if :: atomic { free_slot(s) } KILL fi;                                 /* COMMIT */
    if :: atomic { attached[s] = 0; told = OVER; goto unlock } KILL fi;

abandon:
    if
    :: atomic {
        if :: !PRESENT -> told = OVER; goto unlock :: else fi;
        x = s; w = first[s]; before = 0; whole = 1; drop_back = IN_ABANDON;
        goto drop
       }
    KILL
    fi;

abandon_dropped:
    if
    :: atomic {
        if :: first[s] == 0 -> goto end_empty :: else fi;
        state[s] = ORPHANED;                                               /* COMMIT */
#ifndef M_ABANDON_WAKES_NOBODY
        WAKE_FIRST(s);
#endif
        told = OVER;
        goto unlock
       }
    KILL
    fi;

#if FORGETS
forget:
    if
    :: atomic {
        d_step {
            x = 0;
            do
            :: x < NS && !(attached[x] && key[x] == k) -> x++
            :: else -> break
            od
        };
        if
        :: x < NS -> attached[x] = 0; forgotten[x] = 1; excuse(x)          /* COMMIT */
        :: else
        fi;
        told = PENDING;
        goto unlock
       }
    KILL
    fi;
#endif

/* ---- flight.c: leave ---- */
leave:
    if
    :: atomic {
        assert(OWNS(record));
        was_first = (first[s] == c + 1);
        was_done = (state[s] == DONE);
        if :: was_done -> check_payload() :: else fi;
        unlink()
       }
    KILL
    fi;
    if
    :: atomic {
        free_cell(c);
#ifdef M_LEAVE_PASSES_ON_TO_THE_DEAD
        WAKE_NEXT(s);
#endif
        x = s; w = first[s]; before = 0; drop_back = IN_LEAVE;
#ifndef M_LEAVE_KEEPS_DEAD
        if :: was_first || was_done -> goto drop :: else fi;
#endif
        goto settle
       }
    KILL
    fi;

settle:
    if
    :: atomic {
        if
        :: state[s] == RUNNING || first[s] != 0 ->
#ifndef M_LEAVE_WAKES_NOBODY
            if :: was_first && state[s] != DONE -> WAKE_FIRST(s) :: else fi;
#endif
#if defined(SEMAPHORES) && !defined(M_LEAVE_PASSES_NOTHING_ON) && \
    !defined(M_LEAVE_PASSES_ON_TO_THE_DEAD)
#ifdef M_TIMED_OUT_PASSES_NOTHING_ON
            if :: told != OVER -> WAKE_NEXT(s) :: else fi;
#else
            WAKE_NEXT(s);
#endif
#endif
            told = OVER;
            goto unlock
        :: else -> goto end_empty
        fi
       }
    KILL
    fi;

/* ---- waiters.c: uf_drop_dead_locked of x's list, from waiter w ---- */
drop:
    if
    :: atomic {
        do
        :: w == 0 -> break
        :: w != 0 && DESERTED(w - 1) -> bypass(); goto drop_free
        :: w != 0 && (!DESERTED(w - 1)
#if LIES
            || (!cell_resigned[w - 1] && lies > 0 && me < CALLERS)
#endif
           ) ->
#if LIES
            if :: DESERTED(w - 1) -> lies-- :: else fi;
#endif
            if
            :: whole -> before = w; w = next[w - 1]
            :: else -> break
            fi
        od;
        w = 0; before = 0;
        if
        :: drop_back == IN_SWEEP -> goto sweep_slot
        :: drop_back == IN_FINISH -> goto finish_dropped
        :: drop_back == IN_ABANDON -> goto abandon_dropped
        :: drop_back == IN_LEAVE -> goto settle
        fi
       }
    KILL
    fi;

drop_free:
    if
    :: atomic {
        d_step { gone = w - 1; w = next[w - 1]; free_cell(gone); gone = 0 };
        goto drop
       }
    KILL
    fi;

/* ---- repair.c: uf_sweep_locked ---- */
atomic { skip; sweep: i = 0; goto sweep_next };

atomic { skip; sweep_next:
    do
    :: i < NS && state[i] == FREE -> i++
    :: else -> break
    od;
    if
    :: i < NS ->
        x = i; w = first[x]; before = 0; whole = 1; drop_back = IN_SWEEP;
        REMEMBER(w);
        goto drop
    :: else -> i = 0; x = 0; whole = 0; drop_back = 0
    fi;
    if
    :: back == AFTER_REPAIR -> goto repair_post
    :: back == AFTER_ENTER -> back = 0; goto entered
    :: back == AFTER_JOIN -> back = 0; goto join
    :: back == AFTER_FRESH -> back = 0; goto fresh
    :: back == AFTER_TAKEOVER -> back = 0; goto takeover_swept
    :: back == AFTER_REAP -> back = 0; told = PENDING; goto unlock
    fi
};

sweep_slot:
    if
    :: atomic {
        if
        :: state[x] == RUNNING && first[x] == 0 &&
#ifdef M_SWEEP_IGNORES_RESIGNED
           DEAD(leader[x])
#else
           (RESIGNED(x) || DEAD(leader[x]))
#endif
           -> goto sweep_free
#if LIES
        :: state[x] == RUNNING && first[x] == 0 && !RESIGNED(x) && DEAD(leader[x]) &&
           lies > 0 && me < CALLERS -> lies--
#endif
#ifdef M_SWEEP_WAKES_NO_SUCCESSOR
        :: state[x] == RUNNING && first[x] != 0 && LEADERLESS(x) -> WAKE_FIRST(x)
#else
        :: state[x] == RUNNING && first[x] != 0 && (SUCCEEDED(x) || LEADERLESS(x)) -> WAKE_FIRST(x)
#endif
        :: state[x] == ORPHANED && first[x] != 0 -> WAKE_FIRST(x)
        :: (state[x] == DONE || state[x] == ORPHANED) && first[x] == 0 -> goto sweep_free
        :: else
        fi;
        i++;
        goto sweep_next
       }
    KILL
    fi;

sweep_free:
    if :: atomic { free_slot(x) } KILL fi;
    if :: atomic { attached[x] = 0; i++; goto sweep_next } KILL fi;

/* ---- repair.c: uf_group_repair_locked ---- */
atomic { skip; repair:
    i = 0;
#ifdef SEMAPHORES
    called = 0;
#endif
    goto repair_slot
};

repair_slot:
    if
    :: atomic {
#ifndef M_REPAIR_KEEPS_LISTS
        first[i] = 0; last[i] = 0;
#endif
#if defined(SEMAPHORES) && !defined(M_REPAIR_KEEPS_CURSOR)
        unposted[i] = 0;
#endif
#ifndef M_REPAIR_KEEPS_ATTACHED
        if :: state[i] == FREE || state[i] == DONE -> attached[i] = 0 :: else fi;
#endif
#if defined(SEALING) && !defined(M_REPAIR_KEEPS_SEALED)
        if :: attached[i] -> sealed[i] = 0 :: else fi;
#endif
        i++;
        if :: i < NS -> goto repair_slot :: else -> i = 0; goto repair_cell fi
       }
    KILL
    fi;

repair_cell:
    if
    :: atomic {
        if
        :: owner[i] == 0
        :: owner[i] != 0 && state[cell_slot[i]] != FREE &&
           generation[cell_slot[i]] == cell_generation[i] -> append(cell_slot[i], i)
        :: else -> free_cell(i)
        fi;
        i++;
        if
        :: i < NC -> goto repair_cell
        :: else ->
#ifdef M_REPAIR_WITHOUT_SWEEP
            i = 0; goto repair_post
#else
            i = 0; back = AFTER_REPAIR; goto sweep
#endif
        fi
       }
    KILL
    fi;

repair_post:
    if
    :: atomic {
#ifdef SEMAPHORES
        posts = 0;      /* the sweep's list is not used: all are posted, under the lock */
#ifndef M_REPAIR_POSTS_NOBODY
        if
        :: owner[i] != 0 -> token[i] = 1
        :: else
        fi;
#endif
        i++;
        if :: i < NC -> goto repair_post :: else -> i = 0 fi;
#endif
        back = 0
       }
    KILL
    fi;
    if :: atomic { dirty = 0; goto locked } KILL fi;

/* ---- wait.c ---- */
#ifdef M_TIMED_OUT_PASSES_NOTHING_ON
#define TIME_OUT timeouts--; op = LEAVE; told = OVER
#else
#define TIME_OUT timeouts--; op = LEAVE
#endif
#define DAMAGE (!OWNS(record) || state[s] == FREE)
#define LOOK_DONE (state[s] == DONE)
#define LOOK_LEADERLESS (state[s] == ORPHANED || (state[s] == RUNNING && LEADERLESS(s)))
wait:
    if
    :: atomic { DAMAGE -> assert(false) }
    :: atomic { !DAMAGE && LOOK_DONE -> check_payload(); op = LEAVE; goto take_lock }
    :: atomic { !DAMAGE && LOOK_LEADERLESS -> op = TAKEOVER; goto take_lock }
#ifdef SEMAPHORES
    :: atomic {
        !DAMAGE && !LOOK_DONE && !LOOK_LEADERLESS ->
#ifdef PROMPT
        watches = (first[s] == c + 1);
#endif
        goto sleep
       }
#endif
#if TIMEOUTS
    :: atomic {
        !DAMAGE && !LOOK_DONE && !LOOK_LEADERLESS && timeouts > 0 ->
        TIME_OUT; goto take_lock
       }
#endif
    KILL_AWAKE
    fi;

#ifdef SEMAPHORES
sleep:
    if
#ifdef M_SLEEPS_NOT
    :: goto wait
#endif
    :: atomic { token[c] -> token[c] = 0; goto wait }
#if !defined(NO_LOOKS) && !defined(M_NO_SECOND_LOOK)
    :: atomic {
#ifdef PROMPT
        watches &&
#endif
        (DAMAGE || LOOK_DONE || LOOK_LEADERLESS) -> goto wait
       }
#endif
#if TIMEOUTS
    :: atomic { timeouts > 0 -> TIME_OUT; goto take_lock }
#endif
    KILL_ASLEEP
    fi;
#endif

/* ---- death, and the next holder of the record ---- */
atomic { skip; dead:
    if
    :: lock == me + 1 -> lock = 0; dirty = 1; clear_scratch()
    :: else
    fi;
#ifdef SEMAPHORES
    posts = 0;
#endif
    held[record] = 0;
    if :: started == me -> started++ :: else fi;
    s = 0; g = 0; c = 0; k = 0; told = 0; op = 0;
    flight_slot[me] = 0; flight_epoch[me] = 0; leads[me] = 0; runs[me] = IDLE; older[me] = 0;
#ifdef SEALING
    encoded = 0;
#endif
#ifdef PROMPT
    watches = 0;
#endif
#ifdef REBORN
    if :: calls > 0 -> goto claim :: else fi;
#endif
    calls = 0;
    ended++;
    goto end
};

#ifdef REBORN
claim:                  /* the former holder's words look alive between the two stores */
    if :: atomic { held[record] = 1 } KILL fi;
    if :: atomic { record_generation[record]++; goto new_call } KILL fi;
#endif

returned:
    if
    :: atomic {
        ended++;
        if :: me == CALLERS -> check_nothing_in_use() :: else fi
       }
    KILL
    fi;
end: skip
}

#if LEASES
inline excuse_late(y) {
    n = 0;
    do
    :: n <= CALLERS ->
        if
        :: runs[n] == RUNS && flight_slot[n] == y && flight_epoch[n] == epoch[y] -> runs[n] = RUNS_APART
        :: else
        fi;
        n++
    :: else -> n = 0; break
    od
}

proctype Clock() {
    byte n;
end:
    do
    :: atomic { leases > 0 && state[0] == RUNNING && !expired[0] -> leases--; expired[0] = 1; excuse_late(0) }
#if NS > 1
    :: atomic { leases > 0 && state[1] == RUNNING && !expired[1] -> leases--; expired[1] = 1; excuse_late(1) }
#endif
    od
}
#endif

/* Takes a number of events away, or none: whoever could still be killed or time out is not
 * seen to be stuck. */
inline fewer(budget) {
    do
    :: budget > 0 -> budget--
    :: break
    od
}

init {
    atomic {
        byte n = 0;
        fewer(kills);
#if TIMEOUTS
        fewer(timeouts);
#endif
#if LOCK_TIMEOUTS
        fewer(lock_timeouts);
#endif
#if LEASES
        fewer(leases);
#endif
        do
        :: n < CALLERS -> held[n] = 1; run Caller(n); n++
        :: else -> break
        od;
        run Caller(CALLERS);
#if LEASES
        run Clock();
#endif
        n = 0
    }
}
