/* Sleeping on several words of memory at once, of which any may be shared between processes. */
#ifndef UF_FUTEX_H
#define UF_FUTEX_H

#include <stdbool.h>
#include <stdint.h>

#define UF_MOST_WORDS 128u /* FUTEX_WAITV_MAX of the kernel */

/* One word, and what it holds for as long as there is nothing to wake up for. As in linux/futex.h
 * since 5.16: the headers at build time may be older than the kernel at run time. */
struct uf_word {
    uint64_t expected;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
};

struct uf_word uf_word_of(_Atomic uint32_t *word, uint32_t expected);

/* False if this kernel, or what filters its calls, cannot do it (before Linux 5.16; some
 * sandboxes). It may turn out later. */
bool uf_can_wait_for_words(void);

/* Sleeps until a word is woken, or `until_ns` on CLOCK_MONOTONIC: 0, or EAGAIN (a word does not
 * hold what is expected), EINTR, ETIMEDOUT, or another errno. May wake for no reason. */
int uf_wait_for_words(const struct uf_word *words, unsigned int count, uint64_t until_ns);

/* Wakes all who sleep on the word, which need not be mapped any more. */
void uf_wake_sleepers(_Atomic uint32_t *word);

#endif
