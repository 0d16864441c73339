"""`Loader`, `Repository` and `Query` and their asyncio halves are written by hand twice; this is what holds them equal."""

from __future__ import annotations

import inspect

import pytest

from kvcluster.cache.aio import AsyncLoader
from kvcluster.cache.aio_repository import AsyncRepository
from kvcluster.cache.loader import Loader
from kvcluster.cache.query import AsyncQuery, Query
from kvcluster.cache.repository import Repository

TWINS = [(Loader, AsyncLoader), (Repository, AsyncRepository), (Query, AsyncQuery)]
CALLS = {
    Loader: {"__call__", "uncached", "get_many", "list", "bulk", "invalidate", "refresh", "explain"},
    Repository: {"__init__", "get", "get_many", "list", "invalidate", "refresh", "explain", "save", "delete"},
    Query: {"__call__", "ids", "invalidate", "refresh"},
}
PAIRS = [(sync, other, name) for sync, other in TWINS for name in sorted(CALLS[sync])]

# What only asyncio has to say.
ONLY_ASYNC = (", else at the same time", " Once begun, it is not undone by a cancellation.")
ASYNC_NAMES = (
    ("AsyncSession", "Session"),
    ("async_sessionmaker", "sessionmaker"),
    ("Awaitable[Mapping[Any, R]]", "Mapping[Any, R]"),
)


@pytest.mark.parametrize(("sync", "other"), TWINS)
def test_both_define_the_same_calls(sync: type, other: type) -> None:
    def calls(of: type) -> set[str]:
        return {name for name in vars(of) if inspect.isfunction(vars(of)[name]) and (name[0] != "_" or name.endswith("__"))}

    assert calls(sync) == calls(other) == CALLS[sync]
    assert sync.__base__ is other.__base__


@pytest.mark.parametrize(("sync", "other", "name"), PAIRS)
def test_signatures_are_the_same(sync: type, other: type, name: str) -> None:
    signature = str(inspect.signature(getattr(other, name)))
    for theirs, ours in ASYNC_NAMES:
        signature = signature.replace(theirs, ours)
    assert signature == str(inspect.signature(getattr(sync, name)))


@pytest.mark.parametrize(("sync", "other", "name"), PAIRS)
def test_the_one_is_awaited_and_the_other_is_not(sync: type, other: type, name: str) -> None:
    assert not inspect.iscoroutinefunction(getattr(sync, name))
    assert inspect.iscoroutinefunction(getattr(other, name)) is (name not in ("__init__", "bulk"))


@pytest.mark.parametrize(("sync", "other", "name"), [pair for pair in PAIRS if pair[2] != "bulk"])
def test_docstrings_are_the_same(sync: type, other: type, name: str) -> None:
    text = " ".join((getattr(other, name).__doc__ or "").split())
    for only in ONLY_ASYNC:
        text = text.replace(only, "")
    assert text == " ".join((getattr(sync, name).__doc__ or "").split())


def test_the_docstrings_of_what_differs_refer_to_the_other() -> None:
    for sync, other in [*TWINS, (Loader.bulk, AsyncLoader.bulk)]:
        assert f"`{sync.__qualname__}`" in (other.__doc__ or "")
