"""Every command means what the sync client's command of that name means."""

from tests.client.test_commands import *  # noqa: F403
