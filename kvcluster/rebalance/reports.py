"""What a resize says of itself: frozen values, for a screen, a log or JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kvcluster.sources import Sighting
from kvcluster.topology import Document, Phase


def asked(outcomes: Mapping[str, int]) -> int:
    """The keys that a run asked the nodes for: not those that an earlier run had done, nor those left behind for want of memory.

    >>> asked({"stored": 5, "newer": 1, "journalled": 100, "cold": 7})
    6
    """
    return sum(count for name, count in outcomes.items() if name not in ("journalled", "cold"))


@dataclass(frozen=True, slots=True)
class Flow:
    """What goes from one node to another: addresses, slots, and by the dump of the source keys and bytes (headers included)."""

    source: str
    target: str
    slots: int
    keys: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a resize would do; nothing was changed to find out.

    :ivar present: the document in the source
    :ivar wanted: the document it would become
    :ivar flows: what moves between which nodes
    :ivar shares_before: the share of the key space (0 to 1) that each address owns
    :ivar shares_after: the same afterwards
    :ivar keys_held: keys on the present nodes, those that stay included
    :ivar seconds: how long copying takes at the given rates
    :ivar hit_rate: hits per get of all nodes since they started, 0 to 1; None before the first get. A bound from above: nodes count
        as a hit each look of a client at the epoch, too, and each lease on a key that they do not have
    :ivar hit_rate_cold: what it would fall to if the keys were not copied, from above alike
    :ivar clients: who follows the document
    :ivar lagging: those of them that do not follow it any more: `run` refuses while there are any
    :ivar unreachable: addresses that do not answer. Those that leave are given up; any other keeps `run` from starting
    :ivar undumpable: sources that cannot be dumped, whose keys are moved by reads alone, and present nodes that gain keys and
        cannot be dumped, which are cleared by the ttls of what they hold
    :ivar occupied: new nodes that are not empty; `run` refuses them unless told to flush them
    """

    present: Document
    wanted: Document
    flows: tuple[Flow, ...]
    shares_before: Mapping[str, float]
    shares_after: Mapping[str, float]
    keys_held: int
    seconds: float
    hit_rate: float | None
    hit_rate_cold: float | None
    clients: tuple[Sighting, ...]
    lagging: tuple[Sighting, ...]
    unreachable: tuple[str, ...]
    undumpable: tuple[str, ...]
    occupied: tuple[str, ...]

    @property
    def keys(self) -> int:
        """Keys that move."""
        return sum(flow.keys for flow in self.flows)

    @property
    def bytes(self) -> int:
        """Bytes that move, headers included."""
        return sum(flow.bytes for flow in self.flows)

    @property
    def slots(self) -> int:
        """Slots that move."""
        return sum(flow.slots for flow in self.flows)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a resize has come.

    :ivar doing: the step, in a few words
    :ivar source: the node that keys are copied from now; empty where none are
    :ivar keys: keys dealt with so far, stored and skipped
    :ivar keys_total: keys to be dealt with; an estimate until the last source is dumped
    :ivar bytes: of values read so far
    :ivar seconds: since `run` began
    :ivar rate: keys a second that nodes were asked for, lately
    :ivar seconds_left: until all keys are copied at this rate; None where nobody knows
    :ivar throttle: part of the given rate that the sources bear, 0 to 1
    :ivar outcomes: keys by what became of them, see `kvcluster.rebalance.copy`
    :ivar hit_rate_sources: hits per get of the old owners lately, 0 to 1, without the copy's own; None without gets. A bound from
        above, as in `Plan`
    :ivar hit_rate_targets: the same of the new owners
    """

    epoch: int
    phase: Phase
    doing: str
    source: str = ""
    keys: int = 0
    keys_total: int = 0
    bytes: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    seconds_left: float | None = None
    throttle: float = 1.0
    outcomes: Mapping[str, int] = field(default_factory=dict)
    hit_rate_sources: float | None = None
    hit_rate_targets: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A key of the sample whose copy is not what its source has: ``what`` is ``value``, ``flags`` or ``ttl``."""

    key: bytes
    source: str
    target: str
    what: str


@dataclass(frozen=True, slots=True)
class Sample:
    """Keys that were compared on both sides.

    :ivar compared: keys that both sides had
    :ivar missing: keys that only the source has
    :ivar changed: keys that the source has no longer, or in a state that is not copied
    """

    compared: int = 0
    missing: int = 0
    changed: int = 0
    differences: tuple[Difference, ...] = ()

    @property
    def coverage(self) -> float:
        """The share of the sampled keys that the source still has, whose copy is there too; 1 where there are none."""
        held = self.compared + self.missing
        return self.compared / held if held else 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a resize did, or what `verify` found.

    :ivar document: the document as it is now
    :ivar finished: whether the resize is done, False where it was stopped, be it before it began; for `verify`, whether none is
        under way
    :ivar outcomes: keys by what became of them, see `kvcluster.rebalance.copy`; ``cold`` are those left behind for want of memory
    :ivar dumped: keys that the dumps listed as moving
    :ivar bytes: of values read
    :ivar seconds: it took in all
    :ivar copying: seconds of them that keys were copied
    :ivar sample: what a comparison of both sides found
    :ivar swept: keys deleted from nodes that do not own them any more
    :ivar leftovers: keys by the address of a node that holds them without owning them; `verify` counts them
    :ivar given_up: nodes that left without having been asked, because they are dead
    :ivar notes: what somebody should know, in sentences
    """

    document: Document
    finished: bool = False
    outcomes: Mapping[str, int] = field(default_factory=dict)
    dumped: int = 0
    bytes: int = 0
    seconds: float = 0.0
    copying: float = 0.0
    sample: Sample = field(default_factory=Sample)
    swept: int = 0
    leftovers: Mapping[str, int] = field(default_factory=dict)
    given_up: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rate(self) -> float | None:
        """Keys a second that nodes were asked for while keys were copied; None where none were."""
        return asked(self.outcomes) / self.copying if self.copying else None

    @property
    def coverage(self) -> float:
        """Keys stored, skipped or expired per key dumped, 0 to 1; 1 where none were. Keys that were refused or too cold are not."""
        left = self.outcomes.get("refused", 0) + self.outcomes.get("cold", 0)
        return 1 - left / self.dumped if self.dumped else 1.0
