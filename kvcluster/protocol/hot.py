"""The hot half of the protocol: compiled where there was a compiler at installation, else pure Python.

Both twins have the same functions and pass the same tests. ``KVCLUSTER_PURE=1`` in the environment forces the pure one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvcluster.protocol._pure import (
        Fetch,
        Malformed,
        Reader,
        Reply,
        fills,
        group,
        leases,
        plain_key,
        plain_keys,
        reads,
        send_all,
        set_lines,
    )

    COMPILED: bool
else:
    from kvcluster.protocol._pure import Malformed

    try:
        if os.environ.get("KVCLUSTER_PURE") == "1":
            raise ImportError
        from kvcluster.protocol._native import (
            Fetch,
            Reader,
            Reply,
            fills,
            group,
            leases,
            plain_key,
            plain_keys,
            reads,
            send_all,
            set_lines,
        )

        COMPILED = True
    except ImportError:
        from kvcluster.protocol._pure import (
            Fetch,
            Reader,
            Reply,
            fills,
            group,
            leases,
            plain_key,
            plain_keys,
            reads,
            send_all,
            set_lines,
        )

        COMPILED = False

__all__ = [
    "COMPILED",
    "Fetch",
    "Malformed",
    "Reader",
    "Reply",
    "fills",
    "group",
    "leases",
    "plain_key",
    "plain_keys",
    "reads",
    "send_all",
    "set_lines",
]
