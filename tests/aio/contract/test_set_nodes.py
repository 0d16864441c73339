"""The sync client's tests of that name, for an AsyncClient."""

from tests.client.test_set_nodes import *  # noqa: F403
