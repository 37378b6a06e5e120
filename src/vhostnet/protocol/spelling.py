"""Declared structs as a line of text that people read, and back into the same structs.

A struct is `field=number, field=number`, one within it `field={...}`, those that follow it
`[{...}, {...}]`.  What stands in angle brackets says the same once more for people (names of bits,
the end of a range, what a descriptor is) and is ignored when the line is read back; nothing else
is, so reading gives exactly what was spelled.  A struct of one field is its number alone, and
padding is shown only where it is not 0.

All that is known of a struct is its declaration (`uapi/wire.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from vhostnet.uapi.wire import Bits, Field, Form, Layout, SizeFrom, Values, fields_of

#: What may not stand within angle brackets, nor confuse whoever splits the line.
_UNSAFE = re.compile(r"[^\w./:@\[\]+,|-]", re.ASCII)
_REMARK = re.compile(r"<[^<>]*>")
_OPENING, _CLOSING = "{[(", "}])"


class SpellingError(ValueError):
    """A text that `spell_form` does not write; says what is wrong with it."""


def remark(text: str) -> str:
    """Text for people, in angle brackets."""
    return f"<{_UNSAFE.sub('_', text)}>"


def without_remarks(text: str) -> str:
    """What is left for machines."""
    return _REMARK.sub("", text)


def split(text: str) -> list[str]:
    """The parts between commas, those within brackets of any kind not counted."""
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and depth == 0:
            parts.append(text[begin:at].strip())
            begin = at + 1
    last = text[begin:].strip()
    return [*parts, last] if last or parts else []


# --- to text ------------------------------------------------------------------------------------


def spell(value: Any, remarks: Mapping[str, str] | None = None) -> str:
    """A declared struct.

    Args:
        remarks: for people, behind the fields of these names.
    """
    fields = list(fields_of(type(value)))
    if len(fields) == 1 and fields[0].kind is None:
        return _spell_field(value, fields[0], remarks)
    return ", ".join(
        f"{field.name}={_spell_field(value, field, remarks)}"
        for field in fields
        if getattr(value, field.name) or not field.name.startswith(("padding", "rest"))
    )


def spell_form(form: Form, data: bytes, remarks: Mapping[str, str] | None = None) -> str:
    """The bytes of a message; those that its form does not tell of in hexadecimal."""
    if len(data) < form.head.size:
        return f"payload={data.hex()}" if data else ""
    parts = [spell(form.head.unpack(data), remarks)]
    at = form.head.size
    if form.items is not None and len(data) >= at + form.items.size:
        items = []
        while len(data) >= at + form.items.size:
            items.append(f"{{{spell(form.items.unpack(data, at))}}}")
            at += form.items.size
        parts.append(f"[{', '.join(items)}]")
    if at < len(data):
        parts.append(f"more={data[at:].hex()}")
    return ", ".join(part for part in parts if part)


def _spell_field(value: Any, field: Field, remarks: Mapping[str, str] | None) -> str:
    number = getattr(value, field.name)
    if field.kind is not None:
        return f"{{{spell(number)}}}"
    if remarks and field.name in remarks:
        return f"{number}{remark(remarks[field.name])}"
    match field.meaning:
        case Bits(names, mask):
            rest = number & ~mask
            set_bits = [bit for bit in range(rest.bit_length()) if rest >> bit & 1]
            known = [names.get(bit, f"bit{bit}") for bit in set_bits] if names else []
            if mask:
                known.insert(0, str(number & mask))
            return f"{number:#x}{remark('|'.join(known)) if known else ''}"
        case Values(names):
            return f"{number}{remark(names[number]) if number in names else ''}"
        case SizeFrom(start):
            first = getattr(value, start)
            return f"{number:#x}{remark(f'{first:#x}..{first + number - 1:#x}') if number else ''}"
    return str(number)


# --- and back -----------------------------------------------------------------------------------


def read_form(form: Form, text: str) -> bytes:
    """The bytes that were spelled, of a text without remarks.  Raises SpellingError."""
    parts = split(text)
    if len(parts) == 1 and parts[0].startswith("payload="):
        return _hex(parts[0])
    more = _hex(parts.pop()) if parts and parts[-1].startswith("more=") else b""
    items = b""
    if parts and parts[-1].startswith("["):
        if form.items is None:
            raise SpellingError(f"nothing follows {form.head.cls.__name__}, but {parts[-1]} does")
        for item in split(parts.pop()[1:-1]):
            items += _read(form.items, item[1:-1])
    if not parts and form.head.size and not (items or more):
        return b""
    return _read(form.head, ", ".join(parts)) + items + more


def _read(layout: Layout[Any], text: str) -> bytes:
    try:
        return layout.pack(_read_struct(layout.cls, split(text)))
    except (ValueError, TypeError, OverflowError, dataclasses.FrozenInstanceError) as e:
        raise SpellingError(f"{text!r} is no {layout.cls.__name__}: {e}") from e
    except Exception as e:  # struct.error: a number that does not fit its field
        raise SpellingError(f"{text!r} does not fit a {layout.cls.__name__}: {e}") from e


def _read_struct(cls: type[Any], parts: list[str]) -> Any:
    fields = list(fields_of(cls))
    if len(fields) == 1 and fields[0].kind is None and len(parts) == 1:
        return cls(int(parts[0], 0))
    given = dict(_pairs(parts))
    values = {}
    for field in fields:
        text = given.pop(field.name, None)
        if field.kind is None:
            values[field.name] = 0 if text is None else int(text, 0)
        else:
            values[field.name] = _read_struct(field.kind, split((text or "{}")[1:-1]))
    if given:
        raise SpellingError(f"there is no field {next(iter(given))}")
    return cls(**values)


def _pairs(parts: list[str]) -> Iterator[tuple[str, str]]:
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals:
            raise SpellingError(f"{part!r} is not FIELD=NUMBER")
        yield name, value


def _hex(part: str) -> bytes:
    try:
        return bytes.fromhex(part.partition("=")[2])
    except ValueError as e:
        raise SpellingError(f"{part!r} is not hexadecimal") from e
