"""Which rows a flush or a statement changes: what SQLAlchemy says of it, as names of columns and values.

What a flushed row *was* is asked of the database, in the session's own transaction and with a lock, not of the session: that may
remember a row which another transaction has changed since, and what hangs on the row as it really was would stay. Only columns
that somebody watches are asked for, and never a primary key, for that is what the row is found by.

Of a statement it is known which rows it changes where its WHERE fixes the columns that somebody watches, by ``=`` or ``IN``.
Columns of text do not count: what the database takes for equal may be written otherwise. Whatever is not understood raises, and
the whole table is taken to have changed.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from math import prod
from typing import Any, Final

from sqlalchemy import BindParameter, Column, Connection, Delete, Insert, Table, TypeDecorator, Update, select, tuple_
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.orm.state import InstanceState
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList, ClauseElement
from sqlalchemy.sql.operators import and_, eq, in_op
from sqlalchemy.sql.util import find_tables

from kvcluster.cache.tables import plain_type
from kvcluster.cache.watch import Row

MOST_ROWS: Final = 1000  # of one statement: naming more keys costs more than loading the table's anew
_AT_ONCE: Final = 500  # rows asked for by one SELECT
_EXACT: Final = (int, uuid.UUID, datetime.date)  # types whose values are equal in the database just where they are in Python


class Unknown(Exception):
    """It cannot be said which rows."""


# -- instances


def properties(mapper: Mapper[Any], table: Table, columns: Iterable[str]) -> dict[str, str]:
    """The attributes of a mapped class that columns of its table are mapped to, by the columns' names."""
    return {column.name: mapper.get_property_by_column(column).key for column in table.columns if column.name in columns}


def identity_of(state: InstanceState[Any]) -> dict[str, Any]:
    """The primary key that the database has for an instance, by attribute; empty where it has none."""
    mapper = state.mapper
    keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    return dict(zip(keys, state.identity or (), strict=False))


def rows_of_instance(
    state: InstanceState[Any], table: Table, known: Row | None, modified: Container[str], columns: Iterable[str]
) -> Iterator[Row]:
    """The values that an instance's row had and has, after it was flushed.

    :param known: what `rows_in_database` found before
    :param modified: the attributes that were to be written; what an expression wrote is not known
    :raises LookupError: where one of them is not known
    :raises Unknown: where its type may have made something else of it
    """
    attributes = properties(state.mapper, table, columns)
    by_name = {column.name: column for column in table.columns}
    identity = identity_of(state)
    if identity:
        yield {name: identity[key] if key in identity else (known or {})[name] for name, key in attributes.items()}
    new: dict[str, Any] = {}
    for name, key in attributes.items():
        is_given = not identity or key in modified or key in state.committed_state
        if is_given and isinstance(by_name[name].type, TypeDecorator):
            raise Unknown  # which value the database was given
        if not is_given and not _writes_itself(by_name[name]):
            new[name] = identity[key] if key in identity else (known or {})[name]
        else:
            new[name] = state.dict[key]
    yield new


def _writes_itself(column: Column[Any]) -> bool:
    """Whether an UPDATE may change a column that it does not name."""
    return any((column.onupdate, column.server_onupdate, column.computed))


def rows_in_database(
    connection: Connection, mapper: Mapper[Any], table: Table, columns: Iterable[str], states: Sequence[InstanceState[Any]]
) -> dict[InstanceState[Any], Row]:
    """What the database has in some columns of instances' rows, which are locked by the way until the transaction ends."""
    names = [*columns]
    keys = [*table.primary_key.columns]
    try:
        attributes = properties(mapper, table, [column.name for column in keys])
        by_key = {tuple(identity_of(state)[attributes[column.name]] for column in keys): state for state in states}
    except (LookupError, UnmappedColumnError):  # the rows are found by something else
        return {}
    wanted = [*by_key]
    with suppress(TypeError):  # the order of all transactions, where values have one
        wanted.sort()
    query = select(*keys, *(table.columns[key] for key, column in table.columns.items() if column.name in names)).with_for_update()
    named = [column.name for column in query.selected_columns][len(keys) :]
    found: dict[InstanceState[Any], Row] = {}
    for start in range(0, len(wanted), _AT_ONCE):
        some = wanted[start : start + _AT_ONCE]
        which = keys[0].in_([key[0] for key in some]) if len(keys) == 1 else tuple_(*keys).in_(some)
        for row in connection.execute(query.where(which).order_by(*keys)):
            if (state := by_key.get(tuple(row[: len(keys)]))) is not None:
                found[state] = dict(zip(named, row[len(keys) :], strict=True))
    return found


# -- statements


def written_tables(statement: UpdateBase) -> list[Table]:
    """The tables that a statement changes: an alias stands for its table, and an UPDATE may set columns of several."""
    target: Any = statement.table
    tables = [target] if isinstance(target, Table) else [table for table in find_tables(target) if isinstance(table, Table)]
    for column in _values_of(statement):
        table = getattr(column, "table", None)
        if isinstance(table, Table) and table not in tables:
            tables.append(table)
    return tables


