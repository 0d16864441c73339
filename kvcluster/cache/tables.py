"""Mapped classes and their attributes, of SQLAlchemy and of Django, as plain names of tables and columns.

Neither library is imported here unless what is asked about belongs to it.
"""

from __future__ import annotations

import datetime
import sys
import uuid
from dataclasses import dataclass
from typing import Any, Final

from kvcluster.errors import ConfigurationError

_DJANGO_KINDS: Final[dict[str, type[Any]]] = {
    "AutoField": int,
    "BigAutoField": int,
    "SmallAutoField": int,
    "IntegerField": int,
    "BigIntegerField": int,
    "SmallIntegerField": int,
    "PositiveIntegerField": int,
    "PositiveBigIntegerField": int,
    "PositiveSmallIntegerField": int,
    "CharField": str,
    "TextField": str,
    "SlugField": str,
    "UUIDField": uuid.UUID,
    "DateField": datetime.date,
    "DateTimeField": datetime.datetime,
}


@dataclass(frozen=True, slots=True)
class ColumnName:
    """A column: its table's name, its own, and the Python type of its values, object where that is not known."""

    table: str
    name: str
    kind: type[Any] = object

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"


def tables_of(target: object) -> tuple[str, ...]:
    """The tables of a mapped class, a `Table` or a Django model: several where the class inherits from another's table.

    :raises ConfigurationError: for anything else
    """
    if (options := getattr(target, "_meta", None)) is not None and isinstance(target, type):
        models = (target, *options.get_parent_list())
        return tuple(dict.fromkeys(model._meta.db_table for model in models))
    if _is_sqlalchemys(target):
        from sqlalchemy import Table, inspect
        from sqlalchemy.orm import Mapper

        if isinstance(target, Table):
            return (target.fullname,)
        mapper = inspect(target, raiseerr=False)
        if isinstance(mapper, Mapper):
            return tuple(table.fullname for table in mapper.tables if isinstance(table, Table))
    raise ConfigurationError(f"a mapped class, a Table or a Django model is wanted, not {target!r:.100}")


def column_of(attribute: object) -> ColumnName:
    """The column of a mapped attribute such as ``User.id``, of a `Column` or of a Django model's field.

    :raises ConfigurationError: for anything else, such as a relationship or an expression
    """
    field: Any = getattr(attribute, "field", None)
    if getattr(field, "column", None) is not None and not field.many_to_many:
        return ColumnName(field.model._meta.db_table, field.column, _django_kind(field))
    if _is_sqlalchemys(attribute):
        from sqlalchemy import Column, Table
        from sqlalchemy.orm import QueryableAttribute

        column: Any = attribute.expression if isinstance(attribute, QueryableAttribute) else attribute
        if isinstance(column, Column) and isinstance(column.table, Table):
            return ColumnName(column.table.fullname, column.name, plain_type(column))
    raise ConfigurationError(f"{attribute} is not mapped to a column of a table")


def plain_type(column: Any) -> type[Any]:
    """The Python type of a SQLAlchemy column's values; object where its type names none."""
    try:
        kind: type[Any] = column.type.python_type
    except NotImplementedError:
        return object
    return kind


def _django_kind(field: Any) -> type[Any]:
    while field.is_relation:
        field = field.target_field
    return _DJANGO_KINDS.get(field.get_internal_type(), object)


def _is_sqlalchemys(target: object) -> bool:
    """Whether SQLAlchemy may know what this is: it cannot before it was imported."""
    return "sqlalchemy" in sys.modules and target is not None
