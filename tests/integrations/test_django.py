"""Django's models: whatever changes them, right after the commit each cached reader says what the database says."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

django = pytest.importorskip("django")

from django.conf import settings as django_settings  # noqa: E402

if not django_settings.configured:
    django_settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "unused"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()

from django.db import IntegrityError, connection, models, transaction  # noqa: E402
from django.db.models import F, signals  # noqa: E402

from kvcluster import Cache, Client  # noqa: E402
from kvcluster.errors import ConfigurationError  # noqa: E402
from kvcluster.integrations.django import Binding, bind  # noqa: E402
from kvcluster.testing.nodes import RunningNode  # noqa: E402
from kvcluster.testing.plugin import NodeFactory  # noqa: E402


class Author(models.Model):
    name = models.CharField(max_length=50)

    class Meta:
        app_label = "blog"


class Editor(Author):
    author_ptr = models.OneToOneField(Author, models.CASCADE, parent_link=True, primary_key=True, db_constraint=False)
    desk = models.CharField(max_length=50)

    class Meta:
        app_label = "blog"


class Tag(models.Model):
    class Meta:
        app_label = "blog"


class Post(models.Model):
    author = models.ForeignKey(Author, models.CASCADE, null=True, db_constraint=False)
    reviewer = models.ForeignKey(Author, models.SET_NULL, null=True, db_constraint=False, related_name="reviewed")
    title = models.CharField(max_length=50)
    rank = models.IntegerField(default=0)
    tags = models.ManyToManyField(Tag, db_constraint=False)

    class Meta:
        app_label = "blog"


MODELS = [Author, Editor, Tag, Post]
IDS = (1, 2, 3)


@pytest.fixture(scope="module", autouse=True)
def tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A database in a file of its own."""
    path: Path = tmp_path_factory.mktemp("django") / "blog.db"
    connection.settings_dict["NAME"] = str(path)
    with connection.schema_editor() as editor:
        for model in MODELS:
            editor.create_model(model)
    yield
    connection.close()


@pytest.fixture
def nodes(kv_nodes: NodeFactory) -> list[RunningNode]:
    return kv_nodes(2)


@pytest.fixture
def client(nodes: list[RunningNode]) -> Iterator[Client]:
    with Client([node.address for node in nodes], timeout=5.0, connect_timeout=5.0) as client:
        yield client


@pytest.fixture
def cache(client: Client) -> Cache:
    return Cache("blog", ttl="10m", client=client)


@pytest.fixture
def readers(cache: Cache) -> dict[str, Any]:
    """Loaders, and what they watch."""

    @cache.loader("author:{id}", watch={Author.id: "id"})
    def author(id: int) -> list[Any]:
        return list(Author.objects.filter(pk=id).values_list("name", flat=True))

    @cache.loader("editor:{id}", watch={Editor.author_ptr: "id", Author.id: "id"})
    def editor(id: int) -> list[Any]:
        return [list(row) for row in Editor.objects.filter(pk=id).values_list("name", "desk")]

    @cache.loader("titles:{author_id}", watch={Post.author: "author_id"})
    def titles(author_id: int) -> list[Any]:
        return list(Post.objects.filter(author_id=author_id).order_by("id").values_list("title", flat=True))

    @cache.loader("page:{author_id}:{n}", watch={Post.author_id: "author_id"})
    def page(author_id: int, n: int = 2) -> list[Any]:
        return list(Post.objects.filter(author_id=author_id).order_by("-rank", "id").values_list("title", flat=True)[:n])

    @cache.loader("reviewed:{author_id}", watch={Post.reviewer: "author_id"})
    def reviewed(author_id: int) -> list[Any]:
        return list(Post.objects.filter(reviewer_id=author_id).order_by("id").values_list("id", flat=True))

    @cache.loader("front:{n}", watch=[Post])
    def front(n: int) -> list[Any]:
        return [list(row) for row in Post.objects.order_by("-rank", "id").values_list("id", "title", "rank")[:n]]

    @cache.loader("tags:{post_id}", watch={Post.tags.through.post: "post_id"})
    def tags(post_id: int) -> list[Any]:
        return list(Post.tags.through.objects.filter(post_id=post_id).order_by("tag_id").values_list("tag_id", flat=True))

    return {loader.__name__: loader for loader in (author, editor, titles, page, reviewed, front, tags)}


