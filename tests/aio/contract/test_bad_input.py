"""The sync client's tests of that name, for an AsyncClient."""

from tests.client.test_bad_input import *  # noqa: F403
