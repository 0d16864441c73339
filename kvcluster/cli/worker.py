"""``kvcluster worker``: carries out what is left in an outbox until it is told to end. It logs what changes."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from kvcluster.cache.outbox import Outbox, cause
from kvcluster.cache.worker import AGE, Worker
from kvcluster.client import Client
from kvcluster.errors import ConfigurationError, KvclusterError

log = logging.getLogger("kvcluster")


def engine_of(url: str) -> Engine:
    """The database that a URL names.

    :raises ConfigurationError: saying what is wrong with it, but nothing of what it holds
    """
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):  # which may quote it, with its password
        raise ConfigurationError("--database is not a URL such as mysql+pymysql://user:password@host/name") from None
    try:
        engine = create_engine(parsed)
    except (SQLAlchemyError, ImportError) as error:
        raise ConfigurationError(f"--database cannot be used: {cause(error)}") from None
    if engine.dialect.is_async:
        raise ConfigurationError(f"--database names {engine.driver}, a driver for asyncio; the worker takes one for threads")
    return engine


def work(client: Client, engine: Engine, table: str, once: bool) -> int:
    """Drain an outbox, once or until a signal; the exit code.

    :raises KvclusterError: where the database cannot be asked, if it is to be asked once
    """
    worker = Worker(client, engine, Outbox(table))
    try:
        if once:
            lag = worker.drain()
            print(f"{worker.statistics().done} rows carried out, {lag}")
            return 1 if lag.oldest > AGE else 0
        with logged(), until_signal() as stop:
            nodes = ", ".join(node.address for node in client.topology.nodes)
            log.info("worker: table %s in %s, nodes %s", table, engine.url.render_as_string(), nodes)
            worker.run(stop)
            log.info("worker: ended, %s", worker.statistics().lag)
        return 0
    except SQLAlchemyError as error:
        raise KvclusterError(f"database {engine.url.render_as_string()} cannot be asked: {cause(error)}") from None
    finally:
        client.close()
        engine.dispose()


@contextmanager
def logged() -> Iterator[None]:
    """Show the library's log on standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


@contextmanager
def until_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set. A second one ends the process at once, as if nobody listened."""
    stop = threading.Event()
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore()

    def restore() -> None:
        for each, handler in before.items():
            signal.signal(each, handler)

    for each in before:
        signal.signal(each, handle)
    try:
        yield stop
    finally:
        restore()
