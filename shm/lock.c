#include "lock.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "crash.h"
#include "repair.h"

static int wait_for_lock(pthread_mutex_t *lock)
{
    struct timespec deadline = uf_timespec_of(uf_now_ns() + UF_LOCK_WAIT_NS);
    return pthread_mutex_clocklock(lock, CLOCK_MONOTONIC, &deadline);
}

enum uf_status uf_group_lock(struct uf_table *table, uint32_t group, enum uf_patience patience)
{
    pthread_mutex_t *lock = &uf_group(table, group)->lock;
    int error = pthread_mutex_trylock(lock);
    if (error == EBUSY) {
        if (patience == UF_TRY)
            return UF_BUSY;
        error = wait_for_lock(lock);
    }
    if (error == ETIMEDOUT)
        return UF_LOCK_TIMEOUT;
    if (error == EOWNERDEAD) {
        /* If this thread dies in here too, the next one starts the repair again. */
        uf_group_repair_locked(table, group);
        UF_CRASH_POINT(REPAIR_POSTED);
        error = pthread_mutex_consistent(lock);
    }
    if (error != 0)
        return uf_damage(table);
    if (uf_is_damaged(table)) {
        pthread_mutex_unlock(lock);
        return UF_DAMAGED;
    }
    return UF_OK;
}

void uf_group_unlock(struct uf_table *table, uint32_t group)
{
#ifdef UF_DEBUG
    struct uf_fault fault;
    if (!uf_is_damaged(table) && !uf_group_check_locked(table, group, &fault)) {
        fprintf(stderr, "uniflight-mp: group %u slot %u: %s\n", group, fault.slot, fault.what);
        abort();
    }
#endif
    pthread_mutex_unlock(&uf_group(table, group)->lock);
}

/* Field 22 of /proc/self/stat, counted after the command's last ')', which may itself
 * contain spaces and parentheses. 0 if it cannot be read: only people look at it. */
static uint64_t process_start_time(void)
{
    char text[1024];
    FILE *file = fopen("/proc/self/stat", "re");
    if (!file)
        return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = '\0';
    char *field = strrchr(text, ')');
    for (int i = 2; field && i < 22; i++)
        field = strchr(field + 1, ' ');
    return field ? strtoull(field + 1, NULL, 10) : 0;
}

/* Takes a life lock nobody holds, whatever became of its last holder. */
static bool take_life(struct uf_thread *thread)
{
    int error = pthread_mutex_trylock(&thread->life);
    if (error == EOWNERDEAD)
        error = pthread_mutex_consistent(&thread->life);
    return error == 0;
}

enum uf_status uf_thread_claim(struct uf_table *table, uint64_t *owner)
{
    uint64_t start_time = process_start_time();
    for (uint32_t i = 0; i < table->threads; i++) {
        struct uf_thread *thread = &table->thread[i];
        if (!take_life(thread))
            continue;
        UF_CRASH_POINT(CLAIM_LOCKED);
        /* First of all: until this store, owner words of the former holder look alive
         * (its generation, and a life lock that is held). That only delays. */
        uint64_t generation = (UF_LOAD(thread->generation) + 1) & (UINT64_MAX >> UF_OWNER_BITS);
        UF_STORE(thread->generation, generation);
        UF_CRASH_POINT(CLAIM_GENERATION);
        UF_STORE(thread->pid, table->pid);
        UF_STORE(thread->tid, (uint32_t)gettid());
        UF_STORE(thread->start_time, start_time);
        *owner = generation << UF_OWNER_BITS | (i + 1);
        return UF_OK;
    }
    return UF_NO_THREAD;
}

void uf_thread_release(struct uf_table *table, uint64_t owner)
{
    struct uf_thread *thread = uf_thread_of(table, owner);
    if (!thread)
        return;
    UF_STORE(thread->pid, 0); /* for those who only read: nobody is here */
    pthread_mutex_unlock(&thread->life);
}

void uf_threads_reap(struct uf_table *table)
{
    for (uint32_t i = 0; i < table->threads; i++) {
        struct uf_thread *thread = &table->thread[i];
        if (UF_LOAD(thread->pid) == 0 || !take_life(thread))
            continue;
        UF_STORE(thread->pid, 0);
        pthread_mutex_unlock(&thread->life);
    }
}

struct uf_thread *uf_thread_of(const struct uf_table *table, uint64_t owner)
{
    uint64_t record = owner & ((UINT64_C(1) << UF_OWNER_BITS) - 1);
    return record >= 1 && record <= table->threads ? &table->thread[record - 1] : NULL;
}

/* The kernel id of the thread that holds a mutex, 0 for none: what libc and the kernel agree on
 * for robust mutexes (robust-futex-ABI.txt of the Linux documentation). */
static uint32_t holder_of(const pthread_mutex_t *mutex)
{
    return (uint32_t)__atomic_load_n(&mutex->__data.__lock, __ATOMIC_ACQUIRE) & FUTEX_TID_MASK;
}

bool uf_is_on_record(const struct uf_table *table, uint64_t owner)
{
    const struct uf_thread *thread = uf_thread_of(table, owner);
    return thread && UF_LOAD(thread->generation) == owner >> UF_OWNER_BITS &&
           holder_of(&thread->life) == UF_LOAD(thread->tid);
}

bool uf_is_alive(const struct uf_table *table, uint64_t owner)
{
    struct uf_thread *thread = uf_thread_of(table, owner);
    if (!thread || UF_LOAD(thread->generation) != owner >> UF_OWNER_BITS)
        return false;
    int error = pthread_mutex_trylock(&thread->life);
    if (error == EBUSY)
        /* Held: by the owner; or, after its death, by somebody who asks as we do, or by a new
         * holder that has not written its generation yet. Those could be stopped there, and
         * the dead would look alive for as long; but they are not the thread on record. */
        return UF_LOAD(thread->generation) == owner >> UF_OWNER_BITS &&
               holder_of(&thread->life) == UF_LOAD(thread->tid);
    if (error == EOWNERDEAD)
        error = pthread_mutex_consistent(&thread->life);
    if (error == 0)
        pthread_mutex_unlock(&thread->life);
    return false;
}
