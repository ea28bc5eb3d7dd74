/* A model of the doorbell of an event loop (desk.py, bell.c, docs/asyncio.md), for spin.
 *
 * What it is for
 *   flight.pml posts semaphores: each has one sleeper, is there before its cell is, and forgets
 *   no post.  A doorbell is one socket for all flights that a loop waits for, is opened after the
 *   first of their cells, closed while the next one begins, and holds few rings.  Whether a loop
 *   hears of every flight all the same does not depend on the rest of the protocol, so it is
 *   looked at alone.  `run.py` runs both models.
 *
 * What stands for what
 *   leader       of one flight: DONE is stored, under the lock; then those are rung who were in
 *                the list.
 *   ring         an empty datagram, sent without waiting: nothing happens if the socket is not
 *                open under the cell's name (ECONNREFUSED), or is full (EAGAIN).
 *   loop         begins FLIGHTS flights in the order of their numbers, whenever it likes, runs one
 *                callback at a time, each to its end, and takes whichever is due.  Every read and
 *                write of something shared is a step of its own.
 *   looks        only those that are due to a new flight, or to a bell opened late.  A loop looks
 *                again in any case, because of leaders that die, but that may take 250 ms.
 *   landed       the loop has left the flight.  With the wake cursor that is also what posts the
 *                next waiter, so nobody waits for a loop longer than the loop does.
 *   budgets      FAILS times there is no descriptor for a bell; CANCELS tasks give up; STOPS: the
 *                loop is stopped for good between two callbacks, its bell open; DEATHS: killed.
 *                Any smaller number is tried too, as in flight.pml.
 *
 * What is asserted
 *   1 every flight lands, and the loop ends: no state without a successor before that (spin:
 *     invalid end states), and no cycle at all (configuration `bell-cycles`).
 *   2 every leader ends, whatever becomes of the loop.
 *   3 nothing is open, and no timer set, when nothing is waited for.
 */

#ifndef FLIGHTS
#define FLIGHTS 3       /* 2 or 3 */
#endif
#ifndef QUEUE
#define QUEUE 1         /* rings that fit into the socket */
#endif
#ifndef FAILS
#define FAILS 0
#endif
#ifndef CANCELS
#define CANCELS 0
#endif
#ifndef STOPS
#define STOPS 0
#endif
#ifndef DEATHS
#define DEATHS 0
#endif

bool done[FLIGHTS];     /* state DONE */
bool followed[FLIGHTS]; /* the loop has a cell in the list */
byte name[FLIGHTS];     /* the doorbell in that cell */

byte doorbell;          /* the name under which the loop's bell is open, or will be */
bool is_open;
byte rings;             /* waiting in the socket */

byte fails = FAILS, cancels = CANCELS, stops = STOPS, deaths = DEATHS;

proctype Leader(byte f) {
    bool waited_for;

#ifdef M_RINGS_BEFORE_DONE
    atomic { waited_for = followed[f] };
#else
    atomic { done[f] = 1; waited_for = followed[f] };                      /* COMMIT */
#endif
    if
    :: !waited_for
#ifdef M_RING_WAITS
    :: atomic { waited_for && !(is_open && name[f] == doorbell && rings == QUEUE) ->
#else
    :: atomic { waited_for ->
#endif
        if
        :: is_open && name[f] == doorbell && rings < QUEUE -> rings++
        :: else                 /* EAGAIN, ECONNREFUSED */
        fi
       }
    fi;
#ifdef M_RINGS_BEFORE_DONE
    done[f] = 1
#endif
}

#define FOLLOWS (followed[0] || followed[1] || followed[FLIGHTS - 1])

proctype Loop() {
    byte begun, f;
    bool timer;         /* a look is due */
    bool closing;       /* _stop_listening is due */

    /* Whatever is due, in any order. */
next_callback:
    if
    :: atomic { begun < FLIGHTS -> goto begin }
    :: atomic { is_open && rings > 0 -> goto rung }
    :: atomic { timer -> timer = 0; goto look }
    :: atomic { closing -> closing = 0; goto close }
    :: atomic { cancels > 0 && FOLLOWS -> cancels--; goto cancel }
    :: atomic { stops > 0 -> stops--; goto end }
    :: atomic { deaths > 0 -> deaths--; is_open = 0; rings = 0; goto end }
    :: atomic {
        begun == FLIGHTS && !FOLLOWS && !timer && !closing ->
        assert(!is_open);
        goto end
       }
    fi;

    /* enter, _listen */
begin:
    if
    :: atomic { done[begun] -> begun++; goto next_callback }    /* leads one of its own */
    :: atomic { !done[begun] -> followed[begun] = 1; name[begun] = doorbell; begun++ }
    fi;
    if
    :: atomic { !is_open && fails > 0 -> fails-- }
    :: atomic { !is_open && fails == 0 -> is_open = 1 }
    :: is_open
    fi;
#ifndef M_NO_EARLY_LOOK
    timer = 1;
#endif
    goto next_callback;

    /* _rung */
rung:
#ifdef M_LOOKS_BEFORE_DRAINING
    f = 0;
    do
    :: atomic { f < FLIGHTS -> followed[f] = followed[f] && !done[f]; f++ }
    :: f == FLIGHTS -> break
    od;
#endif
    do
    :: rings > 0 -> rings--
    :: rings == 0 -> break
    od;
    timer = 0;
#ifdef M_LOOKS_BEFORE_DRAINING
    goto looked;
#endif

    /* _look */
look:
    f = 0;
    do
    :: atomic {
        f < FLIGHTS ->
#ifdef M_LOOKS_AT_ONE
        if :: followed[f] && done[f] -> followed[f] = 0; goto looked :: else fi;
#endif
        followed[f] = followed[f] && !done[f];
        f++
       }
    :: f == FLIGHTS -> break
    od;
looked:
    f = 0;
    if
    :: atomic { !FOLLOWS -> closing = is_open; goto next_callback }
    :: atomic { FOLLOWS && is_open -> goto next_callback }
    :: atomic { FOLLOWS && !is_open && fails > 0 -> fails--; timer = 1; goto next_callback }
    :: atomic { FOLLOWS && !is_open && fails == 0 -> is_open = 1 }
    fi;
#ifndef M_NO_LOOK_AFTER_LATE_BELL
    timer = 1;
#endif
    goto next_callback;

    /* leave */
cancel:
    if
    :: atomic { followed[0] -> followed[0] = 0 }
    :: atomic { followed[1] -> followed[1] = 0 }
    :: atomic { followed[FLIGHTS - 1] -> followed[FLIGHTS - 1] = 0 }
    fi;
    if
    :: atomic { !FOLLOWS -> timer = 0; closing = is_open; goto next_callback }
    :: atomic { FOLLOWS -> goto next_callback }
    fi;

    /* _stop_listening */
close:
    atomic {
#ifndef M_CLOSES_IN_USE
        if :: FOLLOWS -> goto next_callback :: else fi;
#endif
        is_open = 0; rings = 0; doorbell++;
        goto next_callback
    };
end: skip
}

inline fewer(budget) {
    do
    :: budget > 0 -> budget--
    :: break
    od
}

init {
    atomic {
        byte n = 0;
        fewer(fails);
        fewer(cancels);
        fewer(stops);
        fewer(deaths);
        do
        :: n < FLIGHTS -> run Leader(n); n++
        :: else -> break
        od;
        run Loop();
        n = 0
    }
}
