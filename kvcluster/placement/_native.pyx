# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""The slot table, compiled: the plain loops of which `_pure` is the twin. Same functions, same results.

Nothing here relies on the GIL: the functions touch no state but their arguments, which no other thread may change meanwhile.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from kvcluster.placement.murmur3 cimport fmix32, murmur3


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


def slot_owners(keys, table not None, int shift):
    """The owner of each key's slot; see `kvcluster.placement._pure.slot_owners`."""
    cdef list owners = []
    cdef bytes narrow = table if type(table) is bytes else None
    cdef tuple wide = None if narrow is not None else table
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
        if wide is None:
            owners.append(<uint8_t>PyBytes_AS_STRING(narrow)[slot])
        else:
            owners.append(wide[slot])
    return owners
