"""Carrying out flows for a thread.

A hit, which is nearly every call, needs no generator: `read` asks once by itself, and begins a flow only on a miss.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from kvcluster.cache.flights import LOADING
from kvcluster.cache.flows import Flow, Join, Load, Sleep, read_missed
from kvcluster.cache.leases import UNASKED, Source
from kvcluster.client import Client

T = TypeVar("T")


def read(client: Client, source: Source, wire: bytes, load: Callable[[], Any]) -> Any:
    """Read one key through; see `flows.read_one`."""
    asked = source.clock()
    asking = source.asking(wire)
    failure = client.exchange(source.planner.address(wire), asking, source.planner.namespace)
    answer = asking.answers[0] if failure is None else UNASKED
    return answer.value if answer.found else drive(read_missed(source, wire, load, answer, asked), client)


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
                else:
                    result = client.run(need)
            except BaseException as error:
                need = flow.throw(error)
            else:
                need = flow.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def _load(need: Load) -> Any:
    token = LOADING.set(LOADING.get() | need.keys)
    try:
        return need.call()
    finally:
        LOADING.reset(token)
