"""Faces of kvcluster for other libraries: each small, for the logic stays below."""
