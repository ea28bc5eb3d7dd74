#include "digest.h"

#include <string.h>

static inline uint64_t rotate_left(uint64_t x, int bits)
{
    return (x << bits) | (x >> (64 - bits));
}

static inline uint64_t read_word(const unsigned char *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

static inline uint64_t read_tail(const unsigned char *p, size_t bytes)
{
    uint64_t word = 0;
    memcpy(&word, p, bytes);
    return word;
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = rotate_left(v[1], 13) ^ v[0];
    v[0] = rotate_left(v[0], 32);
    v[2] += v[3];
    v[3] = rotate_left(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = rotate_left(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = rotate_left(v[1], 17) ^ v[2];
    v[2] = rotate_left(v[2], 32);
}

uint64_t uf_siphash(const uint8_t key[16], const void *data, size_t bytes)
{
    const unsigned char *p = data;
    uint64_t k0 = read_word(key), k1 = read_word(key + 8);
    uint64_t v[4] = {
        k0 ^ UINT64_C(0x736f6d6570736575), k1 ^ UINT64_C(0x646f72616e646f6d),
        k0 ^ UINT64_C(0x6c7967656e657261), k1 ^ UINT64_C(0x7465646279746573)};
    size_t left = bytes;
    for (; left >= 8; left -= 8, p += 8) {
        uint64_t word = read_word(p);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    uint64_t last = ((uint64_t)bytes << 56) | read_tail(p, left);
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint64_t uf_checksum(const void *data, size_t bytes)
{
    /* Four lanes, so that the multiplications overlap; odd multipliers, so that each
     * step is a bijection of its lane and no single damaged word can go unseen. */
    static const uint64_t factor = UINT64_C(0x9e3779b97f4a7c15);
    const unsigned char *p = data;
    uint64_t lane[4] = {1, 2, 3, 4};
    size_t left = bytes;
    /* Not a loop over the lanes: gcc 12 would keep them in memory, which takes 2.4 times as long. */
    for (; left >= 32; left -= 32, p += 32) {
        lane[0] = rotate_left((lane[0] ^ read_word(p)) * factor, 29);
        lane[1] = rotate_left((lane[1] ^ read_word(p + 8)) * factor, 29);
        lane[2] = rotate_left((lane[2] ^ read_word(p + 16)) * factor, 29);
        lane[3] = rotate_left((lane[3] ^ read_word(p + 24)) * factor, 29);
    }
    for (; left >= 8; left -= 8, p += 8)
        lane[0] = rotate_left((lane[0] ^ read_word(p)) * factor, 29);
    lane[1] = (lane[1] ^ read_tail(p, left)) * factor;
    uint64_t sum = bytes;
    for (int i = 0; i < 4; i++)
        sum = rotate_left((sum ^ lane[i]) * factor, 31);
    return sum;
}
