"""What a changed row makes untrue. Pure: names of tables, columns and values in, names of keys and stamps out.

A loader declares which rows its result hangs on, by columns that its arguments stand for or by whole tables. A row that changed
concerns it by the values that the row had and by those it has. Where the columns cover all the arguments, they say the key, which
is deleted; else they say a stamp that its values carry. A change of rows that are not known renews a stamp of the table, which
everything that hangs on it carries.

A repository is the simplest case: its primary key covers its keys.
"""

from __future__ import annotations

import datetime
import enum
import inspect
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, get_args

from kvcluster.cache.keys import Template, is_of, pieces_of
from kvcluster.cache.stamps import rows_stamp, stamp_wire, table_stamp, tag_stamp, text_of, unknown_rows, watch_stamp
from kvcluster.cache.tables import ColumnName, column_of, tables_of
from kvcluster.errors import ConfigurationError, IllegalKey
from kvcluster.plan import Invalidation
from kvcluster.planner import Planner

#: What a loader may declare: columns and the arguments that they are equal to, tables, or several of both.
Watched: TypeAlias = "Mapping[Any, str] | Iterable[Any]"

#: A row's values, as they were before or are after a change, by the columns' names; those that somebody watches suffice.
Row: TypeAlias = Mapping[str, Any]


@dataclass(slots=True)
class Names:
    """Keys to delete and stamps to renew, by name, in the order they came and without repetition."""

    keys: dict[str, None] = field(default_factory=dict)
    stamps: dict[str, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.keys or self.stamps)

    def __len__(self) -> int:
        return len(self.keys) + len(self.stamps)

    def update(self, other: Names) -> None:
        """Add other names."""
        self.keys.update(other.keys)
        self.stamps.update(other.stamps)

    def remove(self, other: Names) -> None:
        """Take other names away."""
        for mine, its in ((self.keys, other.keys), (self.stamps, other.stamps)):
            for name in its:
                mine.pop(name, None)

    def clear(self) -> None:
        """Take all names away."""
        self.keys.clear()
        self.stamps.clear()

    def forget_rows(self, table: str) -> None:
        """Any row of a table may have changed."""
        self.stamps.update(dict.fromkeys(unknown_rows(table)))

    def invalidation(self, planner: Planner) -> Invalidation:
        """The same as the nodes store them."""
        wires: list[bytes] = []
        stamps: list[bytes] = []
        for name in self.keys:
            with suppress(IllegalKey):  # which a planner with strict keys could not have stored either
                wires.append(planner.wire(name))
        for name in self.stamps:
            with suppress(IllegalKey):
                stamps.append(stamp_wire(planner, name))
        return Invalidation(tuple(wires), tuple(stamps))


@dataclass(frozen=True, slots=True)
class Watcher:
    """One table that values hang on.

    :ivar columns: the columns that arguments are equal to, and those arguments; empty where the values hang on every row
    :ivar keys: the keys of a call with these arguments, one for each version; None where the columns do not cover them
    """

    table: str
    columns: tuple[tuple[ColumnName, str], ...] = ()
    keys: Callable[[Row], Iterable[str]] | None = None

    @property
    def stamps(self) -> Iterable[_Form]:
        """The stamps that values carry on account of this table."""
        yield table_stamp(self.table), ()
        if not self.columns:
            yield rows_stamp(self.table), ()
        elif self.keys is None:
            arguments = {column.name: argument for column, argument in self.columns}
            form = watch_stamp(_doubled(self.table), {_doubled(name): "%s" for name in arguments})
            yield form, tuple([arguments[name] for name in sorted(arguments)])

    def note(self, row: Row, names: Names) -> None:
        """Add what a row's change invalidates. A row of which too little is known is taken for any."""
        if not self.columns:
            names.stamps[rows_stamp(self.table)] = None
            return
        try:
            values = {column: coerced(row[column.name], column.kind) for column, _ in self.columns}
            if None in values.values():
                return  # no argument is None
            if self.keys is None:
                names.stamps[watch_stamp(self.table, {column.name: value for column, value in values.items()})] = None
            else:
                names.keys.update(dict.fromkeys(self.keys({argument: values[column] for column, argument in self.columns})))
        except (LookupError, IllegalKey, ValueError):
            names.forget_rows(self.table)


