"""Bytes to nodes and back under deadlines.

`connection` is one socket, `pool` a node's connections for threads, `aio` a node's connection for an event loop. `state` is what a
client knows of a node besides, `health` decides when it is left alone, `exchange` carries one plan to several nodes at once.
"""
