#include "watch.h"

#include <errno.h>
#include <linux/futex.h>

#include "futex.h"

/* glibc's sem_t on 64-bit machines, since 2.21: sem_post adds one to `value` and wakes somebody
 * who sleeps on it, if there are any `sleepers`. A sleeper that is killed stays counted, which
 * costs its cell's posters a system call until the cell is used again. */
struct semaphore_words {
    _Atomic uint32_t value;
    _Atomic uint32_t sleepers;
};
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "order of the halves of a sem_t");
_Static_assert(sizeof(sem_t) >= sizeof(struct semaphore_words), "halves of a sem_t");

bool uf_watch_arm(const struct uf_table *table, uint64_t owner, struct uf_watch *watch)
{
    struct uf_thread *thread = uf_thread_of(table, owner);
    if (!uf_can_wait_for_words() || !thread ||
        UF_LOAD(thread->generation) != owner >> UF_OWNER_BITS)
        return false;
    watch->word = (_Atomic uint32_t *)&thread->life.__data.__lock;
    uint32_t seen = UF_LOAD(*watch->word);
    if ((seen & FUTEX_TID_MASK) != UF_LOAD(thread->tid))
        return false;
    /* As a thread does that is going to wait for the lock: without this bit the kernel only marks
     * the word when the holder ends, and wakes nobody (robust-futex-ABI.txt). */
    watch->alive = seen | FUTEX_WAITERS;
    return seen == watch->alive ||
           atomic_compare_exchange_strong(watch->word, &seen, watch->alive);
}

bool uf_watch_sleep(const struct uf_watch *watch, sem_t *semaphore, uint64_t until_ns)
{
    struct semaphore_words *words = (struct semaphore_words *)semaphore;
    const struct uf_word both[] = {uf_word_of(&words->value, 0),
                                   uf_word_of(watch->word, watch->alive)};
    atomic_fetch_add(&words->sleepers, 1);
    int error = uf_wait_for_words(both, 2, until_ns);
    atomic_fetch_sub(&words->sleepers, 1);
    /* The kernel wakes one of those who watch a thread; the others have to look too. */
    if (UF_LOAD(*watch->word) != watch->alive)
        uf_wake_sleepers(watch->word);
    while (sem_trywait(semaphore) == -1 && errno == EINTR)
        ;
    return error != EINTR;
}
