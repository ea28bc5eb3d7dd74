/* An event loop, as far as it can be rung. */
#ifndef LOOP_H
#define LOOP_H

#include <poll.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "../../shm/bell.h"
#include "harness.h"

struct loop {
    int fd;
    unsigned char doorbell[UF_DOORBELL_BYTES];
};

static inline struct loop loop_of(unsigned char number)
{
    struct loop loop = {.fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0)};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    static const char prefix[] = "uniflight-";
    pid_t pid = getpid();
    memcpy(loop.doorbell, &pid, sizeof pid);
    loop.doorbell[sizeof pid] = number;
    memcpy(address.sun_path + 1, prefix, sizeof prefix - 1);
    memcpy(address.sun_path + sizeof prefix, loop.doorbell, UF_DOORBELL_BYTES);
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + sizeof prefix + UF_DOORBELL_BYTES;
    CHECK(loop.fd >= 0 && bind(loop.fd, (struct sockaddr *)&address, length) == 0);
    return loop;
}

static inline bool is_rung_within(const struct loop *loop, int milliseconds)
{
    struct pollfd ready = {.fd = loop->fd, .events = POLLIN};
    return poll(&ready, 1, milliseconds) == 1;
}

static inline bool is_rung(const struct loop *loop)
{
    bool rung = is_rung_within(loop, 30000);
    uf_take_rings(loop->fd);
    return rung;
}

#endif
