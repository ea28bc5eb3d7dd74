/* The keyed hash against two independent sources, and what the checksum promises. */
#include "support.h"

#include "../../shm/digest.h"

static uint64_t rotated(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

/* SipHash-c-d written a byte at a time, straight from the paper. */
static uint64_t sip(int c, int d, const uint8_t key[16], const uint8_t *data, size_t bytes)
{
    uint64_t k[2] = {0, 0}, v0, v1, v2, v3;
    size_t padded = bytes / 8 * 8 + 8;
    for (int i = 0; i < 16; i++)
        k[i / 8] |= (uint64_t)key[i] << (i % 8 * 8);
    v0 = k[0] ^ UINT64_C(0x736f6d6570736575);
    v1 = k[1] ^ UINT64_C(0x646f72616e646f6d);
    v2 = k[0] ^ UINT64_C(0x6c7967656e657261);
    v3 = k[1] ^ UINT64_C(0x7465646279746573);
    for (size_t at = 0; at <= padded; at += 8) {
        uint64_t m = 0;
        for (size_t i = 0; at < padded && i < 8; i++) {
            size_t p = at + i;
            uint8_t byte = p < bytes ? data[p] : p == padded - 1 ? (uint8_t)bytes : 0;
            m |= (uint64_t)byte << (8 * i);
        }
        if (at == padded)
            v2 ^= 0xff;
        else
            v3 ^= m;
        for (int round = 0; round < (at == padded ? d : c); round++) {
            v0 += v1, v1 = rotated(v1, 13), v1 ^= v0, v0 = rotated(v0, 32);
            v2 += v3, v3 = rotated(v3, 16), v3 ^= v2;
            v0 += v3, v3 = rotated(v3, 21), v3 ^= v0;
            v2 += v1, v1 = rotated(v1, 17), v1 ^= v2, v2 = rotated(v2, 32);
        }
        if (at < padded)
            v0 ^= m;
    }
    return v0 ^ v1 ^ v2 ^ v3;
}

static void counting(uint8_t *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = (uint8_t)i;
}

static void the_reference_of_this_test_agrees_with_the_paper(void *unused)
{
    uint8_t key[16], data[15];
    counting(key, sizeof key);
    counting(data, sizeof data);
    CHECK(sip(2, 4, key, data, sizeof data) == UINT64_C(0xa129ca6149be45e5));
    (void)unused;
}

static void the_hash_is_siphash_1_3_at_every_length_and_alignment(void *unused)
{
    uint8_t key[16], data[264];
    counting(data, sizeof data);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 16; i++)
            key[i] = (uint8_t)(round * 89 + i * 31);
        for (size_t bytes = 0; bytes <= 256; bytes++)
            for (size_t offset = 0; offset < 8; offset++)
                CHECK(uf_siphash(key, data + offset, bytes) ==
                      sip(1, 3, key, data + offset, bytes));
    }
    (void)unused;
}

/* hash(bytes(range(n))) of CPython 3.11 with PYTHONHASHSEED=0, whose key is zero. */
static void the_hash_is_the_one_cpython_gives_to_bytes(void *unused)
{
    static const struct {
        size_t bytes;
        uint64_t hash;
    } expected[] = {
        {1, UINT64_C(0x68a914128e01e473)},  {7, UINT64_C(0x2f098ab0c751325a)},
        {8, UINT64_C(0xead411e67ebe2eea)},  {9, UINT64_C(0x75927f9d95124362)},
        {15, UINT64_C(0xf30eb725bb91c9ea)}, {16, UINT64_C(0x8972188433a5c5b7)},
        {63, UINT64_C(0x385d3e39e5f37359)},
    };
    const uint8_t key[16] = {0};
    uint8_t data[64];
    counting(data, sizeof data);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        CHECK(uf_siphash(key, data, expected[i].bytes) == expected[i].hash);
    (void)unused;
}

static void the_checksum_sees_every_single_bit_flip(void *unused)
{
    static const size_t lengths[] = {1, 7, 8, 9, 31, 32, 33, 63, 64, 100, 256, 4096};
    static uint8_t data[4096];
    counting(data, sizeof data);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        uint64_t sum = uf_checksum(data, lengths[i]);
        for (size_t bit = 0; bit < lengths[i] * 8; bit++) {
            data[bit / 8] ^= (uint8_t)(1 << bit % 8);
            CHECK(uf_checksum(data, lengths[i]) != sum);
            data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
    }
    (void)unused;
}

static void the_checksum_sees_missing_bytes_and_swapped_words(void *unused)
{
    static uint8_t data[256], swapped[256];
    CHECK(uf_checksum(data, 100) != uf_checksum(data, 99)); /* zeros: length counts */
    CHECK(uf_checksum(data, 1) != uf_checksum(data, 0));
    counting(data, sizeof data);
    uint64_t sum = uf_checksum(data, sizeof data);
    for (size_t a = 0; a < 32; a++)
        for (size_t b = a + 1; b < 32; b++) {
            memcpy(swapped, data, sizeof data);
            memcpy(swapped + a * 8, data + b * 8, 8);
            memcpy(swapped + b * 8, data + a * 8, 8);
            CHECK(uf_checksum(swapped, sizeof swapped) != sum);
        }
    (void)unused;
}

static void the_checksum_does_not_depend_on_alignment(void *unused)
{
    static uint8_t data[300], moved[300];
    counting(data, sizeof data);
    for (size_t offset = 1; offset < 16; offset++) {
        memcpy(moved + offset, data, 256);
        CHECK(uf_checksum(moved + offset, 256) == uf_checksum(data, 256));
    }
    (void)unused;
}

int main(void)
{
    RUN(the_reference_of_this_test_agrees_with_the_paper);
    RUN(the_hash_is_siphash_1_3_at_every_length_and_alignment);
    RUN(the_hash_is_the_one_cpython_gives_to_bytes);
    RUN(the_checksum_sees_every_single_bit_flip);
    RUN(the_checksum_sees_missing_bytes_and_swapped_words);
    RUN(the_checksum_does_not_depend_on_alignment);
    return report();
}
