"""Typed values: what a loader's return annotation says is rebuilt from the cache as exactly that.

msgspec decodes by annotation, in C. Around it stand three rules:

- What msgspec cannot tell apart or rebuild is refused where the loader is declared, by an error that names the type. A pydantic
  model travels as its own JSON; which of its fields were set by whoever made it does not.
- A value is stored only if its bytes give it back, equal and of the same types all the way down. That is found out by decoding
  them and comparing, because nobody's list of what a format loses without a word is ever complete: tuples and enums inside
  ``Any``, time zones, subclasses, fields that a ``__post_init__`` changes.
- Bytes that do not decode are `Undecodable`, whatever the reason, and a miss for the reader. Fields travel by name, so that one
  that was added with a default or removed since does decode. Those of a ``NamedTuple`` have only their order, so a value of
  another shape might decode as something it never was; see `Shape.reads`.

Values that are bytes, str or int as a whole keep the base codec's form, so that any memcached client reads them.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import functools
import hashlib
import inspect
import typing
import uuid
from collections.abc import Callable, Mapping
from operator import attrgetter, is_
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Final

import msgspec

from kvcluster.codec import MSGPACK, Codec, Undecodable
from kvcluster.errors import ConfigurationError, IllegalValue

#: The fingerprint of values that need none: the base codec gives them back by itself.
UNTYPED: Final = bytes(4)

_TIMES: Final = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta)
_SCALARS: Final = frozenset((NoneType, bool, int, float, str, bytes, bytearray, decimal.Decimal, uuid.UUID, *_TIMES))
_SEQUENCES: Final = (collections.abc.Collection, collections.abc.Sequence, collections.abc.MutableSequence)
_SETS_AND_MAPPINGS: Final = (
    collections.abc.Set,
    collections.abc.MutableSet,
    collections.abc.Mapping,
    collections.abc.MutableMapping,
)
_CONTAINERS: Final = frozenset((list, tuple, set, frozenset, dict, *_SEQUENCES, *_SETS_AND_MAPPINGS))
_PLAIN: Final = frozenset((bytes, str, int))


class Shape:
    """The structure of a value, from its annotation: what packs it, and what its bytes are called.

    :param annotation: a type as it stands in an annotation, without names that are still to be resolved
    :param label: what the values are, for errors; by default the annotation's text
    :raises ConfigurationError: for a type that cannot be cached; the message names it

    >>> shape = Shape(dict[datetime.date, decimal.Decimal])
    >>> shape.unpack(shape.pack({datetime.date(2024, 1, 2): decimal.Decimal("0.10")}))
    {datetime.date(2024, 1, 2): Decimal('0.10')}
    """

    #: The structure as text: the names of the types and their fields, all the way down. None where any value is allowed.
    text: str | None

    #: 4 bytes that are the same for the same structure, in every process; `UNTYPED` where the base codec's own form is enough.
    fingerprint: bytes

    #: The types that values have in the base codec's own form.
    plain: frozenset[type[Any]]

    def __init__(self, annotation: Any, label: str | None = None) -> None:
        self.annotation = annotation
        self.label = label or _name(annotation)
        self.text = None
        self.fingerprint = UNTYPED
        self.plain = _PLAIN
        self._ordered = False
        if annotation is Any or annotation is object or annotation is inspect.Signature.empty:
            return
        try:
            survey = _Survey()
            self.text = survey.text(annotation)
            self._decoder = msgspec.msgpack.Decoder(annotation, dec_hook=_rebuilt)
        except (TypeError, NameError, ValueError) as error:
            raise ConfigurationError(f"{self.label} cannot be cached: {error}") from None
        self._ordered = survey.ordered
        options = frozenset(NoneType if each is None else each for each in _options(annotation))
        self.plain = options & _PLAIN
        if not options <= _PLAIN | {NoneType}:
            digest = hashlib.blake2b(self.text.encode(), digest_size=4).digest()
            self.fingerprint = digest if digest != UNTYPED else b"\1\0\0\0"

    def __repr__(self) -> str:
        return f"<Shape {self.text or 'Any'} {self.fingerprint.hex()}>"

    def optional(self) -> Shape:
        """The shape of the same values, or None."""
        return self if self.text is None else Shape(self.annotation | None, self.label)

    def reads(self, fingerprint: bytes) -> bool:
        """Whether bytes of a value of that fingerprint may be tried. Those that may and do not fit are `Undecodable`."""
        return fingerprint == self.fingerprint or (self.text is not None and not self._ordered)

    def pack(self, value: Any) -> bytes:
        """The bytes of a value that `unpack` gives back.

        :raises IllegalValue: for a value that is not what the annotation says, or would not come back as it is
        """
        try:
            data = _packer.encode(value)
            lost = difference(value, self._decoder.decode(data))
        except Exception as error:  # a model's own code may raise anything
            raise self._refusal(value, str(error)) from error
        if lost is not None:
            raise self._refusal(value, f"value{lost}")
        return data

    def _refusal(self, value: Any, reason: str) -> IllegalValue:
        return IllegalValue(f"a {_name(type(value))} cannot be stored as {self.label}: {reason}")

    def unpack(self, data: bytes) -> Any:
        """The value.

        :raises Undecodable: where the bytes are not one of this shape
        """
        try:
            return self._decoder.decode(data)
        except Exception as error:  # corrupted bytes bring a model's own code to raise anything
            raise Undecodable(f"not {self.label}: {error}") from error


class TypedCodec:
    """A base codec for values of one shape.

    :param shape: what the values are
    :param base: encodes what is bytes, str or int as a whole, or of any type; and compresses, where it does
    """

    def __init__(self, shape: Shape, base: Codec) -> None:
        self.shape = shape
        self._base = base

    def __repr__(self) -> str:
        return f"<TypedCodec {self.shape.text or 'Any'}>"

    @property
    def fingerprint(self) -> bytes:
        """4 bytes; see `Shape.fingerprint`."""
        return self.shape.fingerprint

    def encode(self, value: Any) -> tuple[bytes, int]:
        """The value's bytes and client flags.

        :raises IllegalValue: for a value that is not what the annotation says, or would not come back as it is
        """
        if self.shape.text is None or type(value) in self.shape.plain:
            return self._base.encode(value)
        data, flags = self._base.encode(self.shape.pack(value))
        return data, flags | MSGPACK

    def decode(self, data: bytes, flags: int) -> Any:
        """The value.

        :raises Undecodable: where the bytes are not one of this shape
        """
        shape = self.shape
        if shape.text is None:
            return self._base.decode(data, flags)
        if flags == MSGPACK:
            return shape.unpack(data)
        try:
            value = self._base.decode(data, flags & ~MSGPACK)
        except Exception as error:
            raise Undecodable(str(error)) from error
        if flags & MSGPACK:
            return shape.unpack(value)
        if type(value) not in shape.plain:
            raise Undecodable(f"not {shape.label}: a {_name(type(value))}")
        return value


def codec_for(shape: Shape, base: Codec) -> Codec:
    """The codec for values of a shape: the base codec itself where any value is allowed."""
    return base if shape.text is None else TypedCodec(shape, base)


def codec_of(target: Any, base: Codec) -> TypedCodec:
    """The codec for the results of a function, or for values of an annotation.

    A function without a return annotation, or with ``Any``, has what the base codec has; of a coroutine function the annotation is
    what awaiting it gives.

    :param target: a function or an annotation
    :param base: the codec underneath
    :raises ConfigurationError: for a type that cannot be cached, or an annotation that names what is not there

    >>> from kvcluster.codec import StandardCodec
    >>> def days(month: int) -> tuple[datetime.date, ...]: ...
    >>> codec = codec_of(days, StandardCodec())
    >>> codec.decode(*codec.encode((datetime.date(2024, 1, 2),)))
    (datetime.date(2024, 1, 2),)
    """
    return TypedCodec(shape_of(target), base)


def shape_of(target: Any) -> Shape:
    """The shape of the results of a function, or of an annotation; see `codec_of`."""
    if not _is_function(target):
        return Shape(target)
    function = target
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    if not inspect.isroutine(function):
        function = type(function).__call__
    if "return" not in getattr(function, "__annotations__", {}):
        return Shape(Any)
    stub = dict(function.__annotations__)["return"]
    try:
        # Of the return annotation alone: a name among the parameters may be there for type checkers only.
        returning = SimpleNamespace(__annotations__={"return": stub}, __globals__=getattr(function, "__globals__", {}))
        annotation = typing.get_type_hints(returning, include_extras=True)["return"]
    except Exception as error:
        raise ConfigurationError(
            f"the return annotation {stub!r} of {_name(function)} cannot be resolved: {error}; what it names must be there at the "
            "top level of the module, not only under TYPE_CHECKING or inside a function"
        ) from None
    return Shape(annotation, f"the result of {_name(function)} ({_name(annotation)})")


def _is_function(target: Any) -> bool:
    """Whether it is called for values rather than naming their type, as what stands in an annotation may be called too."""
    if isinstance(target, type) or typing.get_origin(target) is not None or not callable(target):
        return False
    return type(target).__module__ not in ("typing", "typing_extensions")


def _options(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, UnionType) else (annotation,)


class _Survey:
    """A walk over an annotation that writes its structure down and refuses what cannot be rebuilt.

    :raises TypeError: from `text`, naming the type
    """

    def __init__(self) -> None:
        #: Whether there are fields that have only their order.
        self.ordered = False
        self._seen: set[tuple[type[Any], bool]] = set()

    def text(self, kind: Any, model: bool = False) -> str:
        """The structure of a type.

        :param model: whether it stands in a pydantic model, which rebuilds what it likes
        """
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if kind is object:
            raise TypeError("object inside another type is not a type whose values could be rebuilt: say Any")
        if kind is Any:
            return "Any"
        if kind is None or kind is NoneType or kind is ...:
            return "..." if kind is ... else "None"
        if isinstance(kind, typing.TypeVar):
            return f"~{kind.__name__}"
        if origin is typing.Literal:
            return f"Literal{[*args]!r}"
        if origin is typing.Annotated:
            return self.text(args[0], model)
        if origin in (typing.Union, UnionType):
            return " | ".join(sorted(self.text(each, model) for each in args))
        for reference in ("__supertype__", "__value__"):  # of a NewType and of a type statement
            if hasattr(kind, reference):
                return self.text(getattr(kind, reference), model)
        cls = origin or kind
        name = _name(cls)
        if args:
            name += f"[{', '.join(self.text(each, model) for each in args)}]"
        if not isinstance(cls, type):
            if model:
                return repr(kind)
            raise TypeError(f"{name} is not a type whose values could be rebuilt")
        if (cls, model) in self._seen or cls in _SCALARS or cls in _CONTAINERS:
            return name
        if issubclass(cls, enum.Enum):
            return f"{name}({', '.join(f'{member.name}={member.value!r}' for member in cls)})"
        fields = _fields(cls)
        if fields is None:
            if model:
                return name
            raise TypeError(
                f"{cls.__module__}.{name} is not a type whose values could be rebuilt: make it a dataclass, a msgspec Struct, a "
                "TypedDict, a NamedTuple or a pydantic model"
            )
        self._seen.add((cls, model))
        self.ordered |= issubclass(cls, tuple) or (issubclass(cls, msgspec.Struct) and cls.__struct_config__.array_like)
        inner = [f"{field}: {self.text(each, model or _is_model(cls))}" for field, each in fields.items()]
        return f"{name}({', '.join(inner)})"


def _fields(cls: type[Any]) -> Mapping[str, Any] | None:
    """The fields of a structured type and their annotations, None of any other."""
    if _is_model(cls):
        return {name: field.annotation for name, field in cls.model_fields.items()}
    names = getattr(cls, "_fields", None) if issubclass(cls, tuple) else _members(cls)
    if names is None and hasattr(cls, "__required_keys__"):  # typing's or typing_extensions' TypedDict
        names = tuple(cls.__annotations__)
    if names is None:
        return None
    hints = typing.get_type_hints(cls)
    return {name: hints.get(name, Any) for name in names}


def _members(cls: type[Any]) -> tuple[str, ...] | None:
    """The attributes that make up an instance of a structured type."""
    if issubclass(cls, msgspec.Struct):
        return cls.__struct_fields__
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    return (*cls.model_fields, "__pydantic_extra__", "__pydantic_private__") if _is_model(cls) else None


def _is_model(cls: type[Any]) -> bool:
    """Whether it is a pydantic model, without importing pydantic."""
    return hasattr(cls, "model_validate_json")


def _name(kind: Any) -> str:
    return str(kind) if typing.get_origin(kind) is not None else getattr(kind, "__qualname__", None) or str(kind)


def _reduced(value: Any) -> Any:
    """What msgspec cannot encode itself."""
    if _is_model(type(value)):
        return value.model_dump_json(round_trip=True, warnings=False)
    raise TypeError(f"a {_name(type(value))} has no form of its own")


def _rebuilt(kind: type[Any], form: Any) -> Any:
    """What msgspec cannot decode itself, from its encoded form."""
    return kind.model_validate_json(form, by_alias=False, by_name=True)  # aliases may differ for writing and reading; names do not


_packer = msgspec.msgpack.Encoder(enc_hook=_reduced)

#: Values of these types that are equal are the same. (-0.0 equals 0.0, but no form loses the sign.)
_LEAVES: Final = frozenset((NoneType, bool, int, float, str, bytes, bytearray, uuid.UUID, datetime.date, datetime.timedelta))


def difference(value: Any, copy: Any) -> str | None:
    """Where a value and its copy are not equal or not of the same types, and how; None where they are the same all the way down.

    >>> difference({"a": [1, (2, 3)]}, {"a": [1, [2, 3]]})
    "['a'][1] would come back as list instead of tuple"
    """
    kind = type(value)
    if kind is not type(copy):
        return f" would come back as {_name(type(copy))} instead of {_name(kind)}"
    parts = None if kind in _LEAVES else _parts(kind)  # type: ignore[arg-type]  # a type is hashable
    if parts is None:
        same = _exact(value) == _exact(copy) or (value != value and copy != copy)
        return None if same else f" would come back as another {_name(kind)}"
    these, those = parts(value), parts(copy)
    if len(these) != len(those):
        return " would come back with parts added or missing"
    if kind is set or kind is frozenset:
        twins = {each: each for each in those}
        those = [twins.get(each, twins) for each in these]
    if _LEAVES.issuperset(map(type, these)) and all(map(is_, map(type, these), map(type, those))) and these == those:
        return None  # in C, which is most of what there is
    for number, (part, twin) in enumerate(zip(these, those, strict=True)):
        if part is not twin and (found := difference(part, twin)) is not None:
            return _place(value, number) + found
    return None


@functools.lru_cache(1024)
def _parts(kind: type[Any]) -> Callable[[Any], Any] | None:
    """What takes values of a type apart into a sequence; None where they have no parts."""
    if kind is dict:
        return lambda value: [*value, *value.values()]
    if kind in (list, set, frozenset):
        return list
    if issubclass(kind, tuple):
        return tuple
    names = _members(kind)
    if names is None:
        return None
    if len(names) < 2:  # for which attrgetter makes no tuple
        return lambda value: [getattr(value, name) for name in names]
    return attrgetter(*names)


def _exact(value: Any) -> Any:
    """What is equal only of values that are the same."""
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, (datetime.datetime, datetime.time)):
        zone = value.tzinfo
        if zone is None:
            return value, value.fold
        fixed = zone.utcoffset(None)  # a zone of one offset is that offset, whatever its class
        return value.replace(tzinfo=None, fold=0), value.utcoffset(), zone if fixed is None else fixed
    return value


def _place(value: Any, number: int) -> str:
    """Where in a value its part of that number is."""
    if isinstance(value, dict):
        keys = [*value]
        return f" key {keys[number]!r}" if number < len(keys) else f"[{keys[number - len(keys)]!r}]"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"[{number}]"
    return f".{(_members(type(value)) or ())[number]}"
