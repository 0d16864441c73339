"""What all clients of a cluster agree on: as a value, and as TOML."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvcluster.errors import ConfigurationError
from kvcluster.topology import DEFAULT_SLOTS, Document, Node

A, B, C = Node("a:1"), Node("b:1", weight=3), Node("c:1", id="left")

_addresses = st.from_regex(r"[a-z]{1,8}:[1-9]\d{0,3}", fullmatch=True) | st.sampled_from(["[::1]:5", "unix:/tmp/x", "memory:m"])
_nodes = st.lists(
    st.builds(Node, _addresses, st.integers(1, 100), st.none() | st.text(min_size=1, max_size=20)),
    min_size=1,
    max_size=5,
    unique_by=(lambda node: node.id, lambda node: node.address),
).map(tuple)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    phase = draw(st.sampled_from(["old", "prepare", "migrate", "drain", "new"]))
    return Document(
        draw(_nodes),
        draw(st.integers(1, (1 << 63) - 1)),
        phase,
        () if phase == "old" else draw(_nodes),
        "slots",
        1 << draw(st.integers(6, 20)),
        draw(st.none() | st.integers(0, (1 << 32) - 1)),
        draw(st.text(max_size=30)),
        draw(st.floats(0, 1e11)),
    )


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(documents())
def test_toml_keeps_all_of_it(document: Document) -> None:
    assert Document.from_toml(document.to_toml()) == document


def test_as_a_person_reads_it() -> None:
    document = Document((A, B), 7, "migrate", (A,), table_crc=5, owner="me", lease_until=12.5)
    assert document.to_toml() == (
        'format = 1\nepoch = 7\nphase = "migrate"\nplacement = "slots"\ntable_crc = 5\nowner = "me"\nlease_until = 12.5\n'
        '\n[[nodes]]\nid = "a:1"\naddress = "a:1"\nweight = 1\n'
        '\n[[nodes]]\nid = "b:1"\naddress = "b:1"\nweight = 3\n'
        '\n[[previous]]\nid = "a:1"\naddress = "a:1"\nweight = 1\n'
    )


def test_as_a_person_writes_it() -> None:
    text = 'placement = "slots"\n[[nodes]]\nid = "left"\naddress = "c:1"\nweight = 2\n[[nodes]]\naddress = "d"\n'
    document = Document.from_toml(text)
    assert document == Document((Node("c:1", 2, "left"), Node("d")))
    assert (document.epoch, document.phase, document.slots, document.table_crc) == (1, "old", DEFAULT_SLOTS, None)


def test_members_are_asked_by_address() -> None:
    moved = Node("d:1", id="left")  # another machine under the same id
    document = Document((A, moved), 2, "prepare", (C, A))
    assert document.members == (A, moved, C)
    assert document.former is not None
    assert document.former.nodes == (C, A)
    assert Document((A,)).former is None


def test_a_step_is_one_epoch() -> None:
    assert Document((A,)).step(phase="prepare", previous=(B,)) == Document((A,), 2, "prepare", (B,))


NODES = '\n[[nodes]]\naddress = "a:1"'


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"there: nodes must name at least one node, as \[\[nodes\]\]"),
        ("nodes = [", "there: is not TOML"),
        ("format = 2" + NODES, "there: has format 2, and this release of kvcluster reads 1 to 1"),
        ("format = true" + NODES, "there: has format True"),
        ("epoche = 2" + NODES, "there: unknown field 'epoche', known are nodes, epoch, phase"),
        (NODES + "\nwieght = 2", "there: nodes: unknown field 'wieght', known are id, address, weight"),
        ('[[nodes]]\nid = "a"', "there: nodes: each node needs an address"),
        ("nodes = 1", r"there: nodes must be written as \[\[nodes\]\]"),
        ('nodes = ["a:1"]', r"there: nodes must be written as \[\[nodes\]\]"),
        ("epoch = 0" + NODES, "there: epoch must be an integer from 1"),
        ("epoch = 1.5" + NODES, "there: epoch must be an integer from 1"),
        ('phase = "late"' + NODES, "there: phase must be one of old, prepare, migrate, drain, new"),
        ('phase = "drain"' + NODES, "there: previous must name the nodes before the resize"),
        (NODES + '\n[[previous]]\naddress = "b:1"', "there: previous must name .* and none in 'old'"),
        ("slots = 100" + NODES, "there: slots must be a power of two"),
        ("table_crc = -1" + NODES, "there: table_crc must be"),
        ("owner = 1" + NODES, "there: owner and placement must be text"),
        ("lease_until = -1" + NODES, "there: lease_until must be"),
        (NODES + NODES, "there: nodes must differ, but 'a:1' is the id of two"),
        (NODES + "\nweight = 0", "there: weight of node 'a:1' must be"),
        (NODES + "\nid = 3", "there: id of node 'a:1' must be"),
    ],
)
def test_what_cannot_be_used_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        Document.from_toml(text, "there")


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(st.sampled_from(["epoch", "phase", "slots", "table_crc", "owner", "placement"]), st.integers() | st.text()))
def test_no_field_can_break_it(values: dict[str, Any]) -> None:
    """Whatever stands in the fields: a document, or an error that says what is wrong with it."""
    try:
        document = Document((A,), **values)
    except ConfigurationError:
        return
    assert tomllib.loads(document.to_toml())["epoch"] == document.epoch
