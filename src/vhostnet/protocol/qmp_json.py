"""From a stream of bytes to JSON objects, as QEMU's control monitor takes them apart.

Theory of operation.  A client's objects are not framed: one may come in pieces, several in one
read, with or without white space between them.  What is kept of a byte is where it stands
(nested how deep, within a string, behind a backslash), so an object's end is found in one pass,
and Python's own parser sees each object once, whole, of bounded size and depth.

BETWEEN   outside of any object
    Operations:  `{` or `[` begins one; white space is skipped; anything else makes it STRAY
WITHIN    an object has begun
    Operations:  the bracket that closes the first one ends it: it is parsed
    Caveats:     too long, too deep, or a control character in a string: STRAY
STRAY     what is no JSON is skipped to the end of its line, with one error for all of it

The byte 0xFF, which no UTF-8 has, brings the parser back to BETWEEN from wherever it is: a
client can make itself heard again after nonsense.

Source: QEMU qobject/json-lexer.c, json-streamer.c.  Not taken over: strings in single quotes.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

#: Bytes of one object.  The longest command that there is has some hundred.
MAX_SIZE = 64 * 1024
#: Brackets within brackets (QEMU: 1024).
MAX_DEPTH = 64
_RESYNC = b"\xff"

_BETWEEN = re.compile(rb"[^ \t\r\n]")
_WITHIN = re.compile(rb'["{}\[\]\xff]')
_IN_STRING = re.compile(rb'["\\\x00-\x1f\xff]')
_STRAY_END = re.compile(rb"[\n\xff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class JsonError(Exception):
    """What came is no JSON object; the text says why."""


class JsonStream:
    """Feed it what was received; it gives objects and errors, in their order."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        #: bytes of it that were looked at
        self._seen = 0
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self._is_stray = False

    def feed(self, data: bytes) -> list[dict[str, Any] | JsonError]:
        """Take bytes; returns each object that they complete, and each error that they make."""
        self._buffer += data
        found: list[dict[str, Any] | JsonError] = []
        while self._seen < len(self._buffer):
            try:
                item = self._step()
            except JsonError as error:
                found.append(error)
            else:
                found += [] if item is None else [item]
        return found

    def _step(self) -> dict[str, Any] | None:
        """Look at the buffer up to the next byte that means something."""
        if self._is_stray:
            self._skip_stray()
        elif not self._depth:
            self._begin()
        elif self._seen > MAX_SIZE:
            self._give_up(self._seen, f"an object is longer than {MAX_SIZE} bytes")
        elif self._in_string:
            self._within_string()
        else:
            return self._within()
        return None

    def _begin(self) -> None:
        byte = self._find(_BETWEEN)
        self._drop(self._seen - len(byte))
        if byte and byte in b"{[":
            self._depth = self._seen = 1
        elif byte == _RESYNC:
            self._drop(1)
        elif byte:
            self._give_up(0, "an object was expected")

    def _within(self) -> dict[str, Any] | None:
        byte = self._find(_WITHIN)
        if byte == b'"':
            self._in_string = True
        elif byte == _RESYNC:
            self._give_up(self._seen - 1, "an object was not finished")
        elif byte and byte in b"{[":
            self._depth += 1
            if self._depth > MAX_DEPTH:
                self._give_up(self._seen, f"an object is nested deeper than {MAX_DEPTH}")
        elif byte:
            self._depth -= 1
            if not self._depth:
                text = bytes(self._buffer[: self._seen])
                self._drop(self._seen)
                return parse_object(text)
        return None

    def _within_string(self) -> None:
        if self._is_escaped:
            self._is_escaped = False
            if self._buffer[self._seen] in b'"\\':  # anything else is looked at as ever
                self._seen += 1
            return
        byte = self._find(_IN_STRING)
        if byte == b'"':
            self._in_string = False
        elif byte == b"\\":
            self._is_escaped = True
        elif byte == _RESYNC:
            self._give_up(self._seen - 1, "an object was not finished")
        elif byte:
            self._give_up(self._seen - 1, "a control character in a string")

    def _skip_stray(self) -> None:
        self._is_stray = not self._find(_STRAY_END)
        self._drop(self._seen)

    def _find(self, pattern: re.Pattern[bytes]) -> bytes:
        """The next byte that matches, and go behind it; nothing, and go to the end."""
        match = pattern.search(self._buffer, self._seen)
        self._seen = len(self._buffer) if match is None else match.end()
        return b"" if match is None else bytes(match[0])

    def _give_up(self, n_bytes: int, why: str) -> NoReturn:
        """Forget so many bytes and skip what follows up to the end of its line."""
        self._drop(n_bytes)
        self._is_stray = True
        raise JsonError(f"JSON parse error: {why}")

    def _drop(self, n_bytes: int) -> None:
        """Forget so many bytes, and whatever they had begun."""
        del self._buffer[:n_bytes]
        self._seen = self._depth = 0
        self._in_string = self._is_escaped = False


def parse_object(text: bytes) -> dict[str, Any]:
    """One JSON object; JsonError if it is anything else, or has a number or string that is none.

    Numbers are of 64 bits, as everywhere in QEMU's schemas.
    """
    try:
        value = json.loads(
            text.decode(),
            object_pairs_hook=_without_duplicates,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_parse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise JsonError(f"JSON parse error: {error}") from None
    if b"\\u" in text and _SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise JsonError("JSON parse error: half of a surrogate pair in a string")
    if not isinstance(value, dict):
        raise JsonError("QMP input must be a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 64:
        raise ValueError("a number has more than 64 bits")
    return int(text)


def _parse_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _parse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
