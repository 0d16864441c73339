"""What all tests share: the databases that they run on, which a run's header names, and how properties are searched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.databases import KINDS, Database, Servers, describe

# How long an example takes says more of the machine than of the code.
settings.register_profile("kvcluster", deadline=None)
settings.load_profile("kvcluster")


def pytest_report_header() -> str:
    return f"databases: {'; '.join(map(describe, KINDS))}"


@pytest.fixture(scope="session")
def database_servers() -> Iterator[Servers]:
    """The servers of this process's tests."""
    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, database_servers: Servers, tmp_path: Path) -> Iterator[Database]:
    """An empty database of each kind; of one by ``@pytest.mark.parametrize("database", ["mariadb"], indirect=True)``."""
    if (found := describe(request.param)).startswith("no "):
        pytest.skip(found)
    with database_servers.database(request.param, tmp_path) as database:
        yield database
