"""Every command means in every phase what it means without a resize."""

from tests.client.test_commands import *  # noqa: F403
