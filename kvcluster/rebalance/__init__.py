"""Resizing a cluster: `Rebalance` moves its keys while it serves, `simulate` tells beforehand what a resize costs on a workload
of yours or a synthetic one."""

from __future__ import annotations

from kvcluster.rebalance.coordinator import Rebalance
from kvcluster.rebalance.reports import Difference, Flow, Plan, Progress, Report, Sample
from kvcluster.rebalance.running import Settings, Times

__all__ = ["Difference", "Flow", "Plan", "Progress", "Rebalance", "Report", "Sample", "Settings", "Times"]
