#include "watcher.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include "bell.h"
#include "futex.h"
#include "watch.h"

#define MOST_LOOPS 64u
#define WORDS_OF_BITS ((UF_MOST_WATCHED + 63) / 64)
#define ROUND_NS UINT64_C(1000000000)
#define ROUNDS_OF_A_NAME 10u /* a loop that waits for 65,536 flights looks every 6.6 seconds */
#define STACK_BYTES ((size_t)256 << 10)

_Static_assert(UF_MOST_WATCHED + 1 == UF_MOST_WORDS, "all words, and one to be called by");

/* Which of `lives`: a bit for each. */
struct selection {
    uint64_t bits[WORDS_OF_BITS];
};

struct loop {
    bool waits; /* else this place is free */
    unsigned char doorbell[UF_DOORBELL_BYTES];
    struct selection leaders;
    struct selection named; /* lately, see forget_the_unnamed */
};

/* All under `lock`. A life stays here when no loop waits for it any more: the leaders of a host are
 * mostly the same few threads, and the watcher need not be woken to watch one again. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct uf_watch lives[UF_MOST_WATCHED]; /* a place without a word is free */
static struct loop loops[MOST_LOOPS];
static bool is_running;
static bool is_used; /* in this round */
static uint64_t next_start_ns;
static _Atomic uint32_t calls; /* to the watcher: there are new lives to sleep on */

static bool selects(const struct selection *selection, uint32_t i)
{
    return selection->bits[i / 64] >> (i % 64) & 1;
}

static void put(struct selection *selection, uint32_t i, bool selected)
{
    uint64_t bit = UINT64_C(1) << (i % 64);
    selection->bits[i / 64] = (selection->bits[i / 64] & ~bit) | (selected ? bit : 0);
}

static bool is_empty(const struct selection *selection)
{
    uint64_t any = 0;
    for (uint32_t w = 0; w < WORDS_OF_BITS; w++)
        any |= selection->bits[w];
    return any == 0;
}

static bool is_over(uint32_t i)
{
    return lives[i].word && UF_LOAD(*lives[i].word) != lives[i].alive;
}

static void forget_life(uint32_t i)
{
    lives[i].word = NULL;
    for (uint32_t l = 0; l < MOST_LOOPS; l++) {
        put(&loops[l].leaders, i, false);
        put(&loops[l].named, i, false);
    }
}

static struct loop *find_loop(const unsigned char *doorbell)
{
    for (uint32_t l = 0; l < MOST_LOOPS; l++)
        if (loops[l].waits && memcmp(loops[l].doorbell, doorbell, UF_DOORBELL_BYTES) == 0)
            return &loops[l];
    return NULL;
}

static struct loop *find_or_add_loop(const unsigned char *doorbell)
{
    struct loop *loop = find_loop(doorbell);
    for (uint32_t l = 0; !loop && l < MOST_LOOPS; l++)
        if (!loops[l].waits) {
            loop = &loops[l];
            *loop = (struct loop){.waits = true};
            memcpy(loop->doorbell, doorbell, UF_DOORBELL_BYTES);
        }
    return loop;
}

/* By what its word holds, too: the former life of that word stays until its loops have been rung. */
static bool find_life(const struct uf_watch *life, uint32_t *found)
{
    for (uint32_t i = 0; i < UF_MOST_WATCHED; i++)
        if (lives[i].word == life->word && lives[i].alive == life->alive) {
            *found = i;
            return true;
        }
    return false;
}

/* In a free place if there is one: what nobody waits for now may soon be waited for again. */
static bool add_life(const struct uf_watch *life, uint32_t *added)
{
    struct selection awaited = {{0}};
    for (uint32_t l = 0; l < MOST_LOOPS; l++)
        for (uint32_t w = 0; loops[l].waits && w < WORDS_OF_BITS; w++)
            awaited.bits[w] |= loops[l].leaders.bits[w];
    uint32_t place = UF_MOST_WATCHED;
    for (uint32_t i = 0; i < UF_MOST_WATCHED; i++)
        if (!lives[i].word) {
            place = i;
            break;
        } else if (!selects(&awaited, i)) {
            place = i;
        }
    if (place == UF_MOST_WATCHED)
        return false;
    lives[place] = *life;
    *added = place;
    return true;
}

/* ---- the thread ------------------------------------------------------------------- */

static unsigned int list_words(struct uf_word words[UF_MOST_WORDS])
{
    unsigned int count = 0;
    words[count++] = uf_word_of(&calls, UF_LOAD(calls));
    for (uint32_t i = 0; i < UF_MOST_WATCHED; i++)
        if (lives[i].word)
            words[count++] = uf_word_of(lives[i].word, lives[i].alive);
    return count;
}

/* Forgets the lives that are over. With the lock, so that no child is forked meanwhile: it would
 * inherit a socket that was opened to ring, and never close it. */
