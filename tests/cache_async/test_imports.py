"""What is imported only where it is used, and what is said where it is missing."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_GREENLET = """
import sys

class NoGreenlet:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "greenlet":
            raise ImportError("no greenlet")

sys.meta_path.insert(0, NoGreenlet())

import kvcluster
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool
from tests.cache.shop import Base, User

engine = create_engine("sqlite://", poolclass=StaticPool)
Base.metadata.create_all(engine)
sessions = sessionmaker(engine)
cache = kvcluster.Cache("shop", ttl="1m")
cache.connect("memory://")
cache.bind(sessions)
users = cache.repository(User, sessions)
"""


def python(program: str) -> str:
    """What a program prints, in a process of its own, with warnings as errors."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_a_cache_of_functions_needs_neither_asyncio_nor_sqlalchemy() -> None:
    imported = python("""
import sys, kvcluster
cache = kvcluster.Cache("shop", ttl="1m")
cache.connect("memory://")
print(cache.loader("row:{id}")(lambda id: id)(42))
print(*sys.modules)
""")
    value, modules = imported.splitlines()
    assert value == "42"
    assert not {"asyncio", "sqlalchemy", "greenlet"} & set(modules.split())


def test_a_sync_repository_needs_no_greenlet() -> None:
    assert python(
        WITHOUT_GREENLET
        + """
with sessions.begin() as session:
    session.add(User(id=1, name="Kim"))
print(users.get(1).name)
with sessions.begin() as session:
    session.get_one(User, 1).name = "Lee"
print(users.get(1).name, cache.client.statistics().total.deletes)
print("greenlet" in sys.modules)
"""
    ).split() == ["Kim", "Lee", "2", "False"]


def test_an_async_repository_says_what_it_needs() -> None:
    assert "sqlalchemy[asyncio]" in python(
        WITHOUT_GREENLET
        + """
class Factory:
    kw = {}
try:
    cache.repository(User, Factory())
except ImportError as error:
    print(type(error).__name__, error)
"""
    )
