#include "extra.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* write, not mmap: a full tmpfs is an error here, and would be a SIGBUS there. */
static int transfer(int fd, char *data, size_t bytes, bool writes)
{
    while (bytes > 0) {
        ssize_t done = writes ? write(fd, data, bytes) : read(fd, data, bytes);
        if (done == 0)
            return EILSEQ; /* cut off since it was opened */
        if (done < 0 && errno != EINTR)
            return errno;
        if (done > 0) {
            data += done;
            bytes -= (size_t)done;
        }
    }
    return 0;
}

static int open_to_read(const char *path, size_t bytes, int *fd)
{
    struct stat status;
    *fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (*fd < 0)
        return errno;
    int error = fstat(*fd, &status) != 0 ? errno : (size_t)status.st_size != bytes ? EILSEQ : 0;
    if (error != 0)
        close(*fd);
    return error;
}

int uf_extra_write(const char *path, const void *data, size_t bytes)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    int error = fchmod(fd, 0600) != 0 ? errno : 0; /* whatever the umask took away */
    if (error == 0)
        error = transfer(fd, (char *)data, bytes, true);
    close(fd);
    return error;
}

int uf_extra_read(const char *path, void *data, size_t bytes)
{
    int fd, error = open_to_read(path, bytes, &fd);
    if (error != 0)
        return error;
    error = transfer(fd, data, bytes, false);
    close(fd);
    return error;
}

int uf_extra_map(const char *path, size_t bytes, void **data)
{
    int fd, error = open_to_read(path, bytes, &fd);
    if (error != 0)
        return error;
    *data = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    error = *data == MAP_FAILED ? errno : 0;
    close(fd);
    return error;
}