static void tell_of_the_dead(void)
{
    bool concerned[MOST_LOOPS] = {false};
    for (uint32_t i = 0; i < UF_MOST_WATCHED; i++) {
        if (!is_over(i))
            continue;
        for (uint32_t l = 0; l < MOST_LOOPS; l++)
            concerned[l] |= loops[l].waits && selects(&loops[l].leaders, i);
        /* The kernel wakes one of those who watch a thread; the others have to look too. */
        uf_wake_sleepers(lives[i].word);
        forget_life(i);
    }
    for (uint32_t l = 0; l < MOST_LOOPS; l++)
        if (concerned[l])
            uf_ring_loop(loops[l].doorbell);
}

/* A loop that waits for a leader names it at each of its looks. For those that it has not named for
 * many rounds it waits no more; one that is gone names none. */
static void forget_the_unnamed(void)
{
    for (uint32_t l = 0; l < MOST_LOOPS; l++) {
        struct loop *loop = &loops[l];
        loop->leaders = loop->named;
        loop->named = (struct selection){{0}};
        loop->waits = loop->waits && !is_empty(&loop->leaders);
    }
}

static bool is_wanted(void)
{
    bool wanted = is_used;
    for (uint32_t l = 0; l < MOST_LOOPS; l++)
        wanted |= loops[l].waits;
    is_used = false;
    return wanted;
}

static void *watch(void *unused)
{
    struct uf_word words[UF_MOST_WORDS];
    uint64_t round_ends_ns = uf_now_ns() + ROUND_NS;
    uint32_t rounds = 0;
    bool goes_on = true;
    prctl(PR_SET_NAME, "uniflight-watch");
    pthread_mutex_lock(&lock);
    while (goes_on && uf_can_wait_for_words()) {
        unsigned int count = list_words(words);
        pthread_mutex_unlock(&lock);
        uf_wait_for_words(words, count, round_ends_ns);
        pthread_mutex_lock(&lock);
        tell_of_the_dead();
        if (uf_now_ns() < round_ends_ns)
            continue;
        round_ends_ns = uf_now_ns() + ROUND_NS;
        if (++rounds % ROUNDS_OF_A_NAME == 0)
            forget_the_unnamed();
        goes_on = is_wanted();
    }
    is_running = false;
    pthread_mutex_unlock(&lock);
    (void)unused;
    return NULL;
}

/* Signals are for other threads: one that is blocked here is not taken from them. Where there is no
 * thread to be had, it is tried again in the next round. */
static bool start(void)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t all, former;
    uint64_t now_ns = uf_now_ns();
    if (now_ns < next_start_ns || pthread_attr_init(&attributes) != 0)
        return false;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &former);
    is_running = pthread_create(&thread, &attributes, watch, NULL) == 0;
    pthread_sigmask(SIG_SETMASK, &former, NULL);
    pthread_attr_destroy(&attributes);
    if (!is_running)
        next_start_ns = now_ns + ROUND_NS;
    return is_running;
}

/* ---- for loops -------------------------------------------------------------------- */

bool uf_watcher_add(const struct uf_table *table, uint64_t owner, const unsigned char *doorbell)
{
    struct uf_watch life;
    uint32_t i;
    if (!uf_watch_arm(table, owner, &life))
        return false;
    pthread_mutex_lock(&lock);
    bool is_known = find_life(&life, &i);
    struct loop *loop = is_running || start() ? find_or_add_loop(doorbell) : NULL;
    bool added = loop && (is_known || add_life(&life, &i));
    if (added) {
        put(&loop->leaders, i, true);
        put(&loop->named, i, true);
        is_used = true;
    }
    bool calls_watcher = added && !is_known;
    if (calls_watcher)
        UF_ADD(calls, 1);
    pthread_mutex_unlock(&lock);
    if (calls_watcher)
        uf_wake_sleepers(&calls);
    return added;
}

void uf_watcher_forget_loop(const unsigned char *doorbell)
{
    pthread_mutex_lock(&lock);
    struct loop *loop = find_loop(doorbell);
    if (loop)
        loop->waits = false;
    pthread_mutex_unlock(&lock);
}

/* The watcher may sleep on a word that goes. The kernel does not mind, and what is there instead
 * next time is not what it expects. */
void uf_watcher_forget_memory(const void *base, size_t bytes)
{
    uintptr_t first = (uintptr_t)base;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < UF_MOST_WATCHED; i++)
        if ((uintptr_t)lives[i].word - first < bytes)
            forget_life(i);
    pthread_mutex_unlock(&lock);
}

/* ---- around a fork ---------------------------------------------------------------- */

void uf_watcher_before_fork(void)
{
    pthread_mutex_lock(&lock);
}

void uf_watcher_after_fork_in_parent(void)
{
    pthread_mutex_unlock(&lock);
}

void uf_watcher_after_fork_in_child(void)
{
    memset(lives, 0, sizeof lives);
    memset(loops, 0, sizeof loops);
    is_running = is_used = false;
    next_start_ns = 0;
    pthread_mutex_unlock(&lock);
}
