/* Waking a waiter, whatever it sleeps on. */
#ifndef UF_BELL_H
#define UF_BELL_H

#include "layout.h"

/* Never blocks, never fails: a waiter that is not woken looks for itself a little later.
 * A cell that changed hands meanwhile wakes somebody who finds nothing to do. */
void uf_ring(struct uf_cell *cell);
void uf_ring_loop(const unsigned char *doorbell);

/* Takes what has rung at a loop's socket; no more than a socket queues, in case that the descriptor
 * is something else by now. */
void uf_take_rings(int bell);

#endif
