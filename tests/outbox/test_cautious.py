"""A database that refuses statements which look careless."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, text

from kvcluster import Client
from kvcluster.cache.outbox import Message, Outbox
from kvcluster.cache.worker import Worker
from tests.databases import Database
from tests.outbox.conftest import count


@pytest.mark.parametrize("database", ["mariadb"], indirect=True)
def test_done_rows_are_deleted_where_scans_are_refused(database: Database, client: Client) -> None:
    engine = database.engine()

    @event.listens_for(engine, "connect")
    def _(connection: Any, record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION sql_safe_updates=1")

    outbox = Outbox(delay=0.05)
    with engine.begin() as connection:
        outbox.create(connection)
    with engine.begin() as connection:
        ids = [id for _ in range(20) for id in outbox.write(connection, Message((b"a",)))]
    outbox.done(engine, ids[:10])
    assert outbox.flush()
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM kvcluster_outbox WHERE id > 0")) == 10
    Worker(client, engine, outbox, age=0).drain()
    assert count(database.engine(), outbox) == 0
    engine.dispose()
