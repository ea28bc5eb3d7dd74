/* Extra segments as files: written, read or mapped whole, by one call each.
 *
 * In C, because a descriptor must not be lost: where one is a Python number, a signal handler can
 * raise before anybody has it, and an audit hook in Python lets it do so within any call. */
#ifndef UF_EXTRA_H
#define UF_EXTRA_H

#include <stddef.h>

/* Makes the file, of mode 0600, and writes it: 0, or an errno. EEXIST if there is one; after any
 * other error the file is the caller's to remove, if it was made. */
int uf_extra_write(const char *path, const void *data, size_t bytes);

/* Reads the file: 0, or an errno; EILSEQ if it does not have so many bytes. */
int uf_extra_read(const char *path, void *data, size_t bytes);

/* Maps it instead, read-only. */
int uf_extra_map(const char *path, size_t bytes, void **data);

#endif
