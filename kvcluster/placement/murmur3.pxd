# cython: language_level=3
"""The hash of every placement that is ours to choose, for compiled code; equal to mmh3's ``mmh3_32_uintdigest``."""

from libc.stdint cimport uint8_t, uint32_t


cdef extern from *:
    """
    #include <string.h>
    static inline uint32_t little_endian(const uint8_t *at) {
        uint32_t block;
        memcpy(&block, at, 4);
    #if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        block = __builtin_bswap32(block);
    #endif
        return block;
    }
    """
    uint32_t little_endian(const uint8_t *at) noexcept nogil


cdef inline uint32_t fmix32(uint32_t h) noexcept nogil:
    h ^= h >> 16
    h *= 0x85EBCA6BU
    h ^= h >> 13
    h *= 0xC2B2AE35U
    h ^= h >> 16
    return h


cdef inline uint32_t rotated(uint32_t h, int bits) noexcept nogil:
    return h << bits | h >> (32 - bits)


cdef inline uint32_t mixed(uint32_t block) noexcept nogil:
    return rotated(block * <uint32_t>0xCC9E2D51U, 15) * <uint32_t>0x1B873593U


cdef inline uint32_t murmur3(const uint8_t *key, Py_ssize_t size) noexcept nogil:
    """MurmurHash3_x86_32 with seed 0, by Austin Appleby (public domain). Blocks are little-endian on every machine."""
    cdef uint32_t h = 0
    cdef uint32_t block
    cdef Py_ssize_t at = 0
    while size - at >= 4:
        h = rotated(h ^ mixed(little_endian(key + at)), 13) * 5 + <uint32_t>0xE6546B64U
        at += 4
    if at < size:
        block = key[at]
        if size - at > 1:
            block |= <uint32_t>key[at + 1] << 8
        if size - at > 2:
            block |= <uint32_t>key[at + 2] << 16
        h ^= mixed(block)
    return fmix32(h ^ <uint32_t>size)
