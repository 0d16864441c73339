"""The envelope of a value: its exact bytes, and that nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcluster.cache.envelope import ENVELOPE, bare, opened, sealed
from kvcluster.cache.shapes import UNTYPED
from kvcluster.codec import Undecodable
from kvcluster.errors import IllegalValue

STAMPS = st.lists(st.binary(min_size=8, max_size=8), max_size=5)
PRINTS = st.binary(min_size=4, max_size=4)


def test_its_bytes_are_part_of_the_format() -> None:
    assert sealed(b"xyz", [b"AAAAAAAA", b"BBBBBBBB"], b"ffff") == b"\x01\x02ffffAAAAAAAABBBBBBBBxyz"
    assert sealed(b"") == b"\x01\x00\x00\x00\x00\x00"
    assert ENVELOPE == 256


@given(st.binary(), STAMPS, PRINTS)
def test_what_is_sealed_is_what_is_opened(data: bytes, stamps: list[bytes], fingerprint: bytes) -> None:
    assert opened(sealed(data, stamps, fingerprint)) == (b"".join(stamps), fingerprint, data)
    assert bare(sealed(data, stamps, fingerprint), stamps, fingerprint) == data


@given(st.binary(), STAMPS, PRINTS, STAMPS, PRINTS)
def test_the_short_way_takes_nothing_that_the_long_one_does_not(
    data: bytes, stamps: list[bytes], fingerprint: bytes, now: list[bytes], ours: bytes
) -> None:
    if (stamps, fingerprint) != (now, ours):
        assert bare(sealed(data, stamps, fingerprint), now, ours) is None
    for number in range(len(stamps)):
        absent = [*stamps[:number], b"", *stamps[number + 1 :]]
        assert bare(sealed(data, stamps, fingerprint), absent, fingerprint) is None


@given(st.binary(max_size=30))
def test_any_bytes_are_opened_or_undecodable(data: bytes) -> None:
    try:
        assert sealed(opened(data).data) is not None
    except Undecodable:
        assert len(data) < 6 or data[0] != 1 or len(data) < 6 + 8 * data[1]


def test_it_holds_255_stamps() -> None:
    assert opened(sealed(b"x", [b"12345678"] * 255)).data == b"x"
    with pytest.raises(IllegalValue, match="255 stamps"):
        sealed(b"x", [b"12345678"] * 256)
    assert sealed(b"x")[2:6] == UNTYPED
