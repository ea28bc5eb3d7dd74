/* Keyed hash for choosing a group, and a fast sum that tells a damaged payload. */
#ifndef UF_DIGEST_H
#define UF_DIGEST_H

#include <stddef.h>
#include <stdint.h>

/* SipHash-1-3 (Aumasson and Bernstein; the variant that Python and Rust use for
 * their own tables): who does not know `key` cannot choose keys that collide. */
uint64_t uf_siphash(const uint8_t key[16], const void *data, size_t bytes);

/* Detects accidents, not adversaries: peers of one user trust each other, and the
 * sum has to keep up with memcpy for results of many megabytes. */
uint64_t uf_checksum(const void *data, size_t bytes);

#endif
