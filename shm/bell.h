/* Waking a waiter, whatever it sleeps on. */
#ifndef UF_BELL_H
#define UF_BELL_H

#include "layout.h"

/* What ringing needs; zero-initialised by UF_BELLS, and closed after the last ring. */
struct uf_bells {
    int socket; /* + 1; opened by the first ring of a loop */
};
#define UF_BELLS {0}

/* Never blocks, never fails: a waiter that is not woken looks for itself a little later.
 * A cell that changed hands meanwhile wakes somebody who finds nothing to do. */
void uf_ring(struct uf_bells *bells, struct uf_cell *cell);
void uf_ring_loop(struct uf_bells *bells, const unsigned char *doorbell);
void uf_bells_close(struct uf_bells *bells);

/* Takes what has rung at a loop's socket; no more than a socket queues, in case that the descriptor
 * is something else by now. */
void uf_take_rings(int bell);

#endif
