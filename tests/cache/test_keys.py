"""Keys: no two calls with different arguments share one, and a deploy does not change them."""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvcluster.cache.keys import Template, checked_namespace
from kvcluster.errors import CallerError, ConfigurationError, IllegalKey


class Colour(enum.Enum):
    RED = "r:ed"
    BLUE = "b%3Alue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 22


def text_like_other_types() -> st.SearchStrategy[str]:
    """Strings that read like the other types do in a key, or like pieces of two fields."""
    return st.one_of(
        st.integers().map(str),
        st.uuids().map(lambda each: each.hex),
        st.uuids().map(str),
        st.dates().map(lambda day: day.isoformat()),
        st.text(alphabet="%-:25AaDd0~_. é"),
    )


arguments = st.one_of(
    st.integers(),
    st.text(),
    text_like_other_types(),
    st.uuids(),
    st.dates(),
    st.datetimes(),
    st.sampled_from([*Colour, *Level]),
)


def meaning(argument: Any) -> tuple[type, Any]:
    """What tells arguments apart. An Enum's member stands for its value."""
    if isinstance(argument, enum.Enum):
        return meaning(argument.value)
    return type(argument), argument


@pytest.mark.parametrize("text", ["{a}:{b}", "x{a}-{b}", "{b}/%{a}", "{a}%:{b}y", "a{{:}}{b}~{a}"])
@given(first=st.tuples(arguments, arguments), second=st.tuples(arguments, arguments))
@example(("1:2", "3"), ("1", "2:3"))
@example((1, 1), ("1", 1))
@example((-5, 1), ("-5", 1))
@example(("x%", "25"), ("x", "25%"))
@example((uuid.UUID(int=10), 1), (uuid.UUID(int=10).hex, 1))
@example((datetime.date(2024, 1, 2), 1), ("2024-01-02", 1))
@example((datetime.date(2024, 1, 2), 1), (datetime.datetime(2024, 1, 2), 1))  # noqa: DTZ001
def test_calls_share_a_key_only_where_their_arguments_are_the_same(text: str, first: Any, second: Any) -> None:
    template = Template(text, lambda a, b: None)
    same = [*map(meaning, first)] == [*map(meaning, second)]
    assert (template.key(first, {}) == template.key(second, {})) is same


@given(arguments)
def test_one_argument_is_told_from_every_other_type(argument: Any) -> None:
    template = Template("{a}", lambda a: None)
    key = template.key((argument,), {})
    assert template.key((key,), {}) != key or isinstance(argument, (str, enum.Enum))


@pytest.mark.parametrize(
    ("argument", "key"),
    [
        (42, "k:42"),
        (-5, "k:%2D5"),
        ("ko", "k:ko"),
        ("서울", "k:서울"),
        ("a b\r\n", "k:a%20b%0D%0A"),
        ("50%", "k:%350%25"),
        ("42", "k:%342"),
        ("-5", "k:%2d5"),
        ("", "k:"),
        ("under_score.dot", "k:under_score.dot"),
        (uuid.UUID("0f8fad5b-d9cd-469f-a165-70867728950e"), "k:0f8fad5bd9cd469fa16570867728950e"),
        (datetime.date(2024, 1, 2), "k:2024%2D01%2D02"),
        (datetime.datetime(2024, 1, 2, 3, 4, 5), "k:2024%2D01%2D02T03%3A04%3A05"),  # noqa: DTZ001
        (Colour.RED, "k:r%3Aed"),
        (Level.HIGH, "k:22"),
    ],
)
def test_keys_are_stable(argument: Any, key: str) -> None:
    """What a deployed program has stored must be found by the next one, so these lines never change."""
    assert Template("k:{a}", lambda a: None).key((argument,), {}) == key


def test_defaults_and_keywords_give_the_key_of_the_positional_call() -> None:
    def profile(user_id: int, lang: str = "ko", *, page: int = 1, session: object = None) -> None: ...

    template = Template("profile:{user_id}:{lang}:{page}", profile)
    assert template.key((42,), {}) == "profile:42:ko:1"
    assert template.key((42, "ko"), {"page": 1}) == template.key((), {"lang": "ko", "user_id": 42}) == "profile:42:ko:1"
    assert template.key((42,), {"session": object()}) == "profile:42:ko:1"
    assert template.many == "user_id"


def test_wrong_calls_fail_as_the_function_would() -> None:
    template = Template("p:{a}", lambda a: None)
    for args, kwargs in (((), {}), ((1, 2), {}), ((1,), {"b": 2}), ((1,), {"a": 2})):
        with pytest.raises(TypeError):
            template.key(args, kwargs)


@pytest.mark.parametrize("argument", [None, True, 1.5, b"x", (1,), [1], datetime.time(1), object()])
def test_other_types_are_refused_by_name(argument: Any) -> None:
    with pytest.raises(IllegalKey, match=rf"user_id .*{type(argument).__name__}"):
        Template("{user_id}", lambda user_id: None).key((argument,), {})


def _args(*a: int) -> None: ...
def _kwargs(**a: int) -> None: ...
def _one(a: int) -> None: ...
def _two(a: int, b: int) -> None: ...


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("{c}", _one, "'c'"),
        ("{a}", _two, r"lacks 'b': put \{b\} in it"),
        ("x", _one, "lacks 'a'"),
        ("{a}{b}", _two, "separated"),
        ("{a}x{b}", _two, "separated"),
        ("{a}.{b}", _two, "separated"),
        ("{a}_{b}", _two, "separated"),
        ("{a}é{b}", _two, "separated"),
        ("{a}%{b}", _two, "separated"),
        ("{a}", _args, r"\*args"),
        ("{a}", _kwargs, r"\*\*kwargs"),
        ("{a!r}", _one, "bare name"),
        ("{a:03}", _one, "bare name"),
        ("{a.b}", _one, "bare name"),
        ("{0}", _one, "bare name"),
        ("{}", _one, "bare name"),
        ("{a", _one, "'{a'"),
        ("a}", _one, "'a}'"),
    ],
)
def test_a_template_that_does_not_fit_is_an_error_at_decoration(text: str, function: Callable[..., Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Template(text, function)


def test_ignored_arguments_are_not_part_of_the_key() -> None:
    template = Template("p:{a}", lambda a, timeout=1: None, ignore=["timeout"])
    assert template.key((1, 99), {}) == template.key((1,), {"timeout": object()}) == "p:1"


def test_a_template_without_arguments_is_one_key() -> None:
    template = Template("front", lambda: None)
    assert template.key((), {}) == "front"
    assert template.many == ""


@pytest.mark.parametrize("namespace", ["shop", "a.b-c_1", "x" * 100])
def test_namespaces(namespace: str) -> None:
    assert checked_namespace(namespace) == namespace


@pytest.mark.parametrize("namespace", ["", "a b", "a:b", "x" * 101, "é", "a\n", None, 1, b"shop"])
def test_namespaces_that_could_meet_or_break_a_key_are_refused(namespace: Any) -> None:
    with pytest.raises(CallerError, match="namespace"):
        checked_namespace(namespace)
