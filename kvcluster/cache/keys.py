"""Cache keys from a loader's arguments: readable, stable over deploys, and different for different arguments.

Every parameter stands in the template, so that no two calls with different results share a key. Arguments are percent-escaped,
and fields must be separated by punctuation, so that ``("1:2", "3")`` and ``("1", "2:3")`` do not meet. A string that reads like a
number, a date or a UUID has its first character escaped in lower case, as nothing else has, so that ``"42"`` and ``42`` do not
meet either.
"""

from __future__ import annotations

import datetime
import enum
import inspect
import re
import string
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from kvcluster.errors import ConfigurationError, IllegalKey

#: What no loader's keys begin with; see `kvcluster.cache.stamps`.
RESERVED: Final = "__"

_UNSAFE = re.compile(r"[\x00-\x2d\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x7f]")
_READS_LIKE_ANOTHER_TYPE = re.compile(r"[0-9-]|[0-9a-f]{32}\Z").match
_SEPARATOR = re.compile(f"(?!%){_UNSAFE.pattern}").search  # a percent sign may be the start of an escape
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,100}").fullmatch


def checked_namespace(namespace: str) -> str:
    """The namespace itself.

    :raises ConfigurationError: where it is not 1 to 100 letters, digits, ``_``, ``.`` or ``-``
    """
    if not isinstance(namespace, str) or not _NAMESPACE(namespace):
        raise ConfigurationError(f"namespace must be 1 to 100 letters, digits, '_', '.' or '-', not {namespace!r}")
    return namespace


def escaped(value: object, name: str = "argument") -> str:
    """One argument as part of a key. A member of an Enum stands for its value.

    :raises IllegalKey: where it is not int, str, UUID, date or Enum

    >>> escaped("a:b"), escaped(7), escaped("7"), escaped("서울")
    ('a%3Ab', '7', '%37', '서울')
    """
    kind = type(value)
    if kind is int:
        return str(value).replace("-", "%2D")
    if isinstance(value, enum.Enum):
        return escaped(value.value, name)
    if isinstance(value, str):
        if _READS_LIKE_ANOTHER_TYPE(value):
            return f"%{ord(value[0]):02x}" + _percent_escaped(value[1:])
        return _percent_escaped(value)
    if isinstance(value, uuid.UUID):
        return value.hex
    if isinstance(value, datetime.date):
        return _percent_escaped(value.isoformat())
    raise IllegalKey(f"{name} must be int, str, UUID, date or Enum to be part of a key, not {kind.__name__}")


def _text(value: object, name: str) -> object:
    """What `escaped` makes of a value, or a number as it is, which has nothing to escape."""
    return value if type(value) is int and value >= 0 else escaped(value, name)


def _percent_escaped(text: str) -> str:
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", text)


def is_of(value: object, kind: type) -> bool:
    """Whether a value is of a type as a column or a key takes it: a bool is no number, a moment no day.

    >>> is_of(1, int), is_of(True, int)
    (True, False)
    """
    if isinstance(value, (bool, datetime.datetime)):
        return kind is object or type(value) is kind
    return isinstance(value, kind)


