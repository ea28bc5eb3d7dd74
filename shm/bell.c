#include "bell.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char prefix[] = "uniflight-";

/* A socket for one batch of rings, not one for good: a number kept across calls can by then
 * be somebody else's, in a process that closes all its descriptors. */
static int ringing_socket(struct uf_bells *bells)
{
    if (bells->socket == 0)
        bells->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0) + 1;
    return bells->socket - 1;
}

void uf_ring_loop(struct uf_bells *bells, const unsigned char *doorbell)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1; /* abstract: a NUL first */
    int fd = ringing_socket(bells);
    if (fd < 0)
        return;
    memcpy(address.sun_path + 1, prefix, sizeof prefix - 1);
    memcpy(address.sun_path + sizeof prefix, doorbell, UF_DOORBELL_BYTES);
    length += (socklen_t)(sizeof prefix - 1 + UF_DOORBELL_BYTES);
    /* EAGAIN: its queue is full, so it is ringing already. ECONNREFUSED: it has gone. */
    (void)!sendto(fd, "", 0, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&address, length);
}

void uf_ring(struct uf_bells *bells, struct uf_cell *cell)
{
    if (UF_LOAD(cell->bell) == UF_BELL_SOCKET)
        uf_ring_loop(bells, cell->doorbell);
    else
        sem_post(&cell->semaphore);
}

void uf_bells_close(struct uf_bells *bells)
{
    if (bells->socket > 0)
        close(bells->socket - 1);
    bells->socket = 0;
}

void uf_take_rings(int bell)
{
    char byte;
    for (int most = 1024; most > 0 && recv(bell, &byte, 1, MSG_DONTWAIT) >= 0; most--)
        ;
}
