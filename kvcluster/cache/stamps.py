"""Stamps: how many cached values are made invalid at once, without knowing their keys.

A stamp is 8 random bytes under a key of its own on *every* node. A value is stored together with the stamps it was loaded under,
and read together with those of its node; a difference is a miss. So a stamp is no hot key, and costs no second trip. Whatever
becomes of a stamp (renewed, deleted, evicted, gone with its node) the values under it are misses, never old hits.

What a stamp stands for is a text:

- ``tag:author:42``: a tag, as loaders declare it and `Cache.invalidate_tag` renews it;
- ``table:post``: the table changed in rows that are not known. Every value that hangs on the table carries it;
- ``rows:post``: any row of the table changed. Values carry it whose loaders watch the table as a whole;
- ``watch:post:author_id=42``: a row of the table with this value changed.

Two values of different types may share a text, ``42`` and ``"42"``: then more is loaded anew than had to be.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from typing import Any, Final

from kvcluster.cache.keys import RESERVED
from kvcluster.cache.tables import tables_of
from kvcluster.planner import Planner

_PREFIX: Final = f"{RESERVED}stamp:"
_ILLEGAL = re.compile(r"[\x00-\x20%\x7f]")


def stamp_wire(planner: Planner, name: str) -> bytes:
    """The key of a stamp, as the nodes store it: one that memcached takes as it is, whatever is in the name."""
    return planner.wire(_PREFIX + _ILLEGAL.sub(lambda match: f"%{ord(match[0]):02X}", name))


def tag_stamp(tag: str) -> str:
    """The name of a tag's stamp.

    >>> tag_stamp("author:42")
    'tag:author:42'
    """
    return f"tag:{tag}"


def table_stamp(table: str) -> str:
    """The name of the stamp that is renewed where it is not known which rows of a table changed."""
    return f"table:{table}"


def rows_stamp(table: str) -> str:
    """The name of the stamp that is renewed whenever a row of a table changes."""
    return f"rows:{table}"


def unknown_rows(table: str) -> tuple[str, str]:
    """The stamps to renew where it is not known which rows of a table changed."""
    return table_stamp(table), rows_stamp(table)


def watch_stamp(table: str, values: Mapping[str, Any]) -> str:
    """The name of the stamp of a table's rows with these values, by column.

    >>> watch_stamp("post", {"kind": "news", "author_id": 42})
    'watch:post:author_id=42&kind=news'
    """
    return f"watch:{table}:" + "&".join(f"{column}={text_of(value)}" for column, value in sorted(values.items()))


def table_stamps(*targets: object) -> tuple[str, ...]:
    """The stamps of mapped classes, tables or Django models, where it is not known which of their rows changed.

    :raises ConfigurationError: for anything else
    """
    return tuple(name for target in targets for table in tables_of(target) for name in unknown_rows(table))


def text_of(value: object) -> str:
    """A value as part of a stamp's name. A member of an Enum stands for its value, and a str for itself, as in keys."""
    if isinstance(value, enum.Enum):
        return text_of(value.value)
    return str.__str__(value) if isinstance(value, str) else str(value)