class Template:
    """A key template such as ``"profile:{user_id}:{lang}"``, bound to the function whose arguments fill it.

    :param text: literal text and the names of parameters in braces
    :param function: the loader; each of its parameters must stand in the template or in ``ignore``
    :param ignore: parameters that do not change the result
    :param prefixes: what the versions of the key begin with, the one in use first
    :raises ConfigurationError: where template and function do not fit

    >>> Template("profile:{user_id}:{lang}", lambda user_id, lang="ko": None).key((42,), {})
    'profile:42:ko'
    """

    #: The first argument's name: the one that ``get_many`` takes many of.
    many: str

    #: The text with its fields nameless: templates of one shape share their keys.
    shape: str

    #: The arguments that stand in it.
    fields: frozenset[str]

    #: Whether there is a keyword-only ``session`` that is not part of the key.
    takes_session: bool

    def __init__(
        self, text: str, function: Callable[..., Any], ignore: Iterable[str] = (), prefixes: Sequence[str] = ("",)
    ) -> None:
        self.text = text
        self.prefixes = prefixes
        self.function = function
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters
        ignored = {*ignore, *(name for name, p in parameters.items() if name == "session" and p.kind is p.KEYWORD_ONLY)}
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
            raise ConfigurationError(f"key template {text!r}: a loader cannot take *args or **kwargs")
        if text.startswith(RESERVED):
            raise ConfigurationError(f"key template {text!r}: keys that begin with {RESERVED!r} are the cache's own")
        pieces = list(pieces_of(text))
        fields = [name for _, name in pieces if name is not None]
        self.fields = frozenset(fields)
        self.takes_session = "session" in ignored and "session" in parameters and "session" not in fields
        first, *others = _literals(pieces)
        self.shape = prefixes[0] + "{}".join([first, *others])
        unknown = [name for name in fields if name not in parameters]
        missing = [name for name in parameters if name not in fields and name not in ignored]
        if unknown:
            raise ConfigurationError(f"key template {text!r} names {unknown[0]!r}, which is not an argument of the loader")
        if missing:
            raise ConfigurationError(f"key template {text!r} lacks {missing[0]!r}: put {{{missing[0]}}} in it, or ignore={missing}")
        for (_, before), (literal, name) in pairwise(pieces):
            if before is not None and name is not None and not _SEPARATOR(literal):
                raise ConfigurationError(f"key template {text!r}: {{{before}}} and {{{name}}} must be separated by ':' or the like")
        self._pieces: Final[Sequence[tuple[str, str | None]]] = pieces
        self._kinds: dict[str, type] = {}
        self._positional = [name for name in parameters if parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY]
        self._simple = len(self._positional) == len(parameters)
        self._places = [(self._positional.index(name), name) for name in fields] if self._simple else []
        self._in_order = [place for place, _ in self._places] == [*range(len(self._positional))]
        self._format = "%s".join(text.replace("%", "%%") for text in (prefixes[0] + first, *others))
        self.many = self._positional[0] if self._positional else ""

    def require(self, argument: str, kind: type) -> None:
        """Refuse other values of an argument from now on.

        Who deletes a key by a row's column knows the column's type. The database may find that row by another, whose key differs.
        """
        self._kinds[argument] = kind

    def key(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The key of a call with these arguments.

        :raises TypeError: where the loader cannot be called with them
        :raises IllegalKey: where one of them cannot be part of a key
        """
        if not self._simple or kwargs or self._kinds or len(args) != len(self._positional):
            return self.filled(self.arguments(args, kwargs))
        if self._in_order:
            for value in args:
                if type(value) is not int or value < 0:
                    break
            else:  # numbers, which have nothing to escape
                return self._format % tuple(args)
        return self._format % tuple([_text(args[place], name) for place, name in self._places])

    def keys(self, many: Iterable[Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[str]:
        """`key` of each call with one of these values as the first argument, and the others as they are."""
        values = [*many]
        if not (self._simple and not kwargs and not self._kinds and values and len(args) + 1 == len(self._positional)):
            return [self.key((value, *args), kwargs) for value in values]
        others = ["%s" if not place else str(_text(args[place - 1], name)).replace("%", "%%") for place, name in self._places]
        form, first, times = self._format.replace("%%", "%%%%") % tuple(others), self.many, others.count("%s")
        if times == 1 and {*map(type, values)} == {int} and min(values) >= 0:
            return [form % value for value in values]
        if times == 1:
            return [form % (_text(value, first),) for value in values]
        return [form % ((_text(value, first),) * times) for value in values]

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """A call's arguments by name, defaults included.

        :raises TypeError: where the loader cannot be called with them
        """
        if self._simple and not kwargs and len(args) == len(self._positional):
            return dict(zip(self._positional, args, strict=True))
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def filled(self, arguments: Mapping[str, Any]) -> str:
        """The key of a call with these arguments by name.

        :raises IllegalKey: where one of them cannot be part of a key, or is not of the type that was required
        """
        for name, kind in self._kinds.items():
            value = arguments[name]
            if not is_of(value.value if isinstance(value, enum.Enum) else value, kind):
                given = f"{type(value).__name__}: {value!r:.100}"
                raise IllegalKey(f"{name} must be {kind.__name__}, as the column it stands for is, not {given}")
        key = "".join([literal if name is None else literal + escaped(arguments[name], name) for literal, name in self._pieces])
        return self.prefixes[0] + key

    def every_version(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """As `filled`, in each version.

        :raises IllegalKey: as that does
        """
        return self.versions(self.filled(arguments))

    def versions(self, key: str) -> tuple[str, ...]:
        """A key in each version, the one in use first.

        :param key: as `key` and `filled` give it
        """
        bare = key.removeprefix(self.prefixes[0])
        return tuple([prefix + bare for prefix in self.prefixes])


def _literals(pieces: Iterable[tuple[str, str | None]]) -> Iterable[str]:
    """The texts around the fields: one more than there are fields."""
    text = ""
    for literal, name in pieces:
        text += literal
        if name is not None:
            yield text
            text = ""
    yield text


def pieces_of(text: str, what: str = "key template") -> Iterable[tuple[str, str | None]]:
    """The pieces of a template: literal text and the field after it, None after the last.

    :param what: what an error calls it
    :raises ConfigurationError: for anything in braces that is not the bare name of an argument
    """
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigurationError(f"{what} {text!r}: {error}") from None
    for literal, name, spec, conversion in pieces:
        if name is not None and (not name.isidentifier() or spec or conversion):
            raise ConfigurationError(f"{what} {text!r}: {{{name}}} must be the bare name of an argument")
        yield literal, name
