"""Chooses the compiled half of placement where it was built, else its pure twin. KVCLUSTER_PURE=1 asks for the twin."""

from __future__ import annotations

import os

COMPILED = False

if os.environ.get("KVCLUSTER_PURE") == "1":
    from kvcluster.placement._pure import fill_slots, slot_owners
else:
    try:
        from kvcluster.placement._native import fill_slots, slot_owners

        COMPILED = True
    except ImportError:
        from kvcluster.placement._pure import fill_slots, slot_owners

__all__ = ["COMPILED", "fill_slots", "slot_owners"]