@pytest.fixture
def binding(cache: Cache) -> Iterator[Binding]:
    """The cache bound to the signals, for one test."""
    binding = bind(cache)
    yield binding
    for signal in (signals.pre_save, signals.post_save, signals.pre_delete, signals.post_delete, signals.m2m_changed):
        signal.receivers = [each for each in signal.receivers if getattr(each[1], "__self__", None) is not binding]
        signal.sender_receivers_cache.clear() if signal.use_caching else None


_numbers = itertools.count()


def fresh() -> str:
    return f"t{next(_numbers)}"


def add(binding: Binding, id: int, other: int) -> None:
    Post.objects.update_or_create(pk=id, defaults={"author_id": other, "reviewer_id": id, "title": fresh()})


def add_author(binding: Binding, id: int, other: int) -> None:
    Author(id=id, name=fresh()).save()


def add_editor(binding: Binding, id: int, other: int) -> None:
    Editor(id=id, name=fresh(), desk=fresh()).save()


def by_text(binding: Binding, id: int, other: int) -> None:
    Post(id=str(id), author_id=str(other), title=fresh()).save()


def move(binding: Binding, id: int, other: int) -> None:
    for post in Post.objects.filter(pk=id):
        post.author_id, post.reviewer_id = other, other
        post.save()


def move_partly(binding: Binding, id: int, other: int) -> None:
    for post in Post.objects.filter(pk=id):
        post.author_id, post.title = other, fresh()
        post.save(update_fields=["title"])


def move_deferred(binding: Binding, id: int, other: int) -> None:
    for post in Post.objects.defer("author").filter(pk=id):
        post.title = fresh()
        post.save()


def move_by_expression(binding: Binding, id: int, other: int) -> None:
    for post in Post.objects.filter(pk=id):
        post.author_id, post.rank = F("reviewer_id"), F("rank") + 1
        post.save()


def remembered(binding: Binding, id: int, other: int) -> None:
    """An instance that was loaded before another one moved its row."""
    for post in Post.objects.filter(pk=id):
        move(binding, id, other)
        post.title = fresh()
        post.save(update_fields=["title"])


def remove(binding: Binding, id: int, other: int) -> None:
    for post in Post.objects.filter(pk=id):
        post.delete()


def remove_author(binding: Binding, id: int, other: int) -> None:
    Author.objects.filter(pk=id).delete()


def remove_some(binding: Binding, id: int, other: int) -> None:
    Post.objects.filter(author_id=other).delete()


def join(binding: Binding, id: int, other: int) -> None:
    for post in Post.objects.filter(pk=id):
        post.tags.add(*Tag.objects.filter(pk__lte=other))


def join_reversed(binding: Binding, id: int, other: int) -> None:
    Tag.objects.get(pk=other).post_set.set(Post.objects.filter(pk=id))


def clear(binding: Binding, id: int, other: int) -> None:
    for post in Post.objects.filter(pk=id):
        post.tags.clear()


def update(binding: Binding, id: int, other: int) -> None:
    Post.objects.filter(pk=id).update(author_id=other, title=fresh())
    binding.changed(Post)


STEPS: list[Callable[[Binding, int, int], None]] = [
    add, add, add_author, add_editor, by_text, move, move_partly, move_deferred, move_by_expression, remembered, remove,
    remove_author, remove_some, join, join_reversed, clear, update,
]  # fmt: skip
Step = tuple[Callable[[Binding, int, int], None], int, int]
one = st.tuples(st.sampled_from(STEPS), st.sampled_from(IDS), st.sampled_from(IDS))
#: Steps in transactions, some of them in savepoints, some of those rolled back.
transactions = st.lists(st.tuples(st.sampled_from(["alone", "together", "rolled back"]), st.lists(one, max_size=4)), max_size=5)


def said(readers: dict[str, Any], cached: bool) -> dict[Any, Any]:
    calls = {name: reader if cached else reader.uncached for name, reader in readers.items()}
    return {(name, id): call(id) for name, call in calls.items() for id in IDS}


class Undo(Exception):
    pass


def atomically(binding: Binding, kind: str, steps: list[Step]) -> None:
    try:
        with transaction.atomic():
            for at, (do, *arguments) in enumerate(steps):
                try:
                    with transaction.atomic():
                        do(binding, *arguments)
                        if at % 3 == 2:
                            raise Undo
                except (Undo, IntegrityError):
                    pass
            if kind == "rolled back":
                raise Undo
    except (Undo, IntegrityError):
        pass


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(taken=transactions)
def test_any_order_of_anything(
    cache: Cache, readers: dict[str, Any], binding: Binding, taken: list[tuple[str, list[Step]]]
) -> None:
    Post.objects.all().delete()
    Author.objects.all().delete()
    Tag.objects.bulk_create([Tag(id=id) for id in IDS], ignore_conflicts=True)
    for id in IDS:
        add_author(binding, id, id)
    add(binding, 1, 1)
    for kind, steps in taken:
        if kind == "alone":
            for do, *arguments in steps:
                try:
                    do(binding, *arguments)
                except IntegrityError:
                    connection.rollback() if connection.in_atomic_block else None
                assert said(readers, cached=True) == said(readers, cached=False), do.__name__
        else:
            atomically(binding, kind, steps)
            assert said(readers, cached=True) == said(readers, cached=False)


