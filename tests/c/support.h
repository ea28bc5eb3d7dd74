/* Tables in anonymous shared memory, and actors: processes or threads of their own that
 * do one operation at a time when told to, so that a test reads as one sequence of steps
 * although several parties take them. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <pthread.h>
#include <stdbool.h>

#include "../../shm/check.h"
#include "../../shm/crash.h"
#include "../../shm/flight.h"
#include "../../shm/repair.h"
#include "../../shm/wait.h"
#include "harness.h"

#define SECOND UINT64_C(1000000000)
#define MILLISECOND UINT64_C(1000000)

/* `limits.result_bytes` is 1 MiB. The memory stays until the process ends: robust locks
 * held by its threads must not be unmapped before. */
void table_create(struct uf_table *table, uint32_t flights, uint32_t waiters, uint32_t threads,
                  uint32_t inline_bytes);
void *shared_memory(size_t bytes);

struct uf_caller caller_of(uint64_t owner);
uint64_t claim(struct uf_table *table);
struct uf_key key_of(const char *text);
struct uf_result value_of(const char *text);
uint32_t group_of_key(const struct uf_table *table, const char *key);

/* Takes every group's lock (which repairs what needs it), sweeps, and walks. */
void reap_all(struct uf_table *table);
void check_all(struct uf_table *table);
/* After reap_all: no slot and no cell in use, nothing attached. */
void check_empty(struct uf_table *table);

enum act { ACT_BEGIN, ACT_WAIT, ACT_VIEW, ACT_FINISH, ACT_ABANDON, ACT_LEAVE, ACT_TAKEOVER,
           ACT_FORGET, ACT_REAP, ACT_CLAIM, ACT_RELEASE, ACT_ARM, ACT_LOCK_AND_STOP,
           ACT_LOCK_AND_DIE, ACT_EXIT };

struct order {
    enum act act;
    char key[32];
    char text[64];              /* FINISH: the value; empty for none */
    enum uf_payload kind;       /* FINISH */
    bool with_object;           /* FINISH: result.value, too */
    uint64_t timeout_ns;        /* WAIT */
    uint64_t lease_ns;          /* BEGIN, TAKEOVER */
    uint32_t max_takeovers;     /* BEGIN, TAKEOVER */
    bool timed_out;             /* LEAVE */
    enum uf_crash_point point;  /* ARM */
    int action;                 /* ARM: enum uf_crash_action */
    uint32_t group;             /* REAP, LOCK_AND_... */
};

struct answer {
    enum uf_status status;
    struct uf_flight flight;    /* after the operation */
    struct uf_remains remains;  /* FINISH, LEAVE; of the actor's address space */
    enum uf_payload kind;       /* VIEW */
    char text[64];              /* VIEW */
    bool sum_is_right;          /* VIEW */
    void *value;                /* VIEW */
    uint32_t followers, deaths; /* VIEW */
    uint64_t owner;             /* CLAIM */
    bool found;                 /* FORGET */
};

struct actor {
    pid_t pid;        /* 0: a thread */
    pthread_t thread;
    int fd;
    uint64_t owner;
};

/* Has two system calls fail in this process from here on, as a sandbox does. */
void forbid_calls(int error, unsigned int one, unsigned int other);

/* glibc counts sleepers in the second half of a sem_t. */
unsigned int sleepers_of(sem_t *semaphore);
/* Waits until a process, which sleeps on nothing else meanwhile, sleeps on the semaphore. */
void await_sleep_on(sem_t *semaphore, pid_t pid);

/* An actor has claimed a thread record, and takes part in one flight at a time. */
struct actor actor_process(struct uf_table *table);
struct actor actor_process_unclaimed(struct uf_table *table);
struct actor actor_thread(struct uf_table *table);

struct order order_of(enum act act, const char *key);
void tell(struct actor *actor, const struct order *order);
struct answer hear(struct actor *actor);
/* False if the actor died before it could answer. */
bool try_hear(struct actor *actor, struct answer *answer);

struct answer ask(struct actor *actor, enum act act, const char *key);
enum uf_status begin(struct actor *actor, const char *key);
enum uf_status finish(struct actor *actor, const char *text);
/* Waits, views, and leaves: the value's text. */
const char *fetch(struct actor *actor);
void tell_wait(struct actor *actor, uint64_t timeout_ns);
enum uf_status await(struct actor *actor);

void actor_exit(struct actor *actor); /* releases the record, ends, is reaped */
void actor_kill(struct actor *actor); /* SIGKILL, reaped */
void actor_reap(struct actor *actor); /* died by itself of SIGKILL */
void actor_await_stop(struct actor *actor);
void actor_continue(struct actor *actor);

#endif
