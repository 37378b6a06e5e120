"""Declare a wire struct once; size, packing, unpacking and spelling follow from the declaration.

A struct is a frozen dataclass whose fields are annotated with `U32`, `U64` … or with another
such dataclass.  Numbers are in host byte order and unaligned ("=" of module `struct`): the
declaration shows the padding of the C struct as fields, or it is not there.

Behind a field's width may stand what its number means to people: `Bits`, `Values` or `SizeFrom`.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_type_hints


class Bits(NamedTuple):
    """A word of bits: hexadecimal, and the names of those that are set.

    Attributes:
        number: a mask of bits that are a number in themselves, the lowest ones.
    """

    names: Mapping[int, str]
    number: int = 0


class Values(NamedTuple):
    """One of several numbers that have names."""

    names: Mapping[int, str]


class SizeFrom(NamedTuple):
    """Bytes from the address in another field of the struct on."""

    field: str


U8 = Annotated[int, "B"]
U16 = Annotated[int, "H"]
U32 = Annotated[int, "I"]
U64 = Annotated[int, "Q"]
I32 = Annotated[int, "i"]
ADDRESS = Annotated[int, "Q", Bits({})]

T = TypeVar("T")


def _field_types(cls: type[Any]) -> list[Any]:
    hints = get_type_hints(cls, include_extras=True)
    return [hints[field.name] for field in dataclasses.fields(cls)]


def _is_struct(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _format(cls: type[Any]) -> str:
    """The `struct` letters of a declared struct, nested structs flattened."""
    return "".join(
        _format(kind) if _is_struct(kind) else kind.__metadata__[0] for kind in _field_types(cls)
    )


def _build(cls: type[Any], numbers: Iterator[int]) -> Any:
    """An instance of `cls` from as many numbers as it has (nested structs flattened)."""
    return cls(
        *(
            _build(kind, numbers) if _is_struct(kind) else next(numbers)
            for kind in _field_types(cls)
        )
    )


def _numbers(value: Any) -> Iterator[int]:
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if dataclasses.is_dataclass(item):
            yield from _numbers(item)
        else:
            yield item


class Field(NamedTuple):
    """One field of a declared struct.

    Attributes:
        kind: the dataclass of a nested struct, or None for a number.
        meaning: of a number: `Bits`, `Values`, `SizeFrom` or None.
    """

    name: str
    kind: type[Any] | None
    meaning: Bits | Values | SizeFrom | None


def fields_of(cls: type[Any]) -> Iterator[Field]:
    """The fields of a declared struct, in order."""
    for field, kind in zip(dataclasses.fields(cls), _field_types(cls), strict=True):
        if _is_struct(kind):
            yield Field(field.name, kind, None)
        else:
            yield Field(field.name, None, (*kind.__metadata__, None)[1])


class Layout(Generic[T]):
    """The bytes of one declared struct.

    Attributes:
        cls: the dataclass that declares the fields.
        size: bytes.
    """

    __slots__ = ("_struct", "cls", "size")

    def __init__(self, cls: type[T]) -> None:
        self.cls = cls
        self._struct = struct.Struct("=" + _format(cls))
        self.size = self._struct.size

    def pack(self, value: T) -> bytes:
        """`size` bytes.  A number that does not fit its field is a `struct.error`: a bug."""
        return self._struct.pack(*_numbers(value))

    def unpack(self, data: bytes, offset: int = 0) -> T:
        """The struct at `offset`; the caller has checked that `size` bytes are there."""
        built: T = _build(self.cls, iter(self._struct.unpack_from(data, offset)))
        return built


class Form(NamedTuple):
    """What the bytes of a message are: one struct and, behind it, any number of another."""

    head: Layout[Any]
    items: Layout[Any] | None = None
