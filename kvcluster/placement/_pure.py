"""The slot table in plain Python: one long integer serves as a vector of all slots.

Each slot has a lane of 64 bits. Its 32-bit value sits in the lower half; the upper half is room for a product or a comparison and
is masked off again afterwards. Every step of the fill is then a handful of operations on long integers, which Python does in C,
instead of a loop over the slots. `_native` is the compiled twin: same function, same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import pack

from mmh3 import mmh3_32_uintdigest as hash32

MASK = 0xFFFFFFFF
SLOT_STEP = 0x9E3779B1
DRAW_STEP = 0x85EBCA77


def fill_slots(seeds: Sequence[int], weights: Sequence[int], slots: int) -> bytes:
    """The owner of each slot, as an index into ``seeds``: one byte each, or two (little-endian) for more than 256 nodes.

    Node i draws ``weights[i]`` scores in every slot s, fmix32(fmix32(s * SLOT_STEP + seeds[i]) + j * DRAW_STEP) for each j below
    its weight, all modulo 2^32. The highest score owns the slot; a tie goes to the lower index.
    """
    ones = _lanes([1] * slots)
    low = ones * MASK
    carry = ones << 32
    starts = _lanes([slot * SLOT_STEP & MASK for slot in range(slots)])
    best = owners = 0
    for index, (seed, weight) in enumerate(zip(seeds, weights, strict=True)):
        base = _fmix32(starts + ones * seed & low, low)
        for draw in range(weight):
            score = _fmix32(base + ones * (draw * DRAW_STEP & MASK) & low, low)
            # 2^32 + score - best - 1 reaches 2^32 just where score > best, and never borrows from the next lane.
            won = ((carry + score - best - ones >> 32) & ones) * MASK
            best ^= (best ^ score) & won
            owners ^= (owners ^ ones * index) & won
    return _pack(owners, slots, width=1 if len(seeds) <= 256 else 2)


def slot_owners(keys: Iterable[bytes], table: bytes | tuple[int, ...], shift: int) -> list[int]:
    """The owner of each key's slot: what ``table`` says for the top bits of its murmur3 hash.

    :param shift: by how many bits the hash is shifted right, 0 to 31
    """
    return [table[hash32(key) >> shift] for key in keys]


def _lanes(values: Sequence[int]) -> int:
    return int.from_bytes(pack(f"<{len(values)}Q", *values), "little")


def _fmix32(lanes: int, low: int) -> int:
    """murmur3's finalizer on every lane. ``low`` has the lower half of each lane set: a shift to the right brings in bits of the
    lane above, and a product fills the upper half."""
    lanes ^= lanes >> 16 & low
    lanes = lanes * 0x85EBCA6B & low
    lanes ^= lanes >> 13 & low
    lanes = lanes * 0xC2B2AE35 & low
    return lanes ^ lanes >> 16 & low


def _pack(lanes: int, slots: int, width: int) -> bytes:
    """The lowest ``width`` bytes of every lane."""
    wide = lanes.to_bytes(8 * slots, "little")
    packed = bytearray(width * slots)
    for byte in range(width):
        packed[byte::width] = wide[byte::8]
    return bytes(packed)
