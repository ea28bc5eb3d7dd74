#include "futex.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "table.h"

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
/* Not private: the words are shared between processes. */
#define FUTEX_WORD_32 2u

_Static_assert(sizeof(struct timespec) == 16, "timespec64 of the kernel");

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic bool can_wait;

struct uf_word uf_word_of(_Atomic uint32_t *word, uint32_t expected)
{
    return (struct uf_word){expected, (uint64_t)(uintptr_t)word, FUTEX_WORD_32, 0};
}

static int wait_for_words(const struct uf_word *words, unsigned int count, uint64_t until_ns)
{
    /* The kernel's timespec64, which is libc's on 64-bit machines. */
    const struct timespec until = uf_timespec_of(until_ns);
    bool failed = syscall(SYS_futex_waitv, words, count, 0, &until, CLOCK_MONOTONIC) == -1;
    return failed ? errno : 0;
}

/* The kernel has to see that a word is not what is expected. */
static void probe_kernel(void)
{
    _Atomic uint32_t one = 1;
    const struct uf_word word = uf_word_of(&one, 0);
    can_wait = wait_for_words(&word, 1, 1) == EAGAIN;
}

bool uf_can_wait_for_words(void)
{
    pthread_once(&once, probe_kernel);
    return can_wait;
}

int uf_wait_for_words(const struct uf_word *words, unsigned int count, uint64_t until_ns)
{
    int error = wait_for_words(words, count, until_ns);
    /* EFAULT: a word has been unmapped. All others: by a filter that was set up since, for
     * example; do not ask again. */
    if (error != 0 && error != EAGAIN && error != EINTR && error != ETIMEDOUT && error != EFAULT)
        can_wait = false;
    return error;
}

void uf_wake_sleepers(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX);
}