def rows_of_statement(statement: UpdateBase, parameters: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> list[Row]:
    """The values that the rows which a statement changes had and have in some columns.

    :param parameters: as it is executed with, a mapping for each time
    :raises Unknown: where that cannot be said
    """
    rows: list[Row] = []
    needed = frozenset(columns)
    rows_of = next((rows_of for kind, rows_of in _ROWS_OF.items() if isinstance(statement, kind)), _unknown)
    for each in parameters or ({},):
        rows += rows_of(statement, each, needed)
        if len(rows) > MOST_ROWS:
            raise Unknown
    return rows


def _unknown(statement: object, parameters: object, needed: object) -> Iterator[Row]:
    raise Unknown


def _inserted(statement: Any, parameters: Mapping[str, Any], needed: frozenset[str]) -> Iterator[Row]:
    if statement.select is not None or statement._post_values_clause is not None or statement._prefixes:
        raise Unknown  # it may change rows that are there
    table = statement.table
    given: list[Mapping[Any, Any]] = [row for rows in statement._multi_values for row in rows] or [statement._values or {}]
    for values in given:
        named = _named(table, values, parameters) | _named(table, parameters, parameters)
        row = {}
        for column in table.columns:
            if column.name in needed:
                if column.name not in named and (column.primary_key or column.default or column.server_default):
                    raise Unknown
                row[column.name] = named.get(column.name)
        yield _plain(row, needed)


def _updated(statement: Any, parameters: Mapping[str, Any], needed: frozenset[str]) -> Iterator[Row]:
    table = statement.table
    changed = _named(table, _values_of(statement), parameters)
    changed |= _named(table, {key: value for key, value in parameters.items() if key in table.columns}, parameters)
    if any(_writes_itself(column) for column in table.columns if column.name in needed and column.name not in changed):
        raise Unknown
    for fixed in _fixed(statement, parameters):
        yield _plain(fixed, needed)
        yield _plain(fixed | changed, needed)


def _deleted(statement: Any, parameters: Mapping[str, Any], needed: frozenset[str]) -> Iterator[Row]:
    for fixed in _fixed(statement, parameters):
        yield _plain(fixed, needed)


_ROWS_OF: Final[Mapping[type[UpdateBase], Callable[[Any, Mapping[str, Any], frozenset[str]], Iterator[Row]]]] = {
    Insert: _inserted,
    Update: _updated,
    Delete: _deleted,
}


def written_columns(statement: UpdateBase, parameters: Iterable[Mapping[str, Any]]) -> set[str]:
    """The names of the columns that an UPDATE sets, and perhaps some more."""
    return {getattr(key, "name", key) for values in (_values_of(statement), *parameters) for key in values}


def _values_of(statement: Any) -> Mapping[Any, Any]:
    """What VALUES or SET says; `Update.ordered_values` is a sequence in SQLAlchemy 2.0."""
    values = getattr(statement, "_values", None) or getattr(statement, "_ordered_values", None)
    return dict(values or ())


def _named(table: Table, values: Mapping[Any, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names of the columns that they are for."""
    named = {}
    for column, value in values.items():
        column = column if isinstance(column, Column) else table.columns[column]
        # what a type may make of a value is no more known than an expression's
        named[column.name] = column if isinstance(column.type, TypeDecorator) else _value(value, parameters)
    return named


def _value(value: Any, parameters: Mapping[str, Any]) -> Any:
    """What a statement has for a value; an expression stays one."""
    if not isinstance(value, BindParameter):
        return value
    return parameters.get(value.key, value.effective_value)


def _plain(row: Row, needed: frozenset[str]) -> Row:
    if not needed <= row.keys() or any(isinstance(row[name], ClauseElement) for name in needed):
        raise Unknown
    return {name: row[name] for name in needed}


def _fixed(statement: Any, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What a WHERE says that columns are equal to: all that is joined to it by AND can only leave out rows."""
    choices: dict[str, Sequence[Any]] = {}
    for criterion in _conjunction(statement._where_criteria):
        if not isinstance(criterion, BinaryExpression) or criterion.operator not in (eq, in_op):
            continue
        column, value = criterion.left, _value(criterion.right, parameters)
        if not isinstance(column, Column) or column.table.name != statement.table.name or isinstance(value, ClauseElement):
            continue
        if plain_type(column) in _EXACT and not isinstance(column.type, TypeDecorator):
            choices[column.name] = [*value] if criterion.operator is in_op else [value]
    if prod(map(len, choices.values())) > MOST_ROWS:
        raise Unknown
    for values in product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def _conjunction(criteria: Iterable[Any]) -> Iterator[Any]:
    for criterion in criteria:
        if isinstance(criterion, BooleanClauseList) and criterion.operator is and_:
            yield from _conjunction(criterion.clauses)
        else:
            yield criterion
