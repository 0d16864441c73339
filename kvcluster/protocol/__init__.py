"""Bytes to meaning and back, without I/O: what is sent (`requests`), and what comes is read (`hot`, a compiled and a pure twin)."""
