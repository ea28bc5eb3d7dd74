/* The socket that a process rings its peers' loops with. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "loop.h"

enum { MOST = 1000 };

static bool rings(const struct loop *loop)
{
    uf_ring_loop(loop->doorbell);
    return is_rung_within(loop, 0) && is_rung(loop);
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) != -1;
}

static int descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < MOST; fd++)
        count += is_open(fd);
    return count;
}

static void close_all_after(int last)
{
    for (int fd = last + 1; fd < MOST; fd++)
        close(fd);
}

static void one_socket_is_opened_and_rings_for_good(void *unused)
{
    struct loop first = loop_of(1), second = loop_of(2);
    int before = descriptors();
    for (int i = 0; i < 100; i++)
        CHECK(rings(&first) && rings(&second));
    CHECK_INT(descriptors(), before + 1);
    close(first.fd);
    uf_ring_loop(first.doorbell); /* a loop that has gone */
    CHECK(rings(&second));
    (void)unused;
}

static void a_forked_child_rings_too(void *unused)
{
    struct loop loop = loop_of(1);
    CHECK(rings(&loop));
    int before = descriptors(), status = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(rings(&loop) && descriptors() == before ? 0 : 1);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(rings(&loop));
    (void)unused;
}

/* As a daemon does, which then gets the old numbers for its own. */
static void a_socket_that_the_program_closed_is_replaced(void *unused)
{
    struct loop loop = loop_of(1);
    for (int i = 0; i < 3; i++) {
        CHECK(rings(&loop));
        close_all_after(loop.fd);
        CHECK(rings(&loop));
    }
    (void)unused;
}

static void strangers_get_no_ring_and_keep_their_descriptors(void *unused)
{
    struct loop loop = loop_of(1);
    CHECK(rings(&loop));
    close_all_after(loop.fd);
    int pairs[50][2]; /* one has the number, and any ring would come out at its other end */
    for (int i = 0; i < 50; i++)
        CHECK(socketpair(AF_UNIX, i % 2 ? SOCK_DGRAM : SOCK_SEQPACKET, 0, pairs[i]) == 0);
    CHECK(rings(&loop) && rings(&loop));
    for (int i = 0; i < 50; i++)
        for (int end = 0; end < 2; end++) {
            struct pollfd ready = {.fd = pairs[i][end], .events = POLLIN};
            CHECK(is_open(pairs[i][end]) && poll(&ready, 1, 0) == 0);
        }
    (void)unused;
}

/* What nobody takes counts against the socket that sent it. */
static void loops_that_do_not_run_take_no_ring_from_others(void *unused)
{
    struct loop loop = loop_of(0);
    for (unsigned char i = 1; i < 200; i++) {
        struct loop stuck = loop_of(i);
        for (int j = 0; j < 20; j++)
            uf_ring_loop(stuck.doorbell);
        CHECK(rings(&loop));
    }
    (void)unused;
}

static void without_a_descriptor_nobody_is_rung_and_nothing_breaks(void *unused)
{
    struct loop loop = loop_of(1);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = MOST;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    int taken = -1;
    for (int fd = 0; fd >= 0; fd = dup(loop.fd))
        taken = fd;
    uf_ring_loop(loop.doorbell);
    CHECK(!is_rung_within(&loop, 0));
    close(taken);
    CHECK(rings(&loop));
    close_all_after(loop.fd); /* the leak checker needs some */
    (void)unused;
}

static pthread_barrier_t together;

static void *ring_together(void *doorbell)
{
    pthread_barrier_wait(&together);
    uf_ring_loop(doorbell);
    return NULL;
}

static void threads_that_ring_first_at_once_open_one_socket(void *unused)
{
    struct loop loop = loop_of(1);
    close_all_after(loop.fd);
    int before = descriptors();
    CHECK(pthread_barrier_init(&together, NULL, 4) == 0);
    for (int round = 0; round < 200; round++) {
        pthread_t threads[4];
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL, ring_together, loop.doorbell) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK_INT(descriptors(), before + 1);
        CHECK(is_rung(&loop) && rings(&loop));
        close_all_after(loop.fd);
    }
    (void)unused;
}

int main(void)
{
    RUN(threads_that_ring_first_at_once_open_one_socket);
    RUN(one_socket_is_opened_and_rings_for_good);
    RUN(a_forked_child_rings_too);
    RUN(a_socket_that_the_program_closed_is_replaced);
    RUN(strangers_get_no_ring_and_keep_their_descriptors);
    RUN(loops_that_do_not_run_take_no_ring_from_others);
    RUN(without_a_descriptor_nobody_is_rung_and_nothing_breaks);
    return report();
}
