"""Where a value would come from, and why: what reading through decides, told instead of done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from kvcluster.cache.envelope import ENVELOPE, opened
from kvcluster.cache.flows import Flow
from kvcluster.cache.leases import Source, Stamps
from kvcluster.cache.shapes import UNTYPED
from kvcluster.errors import KvclusterError
from kvcluster.protocol import requests
from kvcluster.protocol.hot import Reply
from kvcluster.protocol.requests import Commands, is_placeholder

#: Where a value would come from: from this process's own memory; from its node, fresh or stale; or from the loader, because
#: another caller is loading it, it is stale, absent, outdated by a stamp, or unreadable, or its node cannot be asked.
Origin: TypeAlias = Literal["l1", "fresh", "stale", "loading", "expired", "absent", "outdated", "unreadable", "node down"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call would find at one moment; as a text, in one line.

    :ivar key: the key as its node stores it
    :ivar node: the address of the node that owns it
    :ivar origin: where the value would come from
    :ivar ttl: for how many seconds it is kept yet: in this process, fresh at its node, or stale at its node; None where there is
        none or it does not expire
    :ivar outdated: the stamps that are not those it was stored under, as nodes store them
    :ivar same_shape: whether it was stored with the fingerprint of the loader's shape; None where there is no value
    :ivar refreshing: whether somebody is loading it anew
    :ivar reason: why a call would load it, or have it refreshed; empty where it would not

    >>> from kvcluster import Cache
    >>> cache = Cache("shop", ttl="10m")
    >>> cache.connect("memory://explained")
    >>> double = cache.loader("double:{n}")(lambda n: 2 * n)
    >>> print(double.explain(21))
    shop:double:21 on memory:explained: absent, so it would be loaded
    """

    key: str
    node: str
    origin: Origin
    ttl: float | None = None
    outdated: tuple[str, ...] = ()
    same_shape: bool | None = None
    refreshing: bool = False
    reason: str = ""

    def __str__(self) -> str:
        parts = [f"{self.key} on {self.node}: {self.origin}"]
        if self.ttl is not None:
            parts.append(f"for {self.ttl:g} s more")
        if self.outdated:
            parts.append("stamps that differ: " + ", ".join(self.outdated))
        if self.same_shape is False:
            parts.append("stored with another shape")
        if self.reason:
            parts.append(f"so {self.reason}" if len(parts) == 1 else self.reason)
        return ", ".join(parts)


def explain(source: Source, wire: bytes, stamps: Stamps = ()) -> Flow[Explanation]:
    """Look at a key and the stamps that its value depends on, and change nothing."""
    address = source.planner.address(wire)
    key = wire.decode("utf-8", "backslashreplace")
    if source.near is not None and (left := source.near.left(wire)) is not None:
        return Explanation(key, address, "l1", left)
    token = requests.opaque()
    gets = [requests.meta_get(wire, b"v f c t O" + token), *[requests.meta_get(stamp, b"v O" + token) for stamp in stamps]]
    asking = Commands(b"".join(gets), len(gets), opaque=token)
    _, failures = yield source.exchange({address: asking})
    if failures:
        return Explanation(key, address, "node down", reason=_down(failures[address]))
    reply, *rest = asking.replies
    if reply.won:  # of a stale item, whose refill token a meta get takes
        rearm = Commands(requests.meta_delete(wire, b"I C%d" % reply.cas), 1)
        yield source.exchange({address: rearm})
    return _explained(source, Explanation(key, address, "absent", reason="it would be loaded"), reply, stamps, rest)


def _down(error: KvclusterError) -> str:
    return f"it would be loaded and not stored: {error}"


def _explained(source: Source, absent: Explanation, reply: Reply, stamps: Stamps, rest: list[Reply]) -> Explanation:
    key, node = absent.key, absent.node
    if reply.value is None:
        return absent
    if is_placeholder(reply):
        if not reply.taken:
            return absent
        left = float(reply.ttl) if reply.ttl >= 0 else None
        return Explanation(key, node, "loading", left, refreshing=True, reason="a call would wait for whoever is loading it")
    flags, data, under, fingerprint = reply.flags, reply.value, b"", UNTYPED
    same_shape: bool | None = None
    try:
        if flags & ENVELOPE:
            under, fingerprint, data = opened(data)
            flags -= ENVELOPE
        same_shape = fingerprint == source.shape.fingerprint
        readable = same_shape or source.shape.reads(fingerprint)
        if readable:
            source.codec.decode(data, flags)
    except Exception:  # as where it is read
        readable = False
    if not readable:
        return Explanation(key, node, "unreadable", same_shape=same_shape, reason="it would be loaded and replaced")
    there = [stamp.value or b"" for stamp in rest]
    if under != b"".join(there) or b"" in there:
        carried = [under[start : start + 8] for start in range(0, len(under), 8)]
        differ = [
            stamp.decode("utf-8", "backslashreplace")
            for number, (stamp, value) in enumerate(zip(stamps, there, strict=True))
            if not value or number >= len(carried) or carried[number] != value
        ]
        return Explanation(key, node, "outdated", outdated=tuple(differ), same_shape=same_shape, reason="it would be loaded")
    policy, ttl = source.policy, reply.ttl
    left = None if ttl < 0 else float(ttl)
    if not reply.stale and not 0 <= ttl <= policy.stale:
        fresh = None if left is None else left - policy.stale
        return Explanation(key, node, "fresh", fresh, same_shape=same_shape, refreshing=reply.taken)
    if policy.stale_while_revalidate and policy.servable(ttl):
        reason = "somebody is refreshing it" if reply.taken else "a call would have it refreshed"
        return Explanation(key, node, "stale", left, same_shape=same_shape, refreshing=reply.taken, reason=reason)
    reason = "a call would wait for whoever is loading it" if reply.taken else "it would be loaded"
    if policy.spare(ttl):
        reason += ", and the stale value served where that fails"
    return Explanation(key, node, "expired", left, same_shape=same_shape, refreshing=reply.taken, reason=reason)
