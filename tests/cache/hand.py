"""A driver that a test plays by hand: it sees the exact bytes a flow would send, and says what comes back."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from kvcluster.cache.flights import Flights, LoadTimes, Sightings
from kvcluster.cache.flows import Count, Detach, Each, Join, Load, Sleep
from kvcluster.cache.leases import Source
from kvcluster.cache.policy import Policy
from kvcluster.codec import StandardCodec
from kvcluster.errors import NodeUnreachable
from kvcluster.placement import placement
from kvcluster.plan import Plan
from kvcluster.planner import Planner
from kvcluster.protocol.hot import Reader
from kvcluster.stats.counters import Counters
from kvcluster.testing.clock import Clock
from kvcluster.topology import Node

_OPAQUE = re.compile(rb" O[0-9a-f]+(?=[ \r])")
POLICY = Policy(ttl=100, jitter=0, takeover=1.0)


def source(nodes: int = 1, policy: Policy = POLICY, **settings: Any) -> tuple[Source, Clock]:
    """A source over nodes that do not exist, and its clock."""
    clock = Clock(1000.0)
    planner = Planner(placement("slots", [Node(f"node{n}:1") for n in range(nodes)]), b"s:", "s", **settings)
    return Source(planner, policy, StandardCodec(), Flights(), LoadTimes(), clock, Sightings()), clock


class Hand:
    """One flow, and how far it has come.

    ``need`` is what it asks for now; once it has ended, ``result`` or ``error`` is what it ended with.
    """

    def __init__(self, flow: Any) -> None:
        self.flow = flow
        self.counters = Counters()
        self.need: Any = None
        self.beside: Hand
        self.each: list[bytes] = []
        self.result: Any = None
        self.error: BaseException | None = None
        self.ended = False
        self._step(lambda: next(flow))

    def _step(self, step: Callable[[], Any]) -> None:
        assert not self.ended
        try:
            self.need = step()
        except StopIteration as stop:
            self.ended, self.result, self.need = True, stop.value, None
        except BaseException as error:
            self.ended, self.error, self.need = True, error, None

    @property
    def sends(self) -> dict[str, bytes]:
        """The bytes to be sent now, by node, without the opaque tokens, which no two requests share."""
        assert isinstance(self.need, Plan), self.need
        return {address: _OPAQUE.sub(b"", request.payload) for address, request in self.need.requests.items()}

    @property
    def wire(self) -> bytes:
        """The bytes to be sent now, to one node."""
        (payload,) = self.sends.values()
        return payload

    def opened_before(self) -> float | None:
        (request,) = self.need.requests.values()
        return request.opened_before  # type: ignore[no-any-return]

    def receives(self, *replies: bytes | None) -> Hand:
        """Let the nodes answer, in the order of ``sends``; None: that node cannot be asked."""
        plan = self.need
        failures = {}
        for (address, request), data in zip(plan.requests.items(), replies, strict=True):
            if data is None:
                failures[address] = NodeUnreachable(address, "gone")
                request.fail(self.counters)
                continue
            reader = Reader()
            reader.begin(request)
            reader.buffer()[: len(data)] = data
            assert reader.received(len(data)), data
            assert not reader.excess, data
            request.settle(self.counters)
        self._step(lambda: self.flow.send(plan.finish(failures)))
        return self

    def loads(self) -> Hand:
        """Call the loader that the flow asks to be called."""
        assert isinstance(self.need, Load), self.need
        try:
            value = self.need.call()
        except BaseException as raised:
            error = raised
            self._step(lambda: self.flow.throw(error))
        else:
            self._step(lambda: self.flow.send(value))
        return self

    def loads_each(self, *answers: bytes) -> Hand:
        """Carry out, one after another, the flows that the flow asks for, each a load and an exchange with this answer."""
        assert isinstance(self.need, Each), self.need
        self.each = []
        for flow, answer in zip(self.need.flows, answers, strict=False):
            hand = Hand(flow)
            self.each.append(hand.loads().wire)
            hand.receives(answer)
            if hand.error is not None:
                self._step(partial(self.flow.throw, hand.error))
                return self
        self._step(lambda: self.flow.send(None))
        return self

    def detaches(self, begun: bool = True) -> Hand:
        """Begin the flow that is to be carried out beside this one, or refuse to; it is in ``beside`` then."""
        assert isinstance(self.need, Detach), self.need
        if begun:
            self.beside = Hand(self.need.flow)
        self._step(lambda: self.flow.send(begun))
        return self

    def queues(self) -> Hand:
        """Take the flow that is to be carried out beside this one, without beginning it yet."""
        assert isinstance(self.need, Detach), self.need
        self._step(lambda: self.flow.send(True))
        return self

    def counts(self, *names: str) -> Hand:
        """Count what the flow asks to be counted, which must be these, in this order."""
        for name in names:
            assert isinstance(self.need, Count), self.need
            assert self.need.name == name
            setattr(self.counters, name, getattr(self.counters, name) + 1)
            self._step(lambda: self.flow.send(None))
        return self

    def sleeps(self) -> Hand:
        """Go on after a pause."""
        assert isinstance(self.need, Sleep), self.need
        self._step(lambda: self.flow.send(None))
        return self

    def joins(self) -> Hand:
        """Go on after the flight that the flow waits for has landed."""
        assert isinstance(self.need, Join), self.need
        assert self.need.flight.landed.is_set()
        outcome = self.need.flight.outcome
        self._step(lambda: self.flow.send(outcome))
        return self

    def joins_in_vain(self) -> Hand:
        """Go on after the flight that the flow waits for has not landed in time."""
        assert isinstance(self.need, Join), self.need
        assert not self.need.flight.landed.is_set()
        self._step(lambda: self.flow.send(None))
        return self
