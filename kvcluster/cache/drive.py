"""Carrying out flows for a thread.

A hit, which is nearly every call, needs no generator: `read` asks once by itself, and begins a flow only where that does not
settle it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

from kvcluster.cache.background import WORKERS
from kvcluster.cache.flights import LOADING
from kvcluster.cache.flows import Count, Detach, Each, Flow, Join, Load, Sleep, read_on
from kvcluster.cache.leases import UNASKED, FirstGet, Source, Stamps
from kvcluster.cache.near import ABSENT
from kvcluster.client import Client

T = TypeVar("T")


def read(client: Client, source: Source, wire: bytes, load: Callable[[], Any], stamps: Stamps = ()) -> Any:
    """Read one key through; see `flows.read_one`."""
    near = source.near
    if near is not None and (held := near.get(wire, source.codec.decode)) is not ABSENT:
        return held
    asked = source.clock()
    asking = FirstGet(source, wire, stamps)
    failure = client.exchange(source.planner.address(wire), asking, source.planner)
    if failure is None and asking.hit:
        return asking.value
    answer = asking.answers[0] if failure is None else UNASKED
    return drive(read_on(source, wire, load, answer, asked, stamps), client)


def drive(flow: Flow[T], client: Client) -> T:
    """Do what a flow asks for until it returns, and return its result."""
    try:
        need = next(flow)
        while True:
            result: Any = None
            try:
                if isinstance(need, Load):
                    result = _load(need)
                elif isinstance(need, Sleep):
                    time.sleep(need.seconds)
                elif isinstance(need, Join):
                    need.flight.landed.wait(need.seconds)
                    result = need.flight.outcome
                elif isinstance(need, Detach):
                    result = _detach(need, client)
                elif isinstance(need, Each):
                    for each in need.flows:
                        drive(each, client)
                elif isinstance(need, Count):
                    count(need, client)
                else:
                    result = client.run(need)
            except BaseException as error:
                need = flow.throw(error)
            else:
                need = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def count(need: Count, client: Any) -> None:
    """Count what a flow says has happened."""
    planner = need.source.planner
    client.count(planner.address(need.wire), planner.namespace, **{need.name: 1})


def _load(need: Load) -> Any:
    token = LOADING.set(LOADING.get() + need.keys)
    try:
        return need.call()
    finally:
        LOADING.reset(token)


def _detach(need: Detach, client: Client) -> bool:
    """Carry out a flow in another thread; what runs there cannot be given up.

    A load that is part of such a load runs where it is: with all threads waiting for others, none would be left.
    """
    if need.awaited and WORKERS.inside:
        return False
    context = copy_context()
    if not need.awaited:
        context.run(LOADING.set, ())
    return WORKERS.begin(lambda: context.run(drive, need.flow, client), need.awaited)
