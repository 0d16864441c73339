# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The slot table, compiled: the plain loops of which `_pure` is the twin. Same functions, same results.

Nothing here relies on the GIL: the functions touch no state but their arguments, which no other thread may change meanwhile.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc


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


cdef uint32_t murmur3(const uint8_t *key, Py_ssize_t size) noexcept nogil:
    """MurmurHash3_x86_32 with seed 0, by Austin Appleby (public domain). Blocks are little-endian on every machine."""
    cdef uint32_t h = 0
    cdef uint32_t block
    cdef Py_ssize_t at = 0
    while size - at >= 4:
        block = key[at] | <uint32_t>key[at + 1] << 8 | <uint32_t>key[at + 2] << 16 | <uint32_t>key[at + 3] << 24
        h = rotated(h ^ mixed(block), 13) * 5 + <uint32_t>0xE6546B64U
        at += 4
    if at < size:
        block = key[at]
        if size - at > 1:
            block |= <uint32_t>key[at + 1] << 8
        if size - at > 2:
            block |= <uint32_t>key[at + 2] << 16
        h ^= mixed(block)
    return fmix32(h ^ <uint32_t>size)


cdef Py_ssize_t owner_of(uint32_t slot, const uint32_t *seeds, const uint32_t *weights, Py_ssize_t nodes) noexcept nogil:
    cdef int64_t best = -1
    cdef int64_t score
    cdef Py_ssize_t owner = 0
    cdef Py_ssize_t node
    cdef uint32_t base, draw
    for node in range(nodes):
        base = fmix32(slot * <uint32_t>0x9E3779B1U + seeds[node])
        for draw in range(weights[node]):
            score = fmix32(base + draw * <uint32_t>0x85EBCA77U)
            if score > best:
                best = score
                owner = node
    return owner


def fill_slots(seeds, weights, Py_ssize_t slots):
    """The owner of each slot; see `kvcluster.placement._pure.fill_slots`."""
    cdef Py_ssize_t nodes = len(seeds)
    cdef Py_ssize_t width = 1 if nodes <= 256 else 2
    cdef Py_ssize_t node, slot, owner
    if len(weights) != nodes:
        raise ValueError("seeds and weights must be equally many")
    packed = bytearray(width * slots)
    cdef uint8_t *out = packed
    cdef uint32_t *numbers = <uint32_t *>malloc(2 * (nodes + 1) * sizeof(uint32_t))
    if numbers == NULL:
        raise MemoryError()
    cdef uint32_t *draws = numbers + nodes
    try:
        for node in range(nodes):
            numbers[node] = seeds[node]
            draws[node] = weights[node]
        with nogil:
            for slot in range(slots):
                owner = owner_of(<uint32_t>slot, numbers, draws, nodes)
                out[width * slot] = owner & 0xFF
                if width == 2:
                    out[width * slot + 1] = owner >> 8
    finally:
        free(numbers)
    return bytes(packed)


def slot_owners(keys, tuple table not None, int shift):
    """The owner of each key's slot; see `kvcluster.placement._pure.slot_owners`."""
    cdef list owners = []
    cdef Py_ssize_t slots = len(table)
    cdef uint32_t slot
    if not 0 <= shift < 32:
        raise ValueError(f"a 32-bit hash cannot be shifted by {shift}")
    for key in keys:
        if not PyBytes_Check(key):
            raise TypeError(f"a key must be bytes, not {type(key).__name__}")
        slot = murmur3(<const uint8_t *>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) >> shift
        if slot >= slots:
            raise IndexError(f"slot {slot} of {slots}")
        owners.append(table[slot])
    return owners
