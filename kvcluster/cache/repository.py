"""`Repository`: the rows of a mapped class, cached by primary key.

What is stored are the columns, as msgpack, decoded by the columns' own Python types; never a pickled object. What comes back are
detached instances: their columns are there, and a relationship raises instead of loading by accident.

A load opens a session of its own. A session in an open transaction may see an older snapshot than the lease was won for
(MariaDB's default, and SQLite in WAL mode), and what it read would be stored for the whole ttl; with ``session=`` a row is
returned, not stored.
"""

from __future__ import annotations

import datetime
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar
from zoneinfo import ZoneInfo

from kvcluster.cache.cached import Cached
from kvcluster.cache.drive import drive, read
from kvcluster.cache.explain import Explanation, explain
from kvcluster.cache.flows import Flow, Loaders, read_many, refresh_one
from kvcluster.cache.keys import escaped, is_of
from kvcluster.cache.leases import Source
from kvcluster.cache.loader import in_order
from kvcluster.cache.policy import Policy
from kvcluster.cache.shapes import Shape, difference
from kvcluster.cache.tables import column_of, plain_type
from kvcluster.cache.watch import Watch, Watcher
from kvcluster.codec import MSGPACK, Undecodable
from kvcluster.errors import ConfigurationError, IllegalKey, IllegalValue, MissingExtra

try:
    from sqlalchemy import Column, ColumnElement, Select, inspect, select
    from sqlalchemy.orm import Mapper, Session, make_transient_to_detached, sessionmaker
    from sqlalchemy.orm.attributes import instance_dict, instance_state
except ImportError:
    raise MissingExtra("sql", "cache.repository") from None

if TYPE_CHECKING:
    from kvcluster.cache import Cache

M = TypeVar("M")


class RowCodec:
    """Rows, as dictionaries of column values by attribute, to bytes and back.

    A row is a msgpack map. One that was stored before a column was removed decodes; one from before a column was added does not,
    and is a counted miss. Sessions of PostgreSQL give moments in their own time zone, and have them back in it.

    :param types: what each column's values are
    :raises ConfigurationError: for a type that cannot be cached
    """

    def __init__(self, types: Mapping[str, Any]) -> None:
        shapes = {name: Shape(kind, f"column {name}") for name, kind in types.items()}  # one by one, for the error's sake
        self._moments = [name for name, shape in shapes.items() if shape.text in ("datetime", "None | datetime")]
        zoned = {name: types[name] | tuple[str, str | None] for name in self._moments}
        self.shape = Shape(TypedDict("Row", {**types, **zoned}) | None, "a row")  # type: ignore[operator]

    @property
    def fingerprint(self) -> bytes:
        """4 bytes; see `Shape.fingerprint`."""
        return self.shape.fingerprint

    def encode(self, row: dict[str, Any] | None) -> tuple[bytes, int]:
        """The row's bytes; None is "there is no such row".

        :raises IllegalValue: for a column value that would not come back with its exact type
        """
        if row is not None and any(_has_zone(row[name]) for name in self._moments):
            row = row | {name: _zoned(row[name]) for name in self._moments if _has_zone(row[name])}
        return self.shape.pack(row), MSGPACK

    def decode(self, data: bytes, flags: int) -> dict[str, Any] | None:
        """The row.

        :raises Undecodable: where the bytes are not a row of these columns
        """
        if flags != MSGPACK:
            raise Undecodable(f"flags {flags} are not a row's")
        row: dict[str, Any] | None = self.shape.unpack(data)
        if row is not None:
            for name in self._moments:
                if type(row[name]) is tuple:
                    row[name] = _moment(row[name])
        return row


def _has_zone(value: Any) -> bool:
    """Whether it is a moment in a time zone, other than UTC, which msgpack would give back in UTC."""
    return isinstance(value, datetime.datetime) and value.tzinfo is not None and value.tzinfo is not datetime.UTC


