"""Which tables the database itself changes when another is written, and the order that tables are locked in.

What a foreign key refers to may not be declared, or not yet: it is then taken to refer to whichever table is asked about.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from sqlalchemy import ForeignKey, Table
from sqlalchemy.exc import NoReferenceError
from sqlalchemy.sql.ddl import sort_tables_and_constraints


def dependants(table: Table, on_update: bool = False) -> tuple[Table, ...]:
    """The tables whose rows the database changes when it deletes rows of this one.

    :param on_update: when it changes the columns of this one that others refer to, instead
    """
    return _dependants(table, on_update, len(table.metadata.tables))


@lru_cache(maxsize=1024)
def _dependants(table: Table, on_update: bool, declared: int) -> tuple[Table, ...]:
    found: dict[Table, None] = {}
    reached = [table]
    while reached:
        this = reached.pop()
        for other in this.metadata.tables.values():
            if other not in found and any(
                (key.onupdate or (key.ondelete and not on_update)) and _refers(key, this) for key in other.foreign_keys
            ):
                found[other] = None
                reached.append(other)
    return tuple(found)


def referred(table: Table) -> frozenset[str]:
    """The columns of a table whose changes the database hands on."""
    return _referred(table, len(table.metadata.tables))


@lru_cache(maxsize=1024)
def _referred(table: Table, declared: int) -> frozenset[str]:
    keys = [key for other in table.metadata.tables.values() for key in other.foreign_keys if key.onupdate and _refers(key, table)]
    return frozenset(key.target_fullname.rpartition(".")[2] for key in keys)


def _refers(key: ForeignKey, table: Table) -> bool:
    try:
        return key.column.table.key == table.key  # not by identity: statements of mapped classes have annotated copies
    except NoReferenceError:
        return True


def in_order(tables: Iterable[Table]) -> list[Table]:
    """Tables after those that they refer to, always in the same order."""
    by_name = sorted(tables, key=lambda table: table.fullname)
    try:
        return [table for table, _ in sort_tables_and_constraints(by_name) if table is not None]  # type: ignore[no-untyped-call]
    except NoReferenceError:
        return by_name
