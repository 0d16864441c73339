"""For tests, ours and users': real nodes, a proxy with faults, a clock, and the pytest plugin with its fixtures."""
