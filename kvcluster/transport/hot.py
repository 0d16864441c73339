"""Chooses the compiled fast path of an exchange where it was built, else none. KVCLUSTER_PURE=1 asks for none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ.get("KVCLUSTER_PURE") == "1":
    from kvcluster.transport._pure import ConnectionFields, EndpointFields, fast_exchange, fast_scatter
else:
    try:
        from kvcluster.transport._native import ConnectionFields, EndpointFields, fast_exchange, fast_scatter
    except ImportError:
        from kvcluster.transport._pure import ConnectionFields, EndpointFields, fast_exchange, fast_scatter

__all__ = ["ConnectionFields", "EndpointFields", "fast_exchange", "fast_scatter"]