class Watch:
    """What one loader or repository hangs on.

    :param watchers: the tables
    :param tags: the stamps of tags over the loader's arguments, as `tags_of` reads them
    """

    def __init__(self, watchers: Iterable[Watcher] = (), tags: Iterable[_Form] = ()) -> None:
        self.watchers = tuple(watchers)
        self._stamps = (*[form for watcher in self.watchers for form in watcher.stamps], *tags)

    def __bool__(self) -> bool:
        return bool(self._stamps)

    def stamps_of(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the stamps that the value for these arguments carries.

        :param arguments: of the call, by name, defaults included
        """
        names = [form % tuple([text_of(arguments[field]) for field in fields]) if fields else form for form, fields in self._stamps]
        return tuple(dict.fromkeys(names))


class Registry:
    """Everything that hangs on tables in one cache, by table."""

    def __init__(self) -> None:
        self._watches: dict[str, Watch] = {}
        self._by_table: dict[str, list[Watcher]] = {}

    def add(self, name: str, watch: Watch) -> None:
        """Take a loader's or repository's watch into account, instead of an earlier one of that name."""
        self._watches[name] = watch
        by_table: dict[str, list[Watcher]] = {}
        for watcher in dict.fromkeys(watcher for watch in self._watches.values() for watcher in watch.watchers):
            by_table.setdefault(watcher.table, []).append(watcher)
        self._by_table = by_table

    def __contains__(self, table: str) -> bool:
        return table in self._by_table

    def columns(self, table: str) -> frozenset[str]:
        """The columns of a table that say what a changed row invalidates."""
        return frozenset(column.name for watcher in self._by_table.get(table, ()) for column, _ in watcher.columns)

    def invalidated(self, table: str, rows: Iterable[Row] | None) -> Names:
        """What a change invalidates.

        :param rows: the values that the changed rows had, and those they have; None where they are not known
        """
        names = Names()
        if rows is None:
            if table in self:
                names.forget_rows(table)
            return names
        watchers = self._by_table.get(table, ())
        for row in rows:
            for watcher in watchers:
                watcher.note(row, names)
        return names


#: A stamp's name: where it stands for arguments, a text for ``%`` and those arguments in their order, else the name as it is.
_Form: TypeAlias = tuple[str, tuple[str, ...]]


def _doubled(text: str) -> str:
    """A text as it stands in one for ``%``."""
    return text.replace("%", "%%")


def watch_of(template: Template, watched: Watched = (), tags: Iterable[str] = ()) -> Watch:
    """What a loader declares that it hangs on.

    :param watched: columns and the arguments that they are equal to (``{User.id: "user_id"}``), or several such mappings, mapped
        classes, tables and Django models
    :param tags: templates such as ``"author:{user_id}"``
    :raises ConfigurationError: for a column that is not mapped, an argument that is not part of the key, types that never meet
    """
    if isinstance(watched, str) or not isinstance(watched, Iterable):
        raise ConfigurationError(f"watch must be a mapping of columns to arguments, or a list, not {watched!r:.100}")
    watchers: list[Watcher] = []
    for target in (watched,) if isinstance(watched, Mapping) else watched:
        if isinstance(target, Mapping):
            watchers += _by_columns(template, target)
        else:
            watchers += [Watcher(table) for table in tables_of(target)]
    return Watch(dict.fromkeys(watchers), tags_of(template, tags))


def tags_of(template: Template, tags: Iterable[str]) -> list[_Form]:
    """The stamps of tags whose templates these are.

    :raises ConfigurationError: where one names something else than an argument of the key
    """
    if isinstance(tags, str):
        raise ConfigurationError(f"tags must be several templates, not one text: tags=[{tags!r}]")
    stamps: list[_Form] = []
    for tag in tags:
        pieces = list(pieces_of(tag, "tag"))
        fields = tuple([name for _, name in pieces if name is not None])
        for name in fields:
            _require_argument(template, name, f"tag {tag!r}")
        form = "".join([(_doubled(literal) if fields else literal) + ("" if name is None else "%s") for literal, name in pieces])
        stamps.append((tag_stamp(form), fields))
    return stamps


def _by_columns(template: Template, mapping: Mapping[Any, str]) -> Iterable[Watcher]:
    """One watcher for each table that columns are of."""
    by_table: dict[str, dict[ColumnName, str]] = {}
    for attribute, argument in mapping.items():
        column = column_of(attribute)
        _require_argument(template, argument, f"watch of {column}")
        _require_types_that_meet(template, argument, column)
        columns = by_table.setdefault(column.table, {})
        if argument in columns.values():
            raise ConfigurationError(
                f"key template {template.text!r}: watch has two columns of {column.table} for {argument!r}; "
                "where either may be equal to it, give two mappings: watch=[{...}, {...}]"
            )
        columns[column] = argument
    for table, columns in by_table.items():
        covers = template.fields == set(columns.values())
        for column, argument in columns.items() if covers else ():
            if column.kind in _PARSED:
                template.require(argument, column.kind)
        yield Watcher(table, tuple(columns.items()), template.every_version if covers else None)


def _require_argument(template: Template, argument: str, what: str) -> None:
    if argument not in template.fields:
        raise ConfigurationError(f"key template {template.text!r}: {what} names {argument!r}, which is not an argument in the key")


def _require_types_that_meet(template: Template, argument: str, column: ColumnName) -> None:
    """Refuse an argument whose values are never the column's, such as a text for a number."""
    try:
        annotation = inspect.signature(template.function, eval_str=True).parameters[argument].annotation
    except Exception:  # an annotation may be any expression, and name what is defined later
        return
    kinds = [kind for kind in get_args(annotation) or (annotation,) if isinstance(kind, type)]
    if kinds and annotation is not inspect.Parameter.empty and not any(_meet(kind, column.kind) for kind in kinds):
        raise ConfigurationError(
            f"key template {template.text!r}: watch says that {argument!r}, which is {kinds[0].__name__}, is equal to {column}, "
            f"which is {column.kind.__name__}"
        )


def _meet(argument: type, column: type) -> bool:
    if issubclass(argument, enum.Enum) and not issubclass(column, enum.Enum):
        return all(isinstance(member.value, column) for member in argument)
    if datetime.datetime in (argument, column):
        return argument is column or object in (argument, column)
    return issubclass(argument, column) or issubclass(column, argument)


_PARSED: Final[Mapping[type, Callable[[Any], Any]]] = {
    int: int,
    str: str,
    uuid.UUID: uuid.UUID,
    datetime.date: datetime.date.fromisoformat,
}


def coerced(value: Any, kind: type) -> Any:
    """A value as its column's type has it: what a program gives the database may be ``"7"`` where that has 7.

    :raises ValueError: where it is not known what the database makes of it

    >>> coerced("7", int), coerced(7, str), coerced(None, int)
    (7, '7', None)
    """
    if value is None or is_of(value, kind):
        return value
    parse = _PARSED.get(kind)
    if parse is None or not isinstance(value, str | int):
        raise ValueError(f"what does a column of {kind.__name__} make of {value!r:.100}?")
    try:
        return parse(value)
    except TypeError as error:
        raise ValueError(str(error)) from None
