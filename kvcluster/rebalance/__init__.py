"""Resizing a cluster: `simulate` tells beforehand what a resize costs, on a workload of yours or a synthetic one."""