def _zoned(moment: datetime.datetime) -> tuple[str, str | None]:
    """A moment and the name of its zone, where that has one.

    :raises IllegalValue: for a zone that has no name and changes its offset
    """
    form = moment.isoformat(), getattr(moment.tzinfo, "key", None)
    if difference(moment, _moment(form)) is not None:
        raise IllegalValue(f"a row holds a moment in a zone that would not come back: {moment.tzinfo!r}")
    return form


def _moment(form: tuple[str, str | None]) -> datetime.datetime:
    """What `_zoned` made the form of.

    :raises Undecodable: where it is none
    """
    text, zone = form
    try:
        moment = datetime.datetime.fromisoformat(text)
        return moment if zone is None else moment.astimezone(ZoneInfo(zone))
    except (ValueError, OverflowError, KeyError, OSError) as error:  # KeyError: this system knows no such zone
        raise Undecodable(f"not a moment in a time zone: {error}") from error


class RepositoryBase(Cached, Generic[M]):
    """What `Repository` and `AsyncRepository` share: a mapped class, its keys, its columns and its policy.

    ``stamps`` are the names of the stamps that all its rows depend on.
    """

    def __init__(self, cache: Cache, model: type[M], policy: Policy) -> None:
        mapper: Mapper[M] | None = inspect(model, raiseerr=False)
        if not isinstance(mapper, Mapper):
            raise ConfigurationError(f"model must be a class mapped by SQLAlchemy, not {model!r}")
        if len(mapper.primary_key) != 1:
            raise ConfigurationError(f"{model.__name__} must have a primary key of one column, not {len(mapper.primary_key)}")
        if mapper.polymorphic_on is not None or mapper.inherits is not None:
            raise ConfigurationError(f"{model.__name__} is part of an inheritance hierarchy, whose rows have several shapes")
        if any(other is not model and other.__name__ == model.__name__ for other in cache.repositories):
            raise ConfigurationError(
                f"cache {cache.namespace!r} has another model of the name {model.__name__}, and keys hold the name"
            )
        self.model = model
        # Expressions are left out, for they may depend on other rows; asking an instance for one raises, as for a deferred column.
        loaded = [each for each in mapper.column_attrs if isinstance(each.columns[0], Column) and not each.deferred]
        columns = {each.key: each.columns[0] for each in loaded}
        self._names = [*columns]
        self._whole = len(columns) == len(mapper.column_attrs)
        self._columns = [getattr(model, name) for name in columns]
        self.identifier = mapper.get_property_by_column(mapper.primary_key[0]).key
        self._identity = getattr(model, self.identifier)
        self.kind = plain_type(mapper.primary_key[0])
        self._mapper = mapper
        identity = column_of(mapper.primary_key[0])
        self._watch = Watch([Watcher(identity.table, ((identity, self.identifier),), self._keys)])
        self.stamps = self._watch.stamps_of({})
        self._own: Any = None
        self.key_shape = f"{policy.prefix}{model.__name__}:{{}}"
        codec = RowCodec({name: _python_type(column) for name, column in columns.items()})
        super().__init__(cache, policy, f"{cache.namespace}:{model.__name__}", codec.shape, lambda base: codec)
        cache.watches.add(self.key_shape, self._watch)

    #: Whether its calls are awaited.
    is_async = False

    #: Makes the sessions that rows are loaded with.
    sessions: Any

    def ids_only(self, statement: Select[Any]) -> Select[Any]:
        """A statement that selects rows of this class, with their primary keys alone.

        :raises ConfigurationError: for a statement of another kind
        """
        if not isinstance(statement, Select) or statement.column_descriptions[0].get("entity") is not self.model:
            raise ConfigurationError(f"a query must return a Select of {self.model.__name__}, not {statement!r:.100}")
        return statement.with_only_columns(self._identity, maintain_column_froms=True)

    def _require_own(self, instance: object) -> None:
        if not isinstance(instance, self.model):
            raise IllegalValue(f"a repository of {self.model.__name__} saves those, not {type(instance).__name__}")

    def wire(self, id: Any) -> bytes:
        """The key of a row, as its node stores it.

        :raises IllegalKey: where a primary key cannot be part of a key, or is not of its column's type: the database may find a
            row by ``"1"``, whose key is that of 1
        """
        return self._cache.planner.wire(self.policy.prefix + self._key(id))

    def wires(self, id: Any) -> tuple[bytes, ...]:
        """The keys of a row that an invalidation deletes, as its nodes store them: of each version.

        :raises IllegalKey: as `wire`
        """
        wire = self._cache.planner.wire
        return tuple([wire(key) for key in self._keys({self.identifier: id})])

    def _keys(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        key = self._key(arguments[self.identifier])
        return tuple([prefix + key for prefix in self.policy.prefixes])

    def _key(self, id: Any) -> str:
        kind = self.kind
        if not is_of(id, kind):
            raise IllegalKey(f"{self.model.__name__}.{self.identifier} must be {kind.__name__}, not {type(id).__name__}: {id!r}")
        return f"{self.model.__name__}:{escaped(id, self.identifier)}"

    @property
    def _writing(self) -> Any:
        """Makes sessions whose commits invalidate: the factory, or where that is not bound, one like it that is."""
        if self._cache.is_bound(self.sessions):
            return self.sessions
        if self._own is None:
            self._own = type(self.sessions)(class_=self.sessions.class_)
            self._own.kw = ChainMap({}, self.sessions.kw)  # what binding sets is its own, and the rest is as configured now
            self._cache.bind(self._own)
        return self._own

    def _reading(self, source: Source, wires: Mapping[Any, bytes], load: Callable[[Any], Any]) -> Flow[dict[Any, Any]]:
        stamps = self._stamps(self.stamps)
        return read_many(source, {wire: id for id, wire in wires.items()}, Loaders(load), dict.fromkeys(wires.values(), stamps))

    def _query(self, ids: Sequence[Any]) -> Select[Any]:
        return select(*self._columns).where(self._identity == ids[0] if len(ids) == 1 else self._identity.in_(ids))

    def _rows(self, result: Iterable[Any]) -> dict[Any, dict[str, Any]]:
        rows = [dict(zip(self._names, row, strict=True)) for row in result]
        return {row[self.identifier]: row for row in rows}

    def _instance(self, row: dict[str, Any] | None) -> M | None:
        """A detached instance, as `make_transient_to_detached` makes it; in a third of its time where no column is left out."""
        if row is None:
            return None
        instance: M = self._mapper.class_manager.new_instance()
        instance_dict(instance).update(row)
        if self._whole:
            instance_state(instance).key = self._mapper.identity_key_from_primary_key((row[self.identifier],))
        else:
            make_transient_to_detached(instance)
        return instance


class Repository(RepositoryBase[M]):
    """The rows of one mapped class, read through the cache. Made by `Cache.repository`."""

    def __init__(self, cache: Cache, model: type[M], sessions: sessionmaker[Any], policy: Policy) -> None:
        super().__init__(cache, model, policy)
        self.sessions = sessions

    def get(self, id: Any, *, session: Session | None = None) -> M | None:
        """The row with this primary key as a detached instance, or None where there is none.

        :param session: read by this session instead, and store nothing: it sees its own changes, and perhaps an older snapshot
        """
        client = self._cache.client
        wire = self.wire(id)
        if session is not None:
            self._cache.count_unstored(client, [wire])
            return self._instance(self._load_with(session, [id]).get(id))
        source = self._source(client)
        return self._instance(read(client, source, wire, lambda: self._load([id]).get(id), self._stamps(self.stamps)))

    def get_many(self, ids: Iterable[Any], *, session: Session | None = None) -> dict[Any, M | None]:
        """The rows with these primary keys, by primary key: one multi-get over all nodes, and one SELECT for what is missing."""
        wires = {id: self.wire(id) for id in dict.fromkeys(ids)}
        wanted = [*wires]
        client = self._cache.client
        if session is not None:
            self._cache.count_unstored(client, [*wires.values()])
            rows = self._load_with(session, wanted)
        else:
            rows = drive(self._reading(self._bulk_source(client), wires, self._load), client) if wanted else {}
        return {id: self._instance(rows.get(id)) for id in wanted}

    def list(self, ids: Iterable[Any], *, session: Session | None = None) -> list[M]:
        """As `get_many`, as a list in the order asked, without rows that are not there."""
        order = [*ids]
        return in_order(order, self.get_many(order, session=session))

    def refresh(self, id: Any) -> M | None:
        """Load a row now whatever is cached, store it, and return it."""
        client = self._cache.client
        source = self._source(client)
        flow = refresh_one(source, self.wire(id), lambda: self._load([id]).get(id), self._stamps(self.stamps))
        return self._instance(drive(flow, client))

    def invalidate(self, id: Any, *, soft: bool = False) -> None:
        """Forget a row, in each version of its key. A load that is under way will not be stored.

        :param soft: keep it as a stale one instead, which may be served while it is refreshed or where that fails, for as long as
            the policy says; where it says nothing of the kind, forget it
        :raises DeleteFailed: where its node could not be told; it is told before this client reads from it again
        """
        self._cache.invalidate_wires(self.wires(id), self.policy.stale if soft else 0)

    def save(self, instance: M) -> M:
        """Write a row in a transaction of its own, and forget what that makes untrue: for a row that is new, and for one that was
        read here and changed. What of it was never loaded or set stays as it is in the database; every other column is written as
        it is here, and undoes what others have changed since this was read. Where others write too, change the row in a session, or
        give the mapping a ``version_id_col``: then this raises `sqlalchemy.orm.exc.StaleDataError`.

        As with any commit, the cache is no reason to raise: a node that could not be told is told later.

        :returns: the row as the database has it now, detached
        """
        self._require_own(instance)
        with self._writing.begin() as session:
            merged: M = session.merge(instance)
            session.flush()
            session.refresh(merged)
            session.expunge(merged)
        return merged

    def delete(self, id: Any) -> bool:
        """Delete a row in a transaction of its own, and forget what that makes untrue. Parameters and errors as for `save`.

        :returns: whether there was one
        """
        self.wire(id)  # an id of another type is an error, as when it is read
        with self._writing.begin() as session:
            instance = session.get(self.model, id)
            if instance is not None:
                session.delete(instance)
        return instance is not None

    def explain(self, id: Any) -> Explanation:
        """Where a row would come from now, and why. It changes nothing."""
        client = self._cache.client
        source = self._source(client)
        return drive(explain(source, self.wire(id), self._stamps(self.stamps)), client)

    def _load(self, ids: Sequence[Any]) -> dict[Any, dict[str, Any]]:
        with self.sessions() as session:
            return self._load_with(session, ids)

    def _load_with(self, session: Session, ids: Sequence[Any]) -> dict[Any, dict[str, Any]]:
        return self._rows(session.execute(self._query(ids)))


def maker_of(factory: Any) -> Any:
    """The ``sessionmaker`` or ``async_sessionmaker`` that a factory is, or that a ``scoped_session`` calls.

    :raises ConfigurationError: for any other callable, of which it is not known whether its sessions are to be awaited
    """
    maker = getattr(factory, "session_factory", factory)
    if isinstance(maker, sessionmaker):
        return maker
    from sqlalchemy.ext.asyncio import async_sessionmaker  # here, because it needs greenlet, and says so where that is missing

    if isinstance(maker, async_sessionmaker):
        return maker
    raise ConfigurationError(f"session_factory must be a sessionmaker or an async_sessionmaker, not {factory!r}")


def _python_type(column: ColumnElement[Any]) -> Any:
    """What a column's values decode to: its type's Python type, or anything msgpack holds where it names none."""
    kind = plain_type(column)
    # JSON holds anything; any column may be NULL, whatever is declared.
    return Any if kind in (object, dict, list) else kind | None
