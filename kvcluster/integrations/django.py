"""Django's models: what their changes make untrue in a cache is forgotten when the transaction commits.

    # in an AppConfig
    def ready(self):
        from shop.caches import cache
        kvcluster.integrations.django.bind(cache)

Signals say which instances are saved, deleted, or joined by many-to-many fields; loaders say by ``watch`` what hangs on them, with
fields where SQLAlchemy has mapped attributes: ``watch={Post.author: "author_id"}``, ``watch=[Post]``.

What a row *was* is asked of the database before it is written (and locked, inside ``atomic``), and only in columns that somebody
watches. What an instance remembered since it was loaded (``from_db``) may have been changed by another transaction, and what hangs
on the row as it really was would stay.

`transaction.on_commit` keeps what a transaction changed by savepoint, and forgets it with a savepoint that is rolled back. There it
is registered as robust, before hooks that may raise, and nothing is raised because of the cache: a node that could not be told is
told later.

Where a program manages transactions by ``set_autocommit(False)``, Django calls hooks when autocommit is on again, after the commit.

No signal tells of ``QuerySet.update``, ``bulk_create``, ``bulk_update`` and SQL: `Binding.changed` is for those, in their
transaction.
``QuerySet.delete`` is seen, for Django then deletes instance by instance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from kvcluster.cache.retries import Retries, tell
from kvcluster.cache.tables import tables_of
from kvcluster.cache.watch import Names, Row
from kvcluster.errors import MissingExtra

try:
    from django.db import connections, models, transaction  # type: ignore[import-untyped]
    from django.db.models import signals  # type: ignore[import-untyped]
except ImportError:
    raise MissingExtra("django", "kvcluster.integrations.django") from None

if TYPE_CHECKING:
    from kvcluster.cache import Cache


def bind(cache: Cache) -> Binding:
    """Invalidate what Django's models change, after each commit, in all databases. Once for each cache, in an ``AppConfig.ready``.

    :raises MissingExtra: without ``kvcluster[django]``
    """
    return Binding(cache)


class Binding:
    """A cache that listens to Django's signals. Made by `bind`."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._retries = Retries()
        self._slot = f"kvcluster:{id(self)}"  # in an instance's state, between two signals
        for signal, receiver in (
            (signals.pre_save, self._before),
            (signals.post_save, self._saved),
            (signals.pre_delete, self._before),
            (signals.post_delete, self._deleted),
            (signals.m2m_changed, self._joined),
        ):
            signal.connect(receiver, weak=False)

    def changed(self, *targets: type[models.Model], using: str = "default") -> None:
        """Forget every row of these models, and what hangs on them, once the transaction commits: after what no signal tells of.

        :param using: the database's alias
        :raises ConfigurationError: for what is no model
        """
        for target in targets:
            for table in tables_of(target):
                self._note(table, None, using)

    # -- signals

    def _before(self, sender: Any, instance: Any, using: str, **rest: Any) -> None:
        """Look at the row as it is."""
        known: dict[str, Any] = {}
        setattr(instance._state, self._slot, known)
        fields = [field for field in _fields(sender) if self._is_watched(field) and not field.primary_key]
        if not fields or instance.pk is None:
            return
        rows = sender._base_manager.using(using).filter(pk=instance.pk)
        if connections[using].in_atomic_block:
            rows = rows.select_for_update()
        names = [field.attname for field in fields]
        for row in rows.values_list(*names):
            known.update(zip(names, row, strict=True))

    def _saved(
        self, sender: Any, instance: Any, created: bool, using: str, update_fields: Collection[str] | None, **rest: Any
    ) -> None:
        known = instance._state.__dict__.pop(self._slot, {})
        written = {
            field.attname: instance.__dict__[field.attname]
            for field in _fields(sender)
            if field.attname in instance.__dict__
            and (update_fields is None or not {field.name, field.attname}.isdisjoint(update_fields))
        }
        old = {} if created else known
        for table in self._watched(sender):
            rows = [self._row(sender, table, instance, {**old, **written})]
            if old:
                rows.append(self._row(sender, table, instance, old))
            self._note(table, rows, using)

    def _deleted(self, sender: Any, instance: Any, using: str, **rest: Any) -> None:
        known = instance._state.__dict__.pop(self._slot, {})
        for table in self._watched(sender):
            self._note(table, [self._row(sender, table, instance, known)], using)
        for relation in sender._meta.get_fields(include_hidden=True):
            if relation.auto_created and not relation.concrete and _is_told_by_nobody(relation):
                self.changed(relation.related_model, using=using)

    def _joined(
        self, sender: Any, instance: Any, action: str, reverse: bool, model: Any, pk_set: set[Any] | None, using: str, **rest: Any
    ) -> None:
        if not action.startswith("post_"):
            return
        for table in self._watched(sender):
            ends = [field for field in sender._meta.concrete_fields if field.many_to_one]
            mine = [field for field in ends if isinstance(instance, field.related_model)]
            theirs = [field for field in ends if issubclass(model, field.related_model)]
            if pk_set is None or len(mine) != 1 or len(theirs) != 1 or mine == theirs:
                self._note(table, None, using)
                continue
            self._note(table, [{mine[0].column: instance.pk, theirs[0].column: pk} for pk in pk_set], using)

    # -- rows

    def _watched(self, model: Any) -> list[str]:
        return [table for table in tables_of(model) if table in self._cache.watches]

    def _is_watched(self, field: Any) -> bool:
        return field.column in self._cache.watches.columns(field.model._meta.db_table)

    def _row(self, model: Any, table: str, instance: Any, values: Row) -> Row:
        """A row by its columns; an expression is not known."""
        row = {}
        for field in _fields(model):
            if field.model._meta.db_table == table:
                value = instance.pk if field.primary_key else values.get(field.attname, _UNKNOWN)
                if value is not _UNKNOWN and not hasattr(value, "resolve_expression"):
                    row[field.column] = value
        return row

    # -- transactions

    def _note(self, table: str, rows: Iterable[Row] | None, using: str) -> None:
        """Invalidate at the commit, together with what the same savepoint has changed."""
        names = self._cache.watches.invalidated(table, rows)
        if not names:
            return
        connection = connections[using]
        if connection.in_atomic_block:
            for savepoints, registered, *_ in connection.run_on_commit:
                if isinstance(registered, _Telling) and registered.binding is self and savepoints == set(connection.savepoint_ids):
                    registered.names.update(names)
                    return
        telling = _Telling(self, names)
        if not connection.in_atomic_block and connection.get_autocommit():
            transaction.on_commit(telling, using=using, robust=True)
            return
        hooks = connection.run_on_commit
        # before a hook that may raise, for those after it are not called
        first = next((i for i, (*_, robust) in enumerate(hooks) if not robust), len(hooks))
        hooks.insert(first, (set(connection.savepoint_ids), telling, True))

    def tell(self, names: Names) -> None:
        """Tell the nodes, without raising because of the cache."""
        cache = self._cache
        tell(cache, self._retries, names)


_UNKNOWN: Any = object()


class _Telling:
    """What a savepoint changed, as ``on_commit`` calls it."""

    def __init__(self, binding: Binding, names: Names) -> None:
        self.binding = binding
        self.names = names

    def __call__(self) -> None:
        self.binding.tell(self.names)


def _fields(model: Any) -> list[Any]:
    fields: list[Any] = model._meta.concrete_fields
    return fields


def _is_told_by_nobody(relation: Any) -> bool:
    """Whether rows that refer to a deleted one are changed without a signal."""
    told = (models.CASCADE, models.PROTECT, models.RESTRICT)
    on_delete = getattr(relation, "on_delete", None)
    return on_delete is not None and (on_delete not in told or relation.related_model._meta.auto_created)
