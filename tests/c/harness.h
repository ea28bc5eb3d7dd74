/* A test program in forty lines: each test runs in a process of its own under a
 * watchdog, so that neither a hang nor a crash nor a held lock reaches the next one. */
#ifndef HARNESS_H
#define HARNESS_H

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define WATCHDOG_SECONDS 300 /* a starved test is no hung one */

/* Ends the test (a process of its own) and, through PR_SET_PDEATHSIG, its children. */
#define CHECK(condition)                                                                  \
    ((condition) ? (void)0                                                                \
                 : (fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition), \
                    _exit(1)))

#define CHECK_INT(got, expected)                                                          \
    do {                                                                                  \
        long long got_ = (long long)(got), expected_ = (long long)(expected);             \
        if (got_ != expected_) {                                                          \
            fprintf(stderr, "%s:%d: %s is %lld, expected %lld\n", __FILE__, __LINE__,     \
                    #got, got_, expected_);                                               \
            _exit(1);                                                                     \
        }                                                                                 \
    } while (0)

static int tests_passed, tests_failed;

static inline void die_with_parent(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) /* it died before the call above */
        _exit(1);
}

static inline void run_test(const char *name, void (*test)(void *), void *argument)
{
    pid_t parent = getpid();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        die_with_parent(parent);
        alarm(WATCHDOG_SECONDS);
        test(argument);
        if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD) {
            fprintf(stderr, "%s: a child was not reaped\n", name);
            _exit(1);
        }
        exit(0); /* not _exit: the leak checker looks now */
    }
    int status = -1;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    bool passed = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    tests_passed += passed;
    tests_failed += !passed;
    if (!passed)
        printf("FAILED %s (%s %d)\n", name, WIFSIGNALED(status) ? "signal" : "exit",
               WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    else if (getenv("VERBOSE"))
        printf("ok     %s\n", name);
}

#define RUN(test) run_test(#test, test, NULL)

static inline int report(void)
{
    printf("%d passed, %d failed\n", tests_passed, tests_failed);
    return tests_failed != 0;
}

#endif
