"""On which line each key of a TOML document stands: `tomllib` does not tell.

The document is one that `tomllib` has accepted, so nothing is checked here: this only has to know
where strings, comments, lists and tables end.  Source: toml.io/en/v1.0.0.
"""

from __future__ import annotations

import re
import tomllib

#: ("device", "vm1", "backend"), with the number of an element of a list in its place.
Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"'[^']*'")
# At the end of such a string up to two quotes are part of it.
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"""(?!")', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'''(?!')", re.DOTALL)
_STRINGS = (_LONG_BASIC, _LONG_LITERAL, _BASIC, _LITERAL)
#: Numbers, dates and booleans: none of them has one of these in it.
_SCALAR = re.compile(r"[^,\]}#\n]+")


def key_lines(text: str) -> dict[Path, int]:
    """The lines, from 1, of all keys and headers of a valid document; of a table its first."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._lines: dict[Path, int] = {}
        self._lists_of_tables: dict[Path, int] = {}

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self._skip_blank():
            if self._take("[["):
                table = self._enter(self._key())
                number = self._lists_of_tables.get(table, 0)
                self._lists_of_tables[table] = number + 1
                table = (*table, number)
                self._note(table)
                self._take("]]")
            elif self._take("["):
                table = self._enter(self._key())
                self._take("]")
            else:
                self._pair(table)
        return self._lines

    # --- where keys are -----------------------------------------------------------------------

    def _pair(self, table: Path) -> None:
        path = table
        for part in self._key():
            path = (*path, part)
            self._note(path)
        self._skip_blank()
        self._take("=")
        self._value(path)

    def _enter(self, key: list[str]) -> Path:
        """A header's path: a name of a list of tables on the way means its last element."""
        path: Path = ()
        for n, part in enumerate(key):
            path = (*path, part)
            self._note(path)
            if path in self._lists_of_tables and n < len(key) - 1:
                path = (*path, self._lists_of_tables[path] - 1)
        return path

    def _note(self, path: Path) -> None:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        self._lines.setdefault(path, self._line)

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip_blank()
            bare = _BARE_KEY.match(self._text, self._at)
            if bare:
                parts.append(bare[0])
                self._at = bare.end()
            else:
                begin = self._at
                self._skip_string()
                quoted = self._text[begin : self._at]
                parts.append(str(tomllib.loads(f"key = {quoted}")["key"]))
            self._skip_blank()
            if not self._take("."):
                return parts

    # --- where values end ---------------------------------------------------------------------

    def _value(self, path: Path) -> None:
        self._skip_blank()
        if self._take("["):
            number = 0
            while self._skip_blank() and not self._take("]"):
                self._note((*path, number))
                self._value((*path, number))
                number += 1
                self._skip_blank()
                self._take(",")
        elif self._take("{"):
            while self._skip_blank() and not self._take("}"):
                self._pair(path)
                self._skip_blank()
                self._take(",")
        elif not self._skip_string():
            scalar = _SCALAR.match(self._text, self._at)
            self._at = scalar.end() if scalar else len(self._text)

    def _skip_string(self) -> bool:
        for pattern in _STRINGS:
            found = pattern.match(self._text, self._at)
            if found:
                self._at = found.end()
                return True
        return False

    def _skip_blank(self) -> bool:
        """Skip space, line ends and comments; whether something is left."""
        blank = _BLANK.match(self._text, self._at)
        self._at = blank.end() if blank else self._at
        return self._at < len(self._text)

    def _take(self, token: str) -> bool:
        if not self._text.startswith(token, self._at):
            return False
        self._at += len(token)
        return True