def test_the_oracle_finds_what_is_not_told(cache: Cache, readers: dict[str, Any], binding: Binding) -> None:
    add_author(binding, 1, 1)
    add(binding, 1, 1)
    said(readers, cached=True)
    Post.objects.filter(pk=1).update(title=fresh())
    assert said(readers, cached=True) != said(readers, cached=False)
    cache.invalidate_table(Post)
    assert said(readers, cached=True) == said(readers, cached=False)


def test_a_transaction_tells_the_nodes_once(
    cache: Cache, readers: dict[str, Any], binding: Binding, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(cache, "invalidate", told.append)
    with transaction.atomic():
        for id in range(10, 20):
            Author(id=id, name="new").save()
        assert told == []
    assert len(told) == 1
    assert len(told[0].wires) == 20, "authors and editors"


def test_a_commit_does_not_raise_because_of_the_cache(
    readers: dict[str, Any], binding: Binding, nodes: list[RunningNode], caplog: pytest.LogCaptureFixture
) -> None:
    for node in nodes:
        node.kill()
    with caplog.at_level(logging.ERROR, "kvcluster"), transaction.atomic():
        add_author(binding, 1, 1)
    assert "repeated until they succeed" in caplog.text
    assert Author.objects.filter(pk=1).exists()


def test_an_unconnected_cache_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache("unconnected", ttl="1m")
    cache.loader("author:{number}", watch={Author.id: "number"})(lambda number: None)
    binding = Binding(cache)
    with caplog.at_level(logging.ERROR, "kvcluster"):
        add_author(binding, 1, 1)
    for signal in (signals.pre_save, signals.post_save, signals.pre_delete, signals.post_delete, signals.m2m_changed):
        signal.receivers = [each for each in signal.receivers if getattr(each[1], "__self__", None) is not binding]
        signal.sender_receivers_cache.clear() if signal.use_caching else None
    assert "1 entries of cache 'unconnected' were not invalidated" in caplog.text


def test_types_and_names(cache: Cache) -> None:
    def wrong(name: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'name', which is str, is equal to blog_author\.id, which is int"):
        cache.loader("a:{name}", watch={Author.id: "name"})(wrong)
    with pytest.raises(ConfigurationError, match=r"'name', which is str, is equal to blog_post\.author_id, which is int"):
        cache.loader("a:{name}", watch={Post.author: "name"})(wrong)
    with pytest.raises(ConfigurationError, match="not mapped to a column"):
        cache.loader("a:{name}", watch={Post.tags: "name"})(wrong)


def test_several_caches_share_no_slot(readers: dict[str, Any], binding: Binding, cache: Cache) -> None:
    other = bind(cache)
    try:
        author = Author.objects.create(name="new")
        post = Post.objects.create(author=author, title="new")
        for each in (binding, other):
            each._before(Post, post, "default")
        assert len([name for name in vars(post._state) if name.startswith("kvcluster:")]) == 2
    finally:
        for signal in (signals.pre_save, signals.post_save, signals.pre_delete, signals.post_delete, signals.m2m_changed):
            signal.receivers = [each for each in signal.receivers if getattr(each[1], "__self__", None) is not other]
            signal.sender_receivers_cache.clear() if signal.use_caching else None


def test_somebody_elses_hook_that_raises(readers: dict[str, Any], binding: Binding) -> None:
    said(readers, cached=True)

    def change() -> None:
        with transaction.atomic():
            transaction.on_commit(lambda: 1 // 0)
            Post.objects.create(author_id=1, title=fresh())

    with pytest.raises(ZeroDivisionError):
        change()
    assert said(readers, cached=True) == said(readers, cached=False)


def test_transactions_without_autocommit(readers: dict[str, Any], binding: Binding) -> None:
    said(readers, cached=True)
    connection.set_autocommit(False)
    try:
        Post.objects.create(author_id=1, title=fresh())
        connection.commit()
    finally:
        connection.set_autocommit(True)
    assert said(readers, cached=True) == said(readers, cached=False)
