#include "bell.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static const char prefix[] = "uniflight-";

/* The socket that this process rings with, opened by the first ring of a loop and never closed: to
 * open and close one for each ring would cost as much as the ring. Its inode in the upper half, its
 * number + 1 in the lower; 0: none. A forked child may ring with its parent's. */
static _Atomic uint64_t kept;

/* What `kept` would be for that descriptor; 0 if it is no socket. */
static uint64_t identity(int fd)
{
    struct stat status;
    if (fstat(fd, &status) != 0 || !S_ISSOCK(status.st_mode))
        return 0;
    return (uint64_t)status.st_ino << 32 | ((uint32_t)fd + 1);
}

static int open_socket(void)
{
    return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
}

/* A program may close all its descriptors, as daemons do, and open its own under their numbers: so
 * the socket has to be the one that was opened here. It may go in the very next moment; then what is
 * sent is an empty datagram for a name, which a stranger's socket refuses or has no bytes of. */
static int kept_socket(void)
{
    uint64_t known = UF_LOAD(kept);
    int fd = (int)(uint32_t)known - 1;
    if (known != 0 && identity(fd) == known)
        return fd;
    fd = open_socket();
    if (fd < 0)
        return -1;
    if (atomic_compare_exchange_strong(&kept, &known, identity(fd)))
        return fd;
    close(fd); /* another thread was faster: `known` is its socket now */
    return (int)(uint32_t)known - 1;
}

/* Whether it failed because a queue is full: the loop's, or this socket's. */
static bool ring_with(int fd, const unsigned char *doorbell)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1; /* abstract: a NUL first */
    memcpy(address.sun_path + 1, prefix, sizeof prefix - 1);
    memcpy(address.sun_path + sizeof prefix, doorbell, UF_DOORBELL_BYTES);
    length += (socklen_t)(sizeof prefix - 1 + UF_DOORBELL_BYTES);
    return sendto(fd, "", 0, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&address, length) < 0 &&
           errno == EAGAIN;
}

void uf_ring_loop(const unsigned char *doorbell)
{
    /* ECONNREFUSED: the loop has gone. EAGAIN: it is ringing already, or other loops, which do not
     * run, have not taken what this socket sent them, which counts against it until they do. */
    if (ring_with(kept_socket(), doorbell)) {
        int fresh = open_socket();
        ring_with(fresh, doorbell);
        if (fresh >= 0)
            close(fresh);
    }
}

void uf_ring(struct uf_cell *cell)
{
    if (UF_LOAD(cell->bell) == UF_BELL_SOCKET)
        uf_ring_loop(cell->doorbell);
    else
        sem_post(&cell->semaphore);
}

void uf_take_rings(int bell)
{
    char byte;
    for (int most = 1024; most > 0 && recv(bell, &byte, 1, MSG_DONTWAIT) >= 0; most--)
        ;
}
