#include "watch.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As in linux/futex.h and asm/unistd.h since 5.16: the headers at build time may be older than
 * the kernel at run time. Not private: the words are shared between processes. */
#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
#endif
#define FUTEX_WORD_32 2u
struct waited_word {
    uint64_t expected;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
};

/* glibc's sem_t on 64-bit machines, since 2.21: sem_post adds one to `value` and wakes somebody
 * who sleeps on it, if there are any `sleepers`. A sleeper that is killed stays counted, which
 * costs its cell's posters a system call until the cell is used again. */
struct semaphore_words {
    _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
};
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "order of the halves of a sem_t");
_Static_assert(sizeof(struct timespec) == 16, "timespec64 of the kernel");
_Static_assert(sizeof(sem_t) >= sizeof(struct semaphore_words), "halves of a sem_t");

static long wait_for_words(const struct waited_word *words, unsigned int count, uint64_t until_ns)
{
    /* The kernel's timespec64, which is libc's on 64-bit machines. */
    const struct timespec until = uf_timespec_of(until_ns);
    return syscall(SYS_futex_waitv, words, count, 0, &until, CLOCK_MONOTONIC);
}

static struct waited_word word_of(_Atomic uint32_t *word, uint32_t expected)
{
    return (struct waited_word){expected, (uint64_t)(uintptr_t)word, FUTEX_WORD_32, 0};
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic bool can_wait;

/* A semaphore that holds one token: the kernel has to see that its word is not zero. */
static void probe_kernel(void)
{
    sem_t semaphore;
    sem_init(&semaphore, 1, 1);
    struct waited_word word = word_of(&((struct semaphore_words *)&semaphore)->value, 0);
    can_wait = wait_for_words(&word, 1, 1) == -1 && errno == EAGAIN;
    sem_destroy(&semaphore);
}

bool uf_watch_arm(const struct uf_table *table, uint64_t owner, struct uf_watch *watch)
{
    struct uf_thread *thread = uf_thread_of(table, owner);
    pthread_once(&once, probe_kernel);
    if (!can_wait || !thread || UF_LOAD(thread->generation) != owner >> UF_OWNER_BITS)
        return false;
    watch->word = (_Atomic uint32_t *)&thread->life.__data.__lock;
    uint32_t seen = UF_LOAD(*watch->word);
    if ((seen & FUTEX_TID_MASK) != UF_LOAD(thread->tid))
        return false;
    /* As a thread does that is going to wait for the lock: without this bit the kernel only marks
     * the word when the holder ends, and wakes nobody (robust-futex-ABI.txt). */
    watch->alive = seen | FUTEX_WAITERS;
    return atomic_compare_exchange_strong(watch->word, &seen, watch->alive);
}

bool uf_watch_sleep(const struct uf_watch *watch, sem_t *semaphore, uint64_t until_ns)
{
    struct semaphore_words *words = (struct semaphore_words *)semaphore;
    const struct waited_word both[] = {word_of(&words->value, 0),
                                       word_of(watch->word, watch->alive)};
    atomic_fetch_add(&words->sleepers, 1);
    long woken = wait_for_words(both, 2, until_ns);
    int error = woken == -1 ? errno : 0;
    atomic_fetch_sub(&words->sleepers, 1);
    if (error != 0 && error != EAGAIN && error != EINTR && error != ETIMEDOUT)
        can_wait = false; /* by a filter that was set up since, for example: do not ask again */
    /* The kernel wakes one; those who wait for other flights of that leader have to look too. */
    if (woken == 1)
        syscall(SYS_futex, watch->word, FUTEX_WAKE, INT_MAX);
    while (sem_trywait(semaphore) == -1 && errno == EINTR)
        ;
    return error != EINTR;
}
