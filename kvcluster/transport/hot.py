"""Chooses the compiled fast path of an exchange where it was built, with the protocol's compiled half; else there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvcluster.protocol import hot as protocol

COMPILED = False

if TYPE_CHECKING or not protocol.COMPILED:
    from kvcluster.transport._pure import ConnectionFields, EndpointFields, fast_exchange, fast_scatter
else:
    try:
        from kvcluster.transport._native import ConnectionFields, EndpointFields, fast_exchange, fast_scatter

        COMPILED = True
    except (ImportError, ValueError):  # ValueError: it was built for another build of the protocol
        from kvcluster.transport._pure import ConnectionFields, EndpointFields, fast_exchange, fast_scatter

__all__ = ["COMPILED", "ConnectionFields", "EndpointFields", "fast_exchange", "fast_scatter"]
