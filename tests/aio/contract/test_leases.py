"""The sync client's tests of that name, for an AsyncClient."""

from tests.client.test_leases import *  # noqa: F403
